"""Inputs that once did harm: each is refused now, or read in reasonable time."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import fgcompile
from fgcompile.checkpoint.manifest import Manifest, sha256
from fgcompile.cli import main
from fgcompile.cli.models import model_class
from fgcompile.cli.output import UsageError, parse_shapes
from fgcompile.errors import FormatError
from fgcompile.gates import saved_config
from fgcompile.methods import S2ftAdapter
from fgcompile.report import diff
from fgcompile.zoo.models import entry
from tests.hostile.targets import (
    TARGETS,
    Mlp,
    _build_program,
    _build_s2ft,
    _Evil,
    _gated,
)
from tests.report.models import Encoder

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]


def graph(nodes: list[Any], tensors: Any = (), functions: Any = ()) -> Any:
    """A model from x[2] to y."""
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")
    ]
    made = helper.make_graph(nodes, "g", ports[:1], ports[1:], list(tensors))
    return helper.make_model(made, opset_imports=OPSETS, functions=list(functions))


def function(name: str, callee: str) -> Any:
    """A function that calls another twice."""
    nodes = [helper.make_node(callee, ["a"], [out], domain="f") for out in "bc"]
    return helper.make_function("f", name, ["a"], ["c"], nodes, OPSETS)


def called(depth: int, last: str) -> Any:
    """Functions that call each other, to `depth`."""
    names = [*(f"F{k}" for k in range(depth)), last]
    made = [function(a, b) for a, b in pairwise(names)]
    return graph([helper.make_node("F0", ["x"], ["y"], domain="f")], (), made)


@pytest.mark.parametrize(
    ("depth", "last", "text"),
    [
        (3, "F0", "function f::F0 calls itself"),
        (40, "Neg", "stands for too many nodes"),
    ],
)
def test_functions_without_end_are_refused(depth: int, last: str, text: str) -> None:
    model = called(depth, last)
    with pytest.raises(FormatError, match=text):
        diff(model, model)


def test_functions_in_functions_beyond_the_stack_are_refused() -> None:
    model = called(600, "Neg")
    for each in model.functions:
        del each.node[1:]
        each.node[0].output[0] = "c"
    with pytest.raises(FormatError, match="nested too deeply"):
        diff(model, model)


def test_long_chains_are_compared_in_linear_time() -> None:
    nodes = [helper.make_node("Neg", [f"c{k}"], [f"c{k + 1}"]) for k in range(3000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    other = graph([helper.make_node("Neg", ["x"], ["y"])])
    start = time.process_time()
    diff(other, graph(nodes))
    assert time.process_time() - start < 6


@pytest.mark.parametrize(
    ("key", "value"),
    [("location", "a\x00b"), ("offset", "9" * 5000), ("length", "-1")],
)
def test_external_data_that_no_file_can_hold_is_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "w.data").write_bytes(b"\0" * 8)
    for each, text in ({"location": "w.data"} | {key: value}).items():
        entry = tensor.external_data.add()
        entry.key, entry.value = each, text
    model = graph([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FormatError):
        diff(tmp_path / "m.onnx", tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("dims", "dtype"),
    [
        ([1] * 500, TensorProto.FLOAT),
        ([0, 2**62], TensorProto.FLOAT),
        ([1], TensorProto.STRING),
    ],
)
def test_external_data_that_no_array_can_hold_is_refused(
    tmp_path: Path, dims: list[int], dtype: int
) -> None:
    tensor = TensorProto(name="w", data_type=99 if len(dims) == 1 else dtype, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "w.data").write_bytes(b"\0" * 8)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "w.data"
    model = graph([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "n.onnx").write_bytes(graph([]).SerializeToString())
    with pytest.raises(FormatError):
        diff(tmp_path / "m.onnx", tmp_path / "m.onnx").to_json()


@pytest.mark.parametrize("text", ["(" * 300, "[" * 5000, "-" * 20_000 + "1"])
def test_metadata_beyond_the_parser_is_left_out(text: str) -> None:
    model = Encoder(layers=1).build()
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", text
    assert diff(model, model).same


@pytest.mark.parametrize("value", ["text", [0.5], [2**40], [b"\xff"], [9, 9, 9]])
def test_a_permutation_that_is_none_is_reported(value: Any) -> None:
    node = helper.make_node("Transpose", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("perm", value))
    report = diff(graph([node]), graph([helper.make_node("Transpose", ["x"], ["y"])]))
    assert report.to_markdown()


def test_an_attribute_without_a_value_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.add(name="odd", ref_attr_name="of_a_function")
    with pytest.raises(FormatError, match='attribute "odd"'):
        diff(graph([node]), graph([node]))


def test_a_constant_of_two_values_is_refused() -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0])
    node = helper.make_node("Constant", [], ["y"], value=tensor, value_float=1.0)
    with pytest.raises(FormatError, match="constant y has 2 values"):
        diff(graph([node]), graph([node]))


@pytest.mark.parametrize("shape", [[2**55], [9], [8, 1], []])
def test_a_saved_shape_that_the_model_does_not_contain_is_refused(
    tmp_path: Path, shape: list[int]
) -> None:
    TARGETS["module"].build(tmp_path)
    manifest = json.loads((tmp_path / "fgcompile.json").read_text())
    _edit(tmp_path / "fgcompile.json", shapes=manifest["shapes"] | {"up.bias": shape})
    with pytest.raises(FormatError, match=r"up.bias of \[8\] cannot become"):
        fgcompile.load(tmp_path, Mlp())


@pytest.mark.parametrize(
    ("op", "domain", "operands"),
    [
        ("Gemm", "", []),
        ("Conv", "", ["x"]),
        ("MatMul", "", []),
        ("Attention", "", ["x", "x", "x"]),
        ("MatMulNBits", "com.microsoft", ["x"]),
    ],
)
def test_an_operator_that_lacks_what_it_reads_costs_nothing_known(
    op: str, domain: str, operands: list[str]
) -> None:
    node = helper.make_node(op, operands, ["y"], domain=domain)
    assert diff(graph([node]), graph([node])).verdict.macs.after is None


def safetensors(header: Any) -> bytes:
    """A file with that header and eight bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 8


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"w": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}},
        b"[" * 3000 + b"]" * 3000,
    ],
)
def test_headers_that_describe_nothing_are_refused(tmp_path: Path, header: Any) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(safetensors(header))
    with pytest.raises(FormatError):
        diff(file, file)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="pipe"):
        diff(tmp_path, tmp_path)


def test_gates_with_a_manifest_beyond_the_parser_are_refused(tmp_path: Path) -> None:
    model = _gated()
    fgcompile.save_gates(model, tmp_path)
    (tmp_path / "gates.json").write_text("[" * 9000 + "]" * 9000)
    with pytest.raises(FormatError, match="is damaged"):
        fgcompile.load_gates(model, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("init_std", "x"), ("noise", True), ("kinds", [[1]]), ("seed", 2**70)),
        *(("gate", ["plain"]), ("weighting", {}), ("unheard", 1), ("budget", 3)),
    ],
)
def test_gates_of_an_odd_config_are_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    fgcompile.save_gates(_gated(), tmp_path)
    file = tmp_path / "gates.json"
    found = json.loads(file.read_text())
    found["config"][key] = value
    file.write_text(json.dumps(found))
    with pytest.raises(FormatError, match="is damaged"):
        saved_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dim", 7), ("dim", True), ("side", "both"), ("shape", [1, 4]), ("shape", 3)],
)
def test_an_adapter_for_no_weight_is_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    _build_s2ft(tmp_path)
    file = tmp_path / "adapter.json"
    found = json.loads(file.read_text())
    found["entries"][0][key] = value
    file.write_text(json.dumps(found))
    with pytest.raises(FormatError):
        S2ftAdapter.load(tmp_path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `load` reads."""
    folder = tmp_path_factory.mktemp("llama")
    entry("llama").build().save_pretrained(folder)  # type: ignore[operator]
    digest = sha256(folder / "model.safetensors")
    Manifest("LlamaForCausalLM", {"model.safetensors": digest}).write(folder)
    fgcompile.load(folder)
    return folder


def _elsewhere(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../outside/secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    _edit(folder / "fgcompile.json", files={})


def _unnamed(folder: Path) -> None:
    _edit(folder / "fgcompile.json", files={})


def _pickled(folder: Path) -> None:
    _unnamed(folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _adapted(folder: Path) -> None:
    text = {"peft_type": "LORA", "base_model_name_or_path": "../outside"}
    (folder / "adapter_config.json").write_text(json.dumps(text))


def _kernels(folder: Path) -> None:
    _edit(folder / "config.json", attn_implementation="kernels-community/evil")


def _endless(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=10**9)


def _many(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=500)


def _untyped(folder: Path) -> None:
    _edit(folder / "config.json", initializer_range="wide", hidden_act=5)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_elsewhere, "does not name the weights|outside of its folder"),
        (_unnamed, "does not name the weights"),
        (_pickled, "does not name the weights"),
        (_adapted, "holds an adapter"),
        (_kernels, "asks for code from elsewhere"),
        (_endless, "No model has that many"),
        (_many, "describes more than"),
        (_untyped, "does not fit LlamaForCausalLM"),
    ],
)
def test_a_folder_that_leads_elsewhere_is_refused(
    tmp_path: Path, llama: Path, damage: Callable[[Path], None], text: str
) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(FormatError, match=text):
        fgcompile.load(tmp_path)


def _with_config(folder: Path, change: Any) -> None:
    config: Any = entry("llama").build().config
    text = config.to_dict() | {"architectures": ["LlamaForCausalLM"]} | change
    (folder / "config.json").write_text(json.dumps(text))
    (folder / "evil.py").write_text("raise SystemExit('ran')")


@pytest.mark.parametrize("name", [5, "pipeline", "logging", "AutoTokenizer"])
def test_a_class_that_is_no_model_is_not_called(tmp_path: Path, name: Any) -> None:
    _with_config(tmp_path, {"architectures": [name]})
    assert model_class(str(tmp_path))[0].__name__ == "AutoModel"


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "unheard-of"},
        {"num_hidden_layers": 10**12},
        {"intermediate_size": 10**9},
        {"max_position_embeddings": 10**12},
        {"attn_implementation": "kernels-community/evil"},
        {"rms_norm_eps": "x"},
    ],
)
def test_the_command_line_runs_no_code_of_a_checkpoint(
    tmp_path: Path, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_config(tmp_path, change)
    assert main(["analyze", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_sizes_of_many_digits_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot read the shape"):
        parse_shapes(["x=1x" + "9" * 5000])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pt2` file."""
    folder = tmp_path_factory.mktemp("program")
    _build_program(folder)
    return folder / "good.pt2"


def test_an_exported_program_is_read(program: Path) -> None:
    assert diff(program, program).same


RUN = "__import__('os').system('true')"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"expr_str": "Symbol', f'"expr_str": "{RUN} or Symbol'),
        ('"expr_str": "Symbol', '"expr_str": "9**9**9**9 + Symbol'),
        ('"forward_arg_names": ["x"]', f'"forward_arg_names": ["x={RUN}"]'),
        ('"name": "x"', f'"name": "x={RUN}"'),
        ("builtins.dict", "collections.defaultdict"),
    ],
)
def test_a_program_that_would_run_code_is_not_opened(
    tmp_path: Path, program: Path, old: str, new: str
) -> None:
    bad = tmp_path / "bad.pt2"
    _rewrite(program, bad, "models/model.json", lambda t: _swap(t, old, new))
    with pytest.raises(FormatError, match="could run code when it is opened"):
        diff(bad, bad)


def test_a_program_with_a_pickle_is_not_opened(tmp_path: Path, program: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((_Evil(),), {}), buffer)
    bad = tmp_path / "bad.pt2"
    _rewrite(program, bad, "sample_inputs/model.pt", lambda _: buffer.getvalue())
    with pytest.raises(FormatError, match="a pickle of more than tensors"):
        diff(bad, bad)


def test_a_program_with_a_compiled_library_is_not_opened(
    tmp_path: Path, program: Path
) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(program.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("archive/data/aotinductor/model/m.so", b"\x7fELF")
    with pytest.raises(FormatError, match="aotinductor"):
        diff(bad, bad)


def _swap(content: bytes, old: str, new: str) -> bytes:
    text = json.dumps(json.loads(content))
    assert old in text
    return text.replace(old, new).encode()


def _rewrite(
    source: Path, target: Path, part: str, change: Callable[[bytes], bytes]
) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(part) else content)


def test_every_target_starts_from_files_that_are_good(tmp_path: Path) -> None:
    for name in ("safetensors", "module", "gates", "s2ft"):
        folder = tmp_path / name
        folder.mkdir()
        TARGETS[name].build(folder)
        TARGETS[name].use(folder)
    assert isinstance(fgcompile.load(tmp_path / "module", Mlp()), Mlp)
    onnx.checker.check_model(Encoder(layers=1).build())
