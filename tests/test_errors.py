"""Bad input is refused in words, with a remedy, and leaves nothing on disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, Lowered, analyze, gates, insert_gates, lower
from fgcompile.errors import (
    CaptureError,
    ExportError,
    FgcompileError,
    GateError,
    VerifyError,
)
from fgcompile.targets.onnx import OnnxModel, onnx_session

X = torch.linspace(-1, 1, 8).view(2, 4)


def mlp() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def gated() -> Any:
    """Half of the hidden units closed."""
    model = insert_gates(mlp(), (X,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close([0, 2, 4, 6])
    return model


class Branching(nn.Module):
    """Which way it goes depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def refused(error: type[FgcompileError], work: Callable[[], object]) -> str:
    """The message of the error that `work` must raise."""
    with pytest.raises(error) as caught:
        work()
    assert type(caught.value) is error
    return str(caught.value)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go during the test; it must end empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def listing(folder: Path) -> dict[str, bytes | None]:
    """All paths below `folder`, and what files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_not_a_module() -> None:
    want = (
        " an object of type dict\n  Pass a torch.nn.Module or a torch.fx.GraphModule."
    )
    model: Any = {"weight": X}
    assert refused(GateError, lambda: insert_gates(model)) == f"cannot gate{want}"
    assert refused(CaptureError, lambda: lower(model)) == f"cannot capture{want}"
    assert refused(CaptureError, lambda: analyze(model)) == f"cannot capture{want}"


@pytest.mark.parametrize("verb", [analyze, insert_gates, lower])
def test_control_flow_that_depends_on_values(verb: Callable[..., Any]) -> None:
    line = Branching.forward.__code__.co_firstlineno + 1
    assert refused(CaptureError, lambda: verb(Branching(), example_inputs=(X,))) == (
        "cannot trace Branching: its control flow depends on tensor values\n"
        f"  at test_errors.py:{line}: if x.sum() > 0:\n"
        "  Choose with torch.where or torch.cond, and let no size depend on values."
    )


@pytest.mark.parametrize("verb", [analyze, insert_gates, lower])
def test_example_inputs_of_a_wrong_shape(verb: Callable[..., Any]) -> None:
    wrong = (torch.ones(2, 5),)
    assert refused(CaptureError, lambda: verb(mlp(), example_inputs=wrong)) == (
        "cannot run Sequential on the example inputs\n"
        "  RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x8)\n"
        "  input[2 5 float32]\n"
        "  Pass example inputs that the model's forward accepts."
    )


@pytest.mark.parametrize("verb", [analyze, insert_gates, lower])
def test_no_example_inputs(verb: Callable[..., Any]) -> None:
    assert refused(CaptureError, lambda: verb(mlp())) == (
        "no example inputs for Sequential.forward(input)\n"
        "  Only transformers models are captured without.\n"
        '  Pass example_inputs=(input,) or {"input": input}.'
    )


def test_gates_inserted_twice() -> None:
    model = gated()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert refused(GateError, lambda: insert_gates(model, (X,))) == (
        "Sequential has gates already\n"
        "  Use fgcompile.gates(model), or take them off with remove_gates(model)."
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("index", [8, -1])
def test_unit_that_does_not_exist(index: int) -> None:
    gate = gates(gated())["mlp"]
    open_before = gate.open
    assert refused(GateError, lambda: gate.close([1, index])) == (
        f"index {index} is out of range for gate mlp with 8 units\n"
        "  Its units are 0 to 7."
    )
    assert torch.equal(gate.open, open_before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(
    value: float, tmp_path: Path, scratch: Path
) -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, :3] = value
    target = tmp_path / "out"
    assert refused(
        VerifyError, lambda: lower(model, "onnx", target, example_inputs=(X,))
    ) == (
        "parameter 0.weight holds 3 of 32 values that are NaN or infinite\n"
        "  Equality cannot be verified. Repair the checkpoint or training."
    )
    assert list(tmp_path.iterdir()) == [scratch]
    assert not listing(scratch)


def test_weights_without_values() -> None:
    model = mlp().to("meta")
    inputs = (X.to("meta"),)
    assert refused(VerifyError, lambda: lower(model, example_inputs=inputs)) == (
        "parameter 0.weight is on the meta device and has no values\n"
        "  Load the weights before lowering; analyze() needs none."
    )


def test_unknown_target(tmp_path: Path) -> None:
    target: Any = "tflite"
    assert refused(ExportError, lambda: lower(mlp(), target, tmp_path / "out")) == (
        "unknown target 'tflite'\n"
        '  Targets are "fx" (GraphModule), "module" (same class), "onnx" (file for '
        'onnxruntime) and "openvino".'
    )
    assert not listing(tmp_path)


@pytest.mark.parametrize(
    ("target", "name", "suffix"), [("fx", "m.onnx", ".pt2"), ("onnx", "m.txt", ".onnx")]
)
def test_suffix_of_another_format(
    target: Any, name: str, suffix: str, tmp_path: Path, scratch: Path
) -> None:
    file = tmp_path / name
    assert refused(ExportError, lambda: lower(gated(), target, file)) == (
        f"cannot write target {target} to a {file.suffix} file: {file}\n"
        f"  Name a {suffix} file or a folder."
    )
    assert list(tmp_path.iterdir()) == [scratch]
    assert not listing(scratch)


@pytest.mark.parametrize("target", ["fx", "onnx"])
def test_file_in_place_of_the_folder(
    target: Any, tmp_path: Path, scratch: Path
) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    assert refused(ExportError, lambda: lower(gated(), target, file)) == (
        f"cannot write to {file}: File exists\n"
        "  Nothing was changed there. Choose a folder that you may write to, "
        "with room for the model."
    )
    below = file / "deeper"
    assert refused(ExportError, lambda: lower(gated(), target, below)) == (
        f"cannot write to {below}: Not a directory\n"
        "  Nothing was changed there. Choose a folder that you may write to, "
        "with room for the model."
    )
    assert file.read_text() == "mine"
    assert not listing(scratch)


def test_folder_that_may_not_be_written(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    lowered = lower(gated())
    monkeypatch.setattr(tempfile, "mkdtemp", denied)
    target = tmp_path / "new" / "folder"
    assert refused(ExportError, lambda: lowered.save(target)) == (
        f"cannot write to {target}: Permission denied\n"
        "  Nothing was changed there. Choose a folder that you may write to, "
        "with room for the model."
    )
    assert list(tmp_path.iterdir()) == [scratch]


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra(
    module: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    target = tmp_path / "out"
    assert refused(ExportError, lambda: lower(gated(), "onnx", target)) == (
        f"the target onnx needs the package {module}\n"
        "  Install it: pip install fgcompile[onnx]"
    )
    assert list(tmp_path.iterdir()) == [scratch]
    assert not listing(scratch)


class Wrong(OnnxModel):
    """A runtime that is off by one."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: value + 1 for name, value in super().__call__(**kwargs).items()}


def written(folder: Path) -> dict[str, bytes | None]:
    """What a first, good lowering leaves in `folder`."""
    lower(gated(), "onnx", folder)
    files = listing(folder)
    assert "model.onnx" in files
    return files


def test_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    before = written(target)
    monkeypatch.setattr("fgcompile.targets.forms.OnnxModel", Wrong)
    message = refused(VerifyError, lambda: lower(gated(), "onnx", target))
    first, where, remedy = message.split("\n")
    pattern = r"output \w+ of the file in onnxruntime differs by 1, "
    assert re.match(pattern, first)
    assert where == "  at inputs {'input': [2, 4]}"
    assert remedy.startswith("  Nothing was written. This is a bug in fgcompile")
    assert listing(target) == before
    refused(VerifyError, lambda: lower(gated(), "onnx", tmp_path / "new"))
    assert sorted(tmp_path.iterdir()) == [target, scratch]


@pytest.mark.parametrize(
    "what", ["targets.artifact.copy_onnx", "lowering.save_program"]
)
def test_earlier_file_survives_a_failure_of_the_disk(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = "onnx" if what.endswith("onnx") else "fx"
    lower(gated(), target, tmp_path)
    before = listing(tmp_path)
    again = lower(gated(), target)

    def full(*args: Any) -> None:
        if target == "onnx":
            args[1].write_bytes(b"half of a mod")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"fgcompile.{what}", full)
    assert refused(ExportError, lambda: again.save(tmp_path)) == (
        f"cannot write to {tmp_path}: No space left on device\n"
        "  Nothing was changed there. Choose a folder that you may write to, "
        "with room for the model."
    )
    assert listing(tmp_path) == before
    refused(ExportError, lambda: again.save(tmp_path / "new"))
    assert listing(tmp_path) == before


def test_temporary_files_go_with_the_model(tmp_path: Path, scratch: Path) -> None:
    lowered: Lowered | None = lower(gated(), "onnx", tmp_path / "out")
    assert listing(scratch)
    del lowered
    assert not listing(scratch)


def test_large_model_keeps_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgcompile.targets.onnx._SINGLE_FILE_LIMIT", 16)
    model = gated()
    lower(model, "onnx", tmp_path / "first" / "small.onnx")
    assert set(listing(tmp_path / "first")) == {"small.onnx", "small.onnx.data"}
    shutil.move(tmp_path / "first", tmp_path / "second")
    session = onnx_session(tmp_path / "second" / "small.onnx")
    (name,) = (value.name for value in session.get_inputs())
    x = torch.randn(5, 4)
    (found,) = session.run(None, {name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x))


def test_model_at_the_limit_is_one_file(tmp_path: Path) -> None:
    lower(gated(), "onnx", tmp_path)
    assert set(listing(tmp_path)) == {"model.onnx"}
