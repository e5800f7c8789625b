"""Pruned models of many families work on in a process that only has their folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fgcompile
from fgcompile import GateConfig, gates, insert_gates, lower, save_gates
from fgcompile.capture import default_inputs
from fgcompile.cli import main
from fgcompile.targets.verify import outputs_of
from fgcompile.zoo.models import entry

REAL = ("minilm", "stories260k")
FAST = ("stories260k", "qwen3", "t5", "vit")
SLOW = ("minilm", "gpt2", "bart", "whisper", "clip")
Answers = Callable[[tuple[str, ...]], dict[str, Any]]
"""What happened to each family; a lot of them shares one process, once."""


def cases(fast: tuple[str, ...], slow: tuple[str, ...]) -> list[Any]:
    """Each family with the lot that it is asked about in."""
    marked = (pytest.param(slow, name, marks=pytest.mark.slow) for name in slow)
    return [*((fast, name) for name in fast), *marked]


WRITERS = ("stories260k", "qwen3", "gpt2", "t5", "bart", "whisper")
"""Families that generate text."""
GREEDY = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
ROOT = Path(__file__).parents[2]
# Names no class and no size: a folder is all that it gets.
CHILD = """
import pathlib, sys, torch, fgcompile
from fgcompile.targets.verify import outputs_of
torch.set_num_threads(1)
for folder in map(pathlib.Path, sys.argv[1:]):
    asked = torch.load(folder / "asked.pt")
    model = fgcompile.load(folder)
    found = {"class": type(model).__name__, "out": outputs_of(model, asked["inputs"])}
    if asked["prompt"] is not None:
        found["text"] = model.generate(**asked["prompt"])
    torch.save(found, folder / "found.pt")
"""


def closed(model: nn.Module, kinds: tuple[str, ...] = ("mlp", "head")) -> Any:
    """`model` with random units closed, another part in every gate."""
    insert_gates(model, config=GateConfig(kinds=kinds))
    generator = torch.Generator().manual_seed(3)
    for depth, gate in enumerate(gates(model).values()):
        order = torch.randperm(gate.size, generator=generator)
        gate.close(order[: gate.size // (2 + depth % 3)])
    return model.eval()


def sizes(model: nn.Module) -> set[tuple[int, ...]]:
    """All shapes of parameters."""
    return {tuple(p.shape) for p in model.parameters()}


def count(model: nn.Module) -> int:
    """Parameters of a model, gates not among them."""
    return sum(p.numel() for n, p in model.named_parameters() if "gates" not in n)


def prompt_of(name: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of greedy generation, None for models that do not write."""
    if name not in WRITERS:
        return None
    main = "input_features" if name == "whisper" else "input_ids"
    return {main: inputs[main][:1], **GREEDY}


def closed_models(
    names: tuple[str, ...], request: pytest.FixtureRequest
) -> Iterator[tuple[str, Any]]:
    """Each family that is here, with random units closed."""
    for name in names:
        try:
            loaded = request.getfixturevalue(f"load_{name}") if name in REAL else None
        except pytest.skip.Exception:
            continue
        yield name, closed(loaded() if loaded else entry(name).build())


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """By family what the gated model computes, and what the loaded one does."""
    return cache(partial(_answers, request, tmp_path_factory))


def _answers(
    request: pytest.FixtureRequest,
    folders: pytest.TempPathFactory,
    names: tuple[str, ...],
) -> dict[str, Any]:
    wanted, work = {}, folders.mktemp("families")
    for name, model in closed_models(names, request):
        inputs = default_inputs(model)
        lowered = lower(model, "module")
        assert sizes(lowered.model) != sizes(model), name
        folder = lowered.save(work / name)
        prompt = prompt_of(name, inputs)
        torch.save({"inputs": inputs, "prompt": prompt}, folder / "asked.pt")
        wanted[name] = {"class": type(model).__name__, "out": outputs_of(model, inputs)}
        if prompt is not None:
            wanted[name]["text"] = model.generate(**prompt)
    call = [sys.executable, "-c", CHILD, *(str(work / name) for name in wanted)]
    subprocess.run(call, check=True, cwd=ROOT)
    return {
        name: (w, torch.load(work / name / "found.pt")) for name, w in wanted.items()
    }


@pytest.mark.parametrize(("lot", "name"), cases(FAST, SLOW))
def test_loaded_model_computes_and_writes_what_the_gated_one_does(
    lot: tuple[str, ...], name: str, answers: Answers
) -> None:
    if name not in answers(lot):
        pytest.skip(f"no weights of {name} here")
    wanted, found = answers(lot)[name]
    assert found["class"] == wanted["class"]
    assert len(found["out"]) == len(wanted["out"])
    for want, got in zip(wanted["out"], found["out"], strict=True):
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * scale)
    if name in WRITERS:
        assert wanted["text"].shape[-1] >= GREEDY["max_new_tokens"]
        assert torch.equal(found["text"], wanted["text"])


STRANGER = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import fgcompile
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("fgcompile is on the path")
import torch, transformers
torch.set_num_threads(1)
for folder in sys.argv[2:]:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(**torch.load(folder + "/asked.pt"))
    torch.save(out[0], folder + "/found.pt")
print(*sorted(name.partition(".")[0] for name in sys.modules))
"""


def packages_without_fgcompile(folder: Path) -> Path:
    """Links to all installed packages but this one, editable or not."""
    folder.mkdir()
    for kind in ("purelib", "platlib"):
        for package in Path(sysconfig.get_path(kind)).iterdir():
            link = folder / package.name
            if "fgcompile" not in package.name and not link.exists():
                link.symlink_to(package)
    return folder


def ask_stock_loader(folders: list[Path], work: Path) -> None:
    """Plain transformers answers each `asked.pt`, in one process without fgcompile."""
    path = packages_without_fgcompile(work / "packages")
    call = [sys.executable, "-I", "-S", "-c", STRANGER, *map(str, (path, *folders))]
    done = subprocess.run(call, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fgcompile" not in done.stdout.split()


def hidden_of(model: Any, inputs: dict[str, Any]) -> Any:
    """First output of what AutoModel makes of a folder of `model`."""
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        out = base(**inputs)
        if "logits" not in out:
            return out[0]
        # T5 holds no base model; this is what its output layer reads.
        return base(**inputs, output_hidden_states=True).decoder_hidden_states[-1]


STOCK_FAST = ("qwen3", "gpt2")
STOCK_SLOW = (*REAL, "bert", "llama", "t5", "bart", "vit", "whisper", "clip")


@pytest.fixture(scope="module")
def stock_answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """By family the output of the gated model and of the stock one."""
    return cache(partial(_stock_answers, request, tmp_path_factory))


def _stock_answers(
    request: pytest.FixtureRequest,
    folders: pytest.TempPathFactory,
    names: tuple[str, ...],
) -> dict[str, Any]:
    wanted, work = {}, folders.mktemp("stock")
    for name, gated in closed_models(names, request):
        inputs = default_inputs(gated)
        lowered = lower(gated, "module", uniform=True)
        torch.save(inputs, lowered.save(work / name) / "asked.pt")
        assert count(lowered.model) < 0.95 * count(gated)
        wanted[name] = hidden_of(gated, inputs)
    ask_stock_loader([work / name for name in wanted], work)
    return {
        name: (want, torch.load(work / name / "found.pt"))
        for name, want in wanted.items()
    }


@pytest.mark.parametrize(("lot", "name"), cases(STOCK_FAST, STOCK_SLOW))
def test_stock_loader_needs_no_fgcompile(
    lot: tuple[str, ...], name: str, stock_answers: Answers
) -> None:
    if name not in stock_answers(lot):
        pytest.skip(f"no weights of {name} here")
    want, got = stock_answers(lot)[name]
    scale = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * scale)


def test_streamed_layers_that_agree_need_no_fgcompile(tmp_path: Path) -> None:
    gated: Any = entry("qwen3").build()
    gated.save_pretrained(tmp_path / "dense")
    closed(gated)
    save_gates(gated, tmp_path / "gates")
    folders = [str(tmp_path / name) for name in ("dense", "gates", "small")]
    call = ["--gates", folders[1], "--out", folders[2], "--target", "module"]
    assert main(["lower", folders[0], *call, "--uniform"]) == 0
    inputs = default_inputs(gated)
    torch.save(inputs, tmp_path / "small" / "asked.pt")
    ask_stock_loader([tmp_path / "small"], tmp_path)
    got = torch.load(tmp_path / "small" / "found.pt")
    torch.testing.assert_close(got, hidden_of(gated, inputs), rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))
    assert (config["intermediate_size"], config["num_key_value_heads"]) == (64, 3)
    assert (config["head_dim"], config["num_attention_heads"]) == (8, 6)


def test_loaded_model_trains_an_epoch_and_is_lowered_again(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    first = lower(closed(entry("bert:classifier").build()), "module")
    model: Any = fgcompile.load(first.save(tmp_path / "first"))
    rows = [
        {"input_ids": torch.randint(3, 60, (8,)), "labels": torch.tensor(row % 3)}
        for row in range(16)
    ]
    before = {name: p.clone() for name, p in model.named_parameters()}
    closed(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    after = dict(model.named_parameters())
    assert all(not torch.equal(p, after[name]) for name, p in before.items())
    model.eval()
    inputs = default_inputs(model)
    wanted = outputs_of(model, inputs)
    again = lower(model, "module").save(tmp_path / "again")
    smaller = fgcompile.load(again)
    counts = [sum(p.numel() for p in m.parameters()) for m in (first.model, smaller)]
    assert counts[1] < counts[0]
    for want, got in zip(wanted, outputs_of(smaller, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
