"""The readers that are fed damaged files, each with good ones to start from."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

import fgcompile
from fgcompile.cli import main
from fgcompile.gates import saved_config
from fgcompile.methods import S2ftAdapter, S2ftEntry, fuse
from fgcompile.methods.s2ft_adapter import Key
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.zoo.models import entry
from tests.hostile.documents import damaged_bytes, damaged_json, strange_value
from tests.hostile.graphs import damaged_onnx
from tests.hostile.runner import Target
from tests.hostile.tensors import damaged_safetensors
from tests.report.models import Encoder

SECRET = 1234.5
"""In every file outside: no tensor that was read may hold it."""


class Mlp(nn.Module):
    """Four in, eight hidden, two out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def write_outside(folder: Path) -> None:
    """Files that nobody may read, in the formats that readers expect."""
    folder.mkdir()
    numbers = torch.full((16, 64), SECRET)
    (folder / "secret").write_bytes(numbers.numpy().tobytes())
    (folder / "secret.data").write_bytes(numbers.numpy().tobytes())
    model: Any = entry("llama").build()
    state = {n: torch.full_like(p, SECRET) for n, p in model.state_dict().items()}
    state |= {n: torch.full_like(p, SECRET) for n, p in Mlp().state_dict().items()}
    save_file(state, folder / "secret.safetensors", {"format": "pt"})


def _render(diff: GraphDiff) -> None:
    diff.to_markdown()
    diff.to_html()
    diff.to_json()
    diff.to_svg()
    diff.to_terminal()


def _build_onnx(folder: Path) -> None:
    """One file with everything in it, one with weights beside, and odd neighbours."""
    model = Encoder(layers=1, quantised=True).build()
    onnx.save(_with_branch(model), folder / "good.onnx")
    onnx.save(_with_branch(model), folder / "model.onnx")
    onnx.save(
        model,
        folder / "beside.onnx",
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )
    (folder / "link.data").symlink_to("../outside/secret.data")
    (folder / "linked").symlink_to("../outside")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")


def _with_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that also has a subgraph, a constant and a function."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, outer = copy.graph, model.graph.node[0].output[0]
    value = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    graph.node.append(helper.make_node("Constant", [], ["c0"], value=value))
    graph.node.append(helper.make_node("Constant", [], ["flag0"], value=flag))
    nodes = [helper.make_node("Neg", [outer], ["n"])]
    out = helper.make_tensor_value_info("n", TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "branch", [], [out])
    graph.node.append(
        helper.make_node(
            *("If", ["flag0"], ["either"]), then_branch=branch, else_branch=branch
        )
    )
    twice = helper.make_node("Add", ["a", "a"], ["b"])
    copy.functions.append(
        helper.make_function(
            *("local", "Twice", ["a"], ["b"], [twice], list(model.opset_import))
        )
    )
    copy.opset_import.append(helper.make_opsetid("local", 1))
    graph.node.append(helper.make_node("Twice", ["either"], ["two"], domain="local"))
    return copy


def _attack_onnx(random: Random, case: Path) -> str:
    name = random.choice(("model.onnx", "model.onnx", "beside.onnx"))
    content, done = damaged_onnx(random, (case / name).read_bytes())
    (case / "model.onnx").write_bytes(content)
    return done


def _use_onnx(case: Path) -> None:
    _render(fgcompile.diff(case / "good.onnx", case / "model.onnx"))


def _build_safetensors(folder: Path) -> None:
    for name in ("good", "bad"):
        (folder / name).mkdir()
        for part in range(2):
            tensors = {f"{part}.{n}": p.detach() for n, p in Mlp().named_parameters()}
            save_file(tensors, folder / name / f"part-{part}.safetensors")


def _attack_safetensors(random: Random, case: Path) -> str:
    file = case / "bad" / "part-0.safetensors"
    if random.random() < 0.01:
        file.unlink()
        os.mkfifo(file)
        return "pipe"
    content, done = damaged_safetensors(random, file.read_bytes())
    file.write_bytes(content)
    return done


def _use_safetensors(case: Path) -> None:
    _render(fgcompile.diff(case / "good", case / "bad"))
    file = "part-0.safetensors"
    _render(fgcompile.diff(case / "good" / file, case / "bad" / file))


def _build_module(folder: Path) -> None:
    torch.manual_seed(0)
    model = fgcompile.insert_gates(Mlp().eval(), (torch.randn(2, 4),))
    next(iter(fgcompile.gates(model).values())).close([1, 4, 6])
    fgcompile.lower(model, "module").save(folder)


def _build_llama(folder: Path) -> None:
    config = fgcompile.GateConfig(kinds=("mlp",))
    model = fgcompile.insert_gates(entry("llama").build(), config=config)
    for gate in fgcompile.gates(model).values():
        gate.close([0])
    fgcompile.lower(model, "module", verify=False).save(folder)
    for name in ("adapter_config.json", "model.safetensors.index.json"):
        (folder / name).unlink(missing_ok=True)


def _attack_folder(random: Random, case: Path) -> str:
    """Damages one file; half of the time the manifest agrees with it."""
    files = sorted(f.name for f in case.iterdir() if f.is_file())
    name = random.choice([*files, "fgcompile.json", *_EXTRA])
    file = case / name
    if name in _EXTRA:
        file.write_text(json.dumps(_EXTRA[name](random)))
        if name == "model.safetensors.index.json" and random.random() < 0.7:
            (case / "model.safetensors").unlink()
            return f"{name}{_forget(random, case)}"
        return name
    damage = damaged_safetensors if file.suffix == ".safetensors" else damaged_json
    content, done = damage(random, file.read_bytes())
    file.write_bytes(content)
    if file.suffix == ".safetensors" and random.random() < 0.7:
        _agree(case)
    return f"{name}: {done}"


def _index(random: Random) -> Any:
    """A list of shards, of which some lie elsewhere."""
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    places = (
        *("../outside/secret.safetensors", "model.safetensors", "gone.safetensors"),
        *("linked.safetensors", 7, None),
    )
    shards = {name: random.choice(places) for name in names}
    return {"metadata": {"total_size": strange_value(random)}, "weight_map": shards}


def _adapter(random: Random) -> Any:
    """An adapter of peft, which names its base model by a path."""
    base = random.choice(("../outside", "/etc", "bert-base-uncased", "."))
    return {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4}


_EXTRA: dict[str, Callable[[Random], Any]] = {
    "model.safetensors.index.json": _index,
    "adapter_config.json": _adapter,
}


def _agree(case: Path) -> None:
    """The digest in the manifest is that of the file."""
    path = case / "fgcompile.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        manifest["files"][name] = sha256((case / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def _forget(random: Random, case: Path) -> str:
    """The manifest names no weights, so that a loader looks for some itself."""
    path = case / "fgcompile.json"
    if not path.is_file() or random.random() < 0.3:
        return ""
    manifest = json.loads(path.read_text())
    manifest["files"] = {}
    path.write_text(json.dumps(manifest))
    if random.random() < 0.3:
        torch.save({"model.norm.weight": torch.ones(1)}, case / "pytorch_model.bin")
    return ", no weights named"


def _check_secret(model: nn.Module) -> None:
    if any(bool((p == SECRET).any()) for p in model.parameters() if not p.is_meta):
        raise AssertionError("a tensor was read from outside")


def _use_module(case: Path) -> None:
    model = fgcompile.load(case, Mlp())
    _check_secret(model)


def _use_llama(case: Path) -> None:
    _check_secret(fgcompile.load(case))


def _gated() -> nn.Module:
    torch.manual_seed(0)
    budget = fgcompile.Budget(params=0.5, steps=8)
    config = fgcompile.GateConfig(kinds=("mlp",), budget=budget)
    return fgcompile.insert_gates(Mlp().eval(), (torch.randn(2, 4),), config)


_GATED: list[nn.Module] = []


def _build_gates(folder: Path) -> None:
    fgcompile.save_gates(_gated(), folder)


def _attack_pair(random: Random, case: Path) -> str:
    """Damages the manifest, or the tensors with a digest that agrees."""
    data = next(case.glob("*.safetensors"))
    path = next(case.glob("*.json"))
    if random.random() < 0.5:
        content, done = damaged_safetensors(random, data.read_bytes())
        data.write_bytes(content)
        manifest = json.loads(path.read_text())
        manifest["sha256"] = sha256(content).hexdigest()
        path.write_text(json.dumps(manifest))
        return f"tensors: {done}"
    content, done = damaged_json(random, path.read_bytes())
    path.write_bytes(content)
    return f"manifest: {done}"


def _use_gates(case: Path) -> None:
    if not _GATED:
        _GATED.append(_gated())
    model = _GATED[0]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        fgcompile.load_gates(model, case)
    except Exception:
        after = model.state_dict()
        if not all(torch.equal(before[n], after[n]) for n in before):
            raise AssertionError("the model changed though it was refused") from None
        saved_config(case)  # the other reader of the manifest
        raise
    model.load_state_dict(before)
    config = saved_config(case)
    fgcompile.insert_gates(Mlp().eval(), (torch.randn(2, 4),), config)


def _build_s2ft(folder: Path) -> None:
    entries: dict[Key, S2ftEntry] = {
        ("up.weight", "rows"): S2ftEntry(
            0, "rows", (8, 4), torch.tensor([1, 5]), torch.randn(2, 4)
        ),
        ("down.weight", "columns"): S2ftEntry(
            1, "columns", (2, 8), torch.tensor([0, 3, 7]), torch.randn(2, 3)
        ),
    }
    S2ftAdapter(entries).save(folder)


def _use_s2ft(case: Path) -> None:
    model = Mlp()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapter = S2ftAdapter.load(case)
    try:
        fuse(model, adapter)
    except Exception:
        if not all(torch.equal(before[n], p) for n, p in model.named_parameters()):
            raise AssertionError("the model changed though it was refused") from None
        raise


def _cli(*arguments: Any) -> None:
    """A verb: it ends with a status of its own, not with an exception."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    if status not in (0, 1, 2):
        raise AssertionError(f"exit status {status}")
    if status == 1:
        raise fgcompile_refused()


def fgcompile_refused() -> Exception:
    """What stands for exit status 1."""
    from fgcompile.errors import FormatError

    return FormatError("exit status 1")


def _build_cli(folder: Path) -> None:
    _build_onnx(folder)
    (folder / "tensors").mkdir()
    _build_safetensors(folder / "tensors")
    (folder / "verb").write_text("[]")


_FORMATS = ("terminal", "markdown", "json", "html", "svg", "github")


def _attack_cli(random: Random, case: Path) -> str:
    """A damaged file, and a verb with options that may be wrong."""
    if random.random() < 0.6:
        done, pair = _attack_onnx(random, case), ["good.onnx", "model.onnx"]
    else:
        done = _attack_safetensors(random, case / "tensors")
        pair = ["tensors/good", "tensors/bad"]
    odd = str(strange_value(random)).replace("/", "")  # what users name may be read
    verb = random.choice(
        (
            ["diff", *pair, "--format", random.choice(_FORMATS), "--exit-code"],
            ["diff", *pair, "--budget", f"params={odd}"[:400].replace("\x00", "")],
            ["diff", *pair, "--shape", f"input_ids={odd}"[:400].replace("\x00", "")],
            ["diff", *pair, "--shape", f"input_ids=1x{random.choice(_LARGE)}"],
            ["textconv", pair[1]],
            ["twin", pair[1]],
            ["diff", pair[1], odd[:200]],
        )
    )
    (case / "verb").write_text(json.dumps(verb))
    return f"{verb[0]} {verb[3:]} {done}"


_LARGE = (2**31, 2**62, 2**63, 10**30, "9" * 5000)


def _use_cli(case: Path) -> None:
    verb, *arguments = json.loads((case / "verb").read_text())
    files = [case / a if (case / a).exists() else a for a in arguments[:2]]
    where = Path.cwd()
    os.chdir(case)
    try:
        _cli(verb, *files, *arguments[2:])
    finally:
        os.chdir(where)


def _build_dense(folder: Path) -> None:
    """A checkpoint as transformers writes it, and gates for it."""
    model: Any = entry("llama").build()
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(folder / "dense")
    config = fgcompile.GateConfig(kinds=("mlp", "head"))
    fgcompile.insert_gates(model, config=config)
    for gate in fgcompile.gates(model).values():
        gate.close([0])
    fgcompile.save_gates(model, folder / "gates")


_ODD_CONFIG: tuple[dict[str, Any], ...] = (
    {"architectures": ["pipeline"]},
    {"architectures": ["AutoTokenizer"]},
    {"architectures": ["logging"]},
    {"architectures": [5]},
    {"architectures": "LlamaForCausalLM"},
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
    {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}},
    {"auto_map": {"AutoConfig": "../outside--evil.Config"}},
    {"model_type": ["llama"]},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"num_hidden_layers": 10**7},
    {"num_hidden_layers": 10**12},
    {"vocab_size": 10**12},
    {"max_position_embeddings": 10**12},
    {"hidden_size": 0},
    {"rope_scaling": {"rope_type": "dynamic", "factor": "x"}},
    {"torch_dtype": "os.system"},
    {"dtype": "backends"},
    {"attn_implementation": "kernels-community/evil"},
    {"_attn_implementation_internal": "flash_attention_2"},
    {"id2label": {"a": 1}, "num_labels": 10**9},
)


def _attack_config(random: Random, case: Path) -> str:
    file = case / "dense" / "config.json"
    if random.random() < 0.3:
        odd = random.choice(_ODD_CONFIG)
        file.write_text(json.dumps(json.loads(file.read_text()) | odd))
        (case / "dense" / "evil.py").write_text("import os; os.system('true')")
        return str(odd)[:80]
    content, done = damaged_json(random, file.read_bytes())
    file.write_bytes(content)
    return done


def _use_analyze(case: Path) -> None:
    _cli("analyze", case / "dense")


def _attack_lower(random: Random, case: Path) -> str:
    how = random.randrange(3)
    if how == 0:
        return "config: " + _attack_config(random, case)
    if how == 1:
        return "gates: " + _attack_pair(random, case / "gates")
    file = case / "dense" / "model.safetensors"
    if random.random() < 0.3:
        index = case / "dense" / "model.safetensors.index.json"
        index.write_text(json.dumps(_index(random)))
        if random.random() < 0.5:
            file.unlink()
        return "index"
    content, done = damaged_safetensors(random, file.read_bytes())
    file.write_bytes(content)
    return f"weights: {done}"


def _use_stream(case: Path) -> None:
    arguments = (case / "dense", "--gates", case / "gates", "--out", case / "out")
    _cli("lower", *arguments, "--target", "module")


def _use_lower(case: Path) -> None:
    arguments = (case / "dense", "--gates", case / "gates", "--out", case / "out")
    _cli("lower", *arguments, "--target", "fx")


def _build_changed(folder: Path) -> None:
    _build_onnx(folder)
    (folder / "pipe").unlink()
    _git(folder, "init", "-q")


def _attack_changed(random: Random, case: Path) -> str:
    """The damaged file is the committed one, the good one that of the tree."""
    done = _attack_onnx(random, case)
    _git(case, "add", "-A")
    _git(case, "commit", "-qm", "base")
    (case / "model.onnx").write_bytes((case / "good.onnx").read_bytes())
    return done


def _git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True)


def _use_changed(case: Path) -> None:
    where = Path.cwd()
    os.chdir(case)
    try:
        _cli("changed", "HEAD", "--models", "model.onnx")
    finally:
        os.chdir(where)


def _build_program(folder: Path) -> None:
    model = _gated()
    next(iter(fgcompile.gates(model).values())).close([1, 4, 6])
    for name in ("good.pt2", "model.pt2"):
        fgcompile.lower(model, "fx", folder / name)


_CODE = (
    *("__import__('os').system('true')", "x=__import__('os').system('true')"),
    *("eval(chr(49))", "print(1)", "Symbol('s0').__class__", "9**9**9**9"),
    *("Pow(9, Pow(9, Pow(9, 9)))", "torch.os.system", "torch.hub.load", "(" * 300),
)
_DEFAULT = json.dumps(
    {
        "default_factory_module": "antigravity",
        "default_factory_name": "geohash",
        "dict_context": [],
    }
)


class _Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def _attack_program(random: Random, case: Path) -> str:
    """Other bytes in the archive, or in one of its files; code wherever text is."""
    file = case / "model.pt2"
    if random.random() < 0.2:
        content, done = damaged_bytes(random, file.read_bytes())
        file.write_bytes(content)
        return done
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = [n for n in parts if n.endswith((".json", ".pt"))]
    names += [n for n in names if "/models/" in n] * 8
    name = random.choice(names)
    if name.endswith(".json") and random.random() < 0.6:
        done = "code"
        parts[name] = _with_code(random, parts[name])
    elif name.endswith(".json"):
        parts[name], done = damaged_json(random, parts[name])
    else:
        done, buffer = "pickle", io.BytesIO()
        torch.save(((_Evil(),), {}), buffer)
        parts[name] = buffer.getvalue()
    with zipfile.ZipFile(file, "w") as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
    return f"{name}: {done}"


def _with_code(random: Random, content: bytes) -> bytes:
    """The document with code in place of a value, wherever that value is."""
    values = sorted(set(re.findall(rb': ?("(?:[^"\\]|\\.)+")', content)))
    value = random.choice(values or [b'""'])
    code = json.dumps(random.choice((*_CODE, _DEFAULT))).encode()
    if random.random() < 0.3:
        code = b'"collections.defaultdict"'
    elif random.random() < 0.3:
        # Inside a text that holds a document of its own.
        code = value.replace(b"builtins.dict", b"collections.defaultdict")
        code = code.replace(b"null", json.dumps(_DEFAULT).encode(), 1)
    return content.replace(value, code, random.choice((1, 1, -1)))


def _use_program(case: Path) -> None:
    _render(fgcompile.diff(case / "good.pt2", case / "model.pt2"))


TARGETS = {
    target.name: target
    for target in (
        Target("onnx", 36, _build_onnx, _attack_onnx, _use_onnx),
        Target(
            "safetensors",
            20,
            _build_safetensors,
            *(_attack_safetensors, _use_safetensors),
        ),
        Target("module", 8, _build_module, _attack_folder, _use_module),
        Target("transformers", 8, _build_llama, _attack_folder, _use_llama),
        Target("gates", 10, _build_gates, _attack_pair, _use_gates),
        Target("s2ft", 10, _build_s2ft, _attack_pair, _use_s2ft),
        Target("pt2", 2, _build_program, _attack_program, _use_program),
        Target("cli", 10, _build_cli, _attack_cli, _use_cli),
        Target("cli-analyze", 2, _build_dense, _attack_config, _use_analyze),
        Target("cli-stream", 1, _build_dense, _attack_lower, _use_stream),
        Target("cli-lower", 0.3, _build_dense, _attack_lower, _use_lower),
        Target(
            "cli-changed", 1, _build_changed, _attack_changed, _use_changed, ("git",)
        ),
    )
}
