"""Everything that writes, each with an old and a new state that can be told apart."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fgcompile
from fgcompile.cli import main
from fgcompile.errors import FgcompileError, FormatError
from fgcompile.methods import S2ftAdapter, S2ftEntry
from fgcompile.targets.onnx import onnx_session
from fgcompile.zoo.models import entry

CLOSED = {"old": [1, 4, 6], "new": [0, 2]}
INPUT = torch.linspace(-1, 1, 12).view(3, 4)
TOKENS = torch.tensor([[1, 5, 9, 3], [2, 2, 7, 4]])


@dataclass(frozen=True)
class Writer:
    """Something that writes to a path.

    Attributes:
        name: In the table.
        target: Name of what it writes, in a folder.
        write: Writes the state "old" or "new" to a path.
        read: What can be read there; raises if it is not whole.
        wants: What `read` gives for each state.
    """

    name: str
    target: str
    write: Callable[[str, Path], object]
    read: Callable[[Path], Tensor]
    wants: dict[str, Tensor]

    def state(self, path: Path, has_old: bool = True) -> str:
        """What is there: "old", "new", "nothing", or what is wrong with it."""
        if not has_old and not path.exists():
            return "nothing"
        try:
            found = self.read(path)
        except Exception as error:
            if not has_old and isinstance(error, FormatError):
                return "nothing"
            return f"{type(error).__name__}: {error}"
        for state, wanted in self.wants.items():
            if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5):
                return state
        return "another model"


class Mlp(nn.Module):
    """Four in, eight hidden, two out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def _gated(state: str | None) -> Any:
    torch.manual_seed(0)
    config = fgcompile.GateConfig(kinds=("mlp",))
    model = fgcompile.insert_gates(Mlp().eval(), (torch.randn(2, 4),), config)
    if state is not None:
        next(iter(fgcompile.gates(model).values())).close(CLOSED[state])
    return model


def gates() -> Writer:
    """`save_gates`: a manifest and tensors."""
    models = {state: _gated(state) for state in CLOSED}
    reader = _gated(None)

    def read(path: Path) -> Tensor:
        fgcompile.load_gates(reader, path)
        return reader.eval()(INPUT).detach()

    wants = {state: model(INPUT).detach() for state, model in models.items()}
    write = lambda state, path: fgcompile.save_gates(models[state], path)  # noqa: E731
    return Writer("save_gates", "gates", write, read, wants)


def adapter() -> Writer:
    """`S2ftAdapter.save`."""
    blocks = {"old": torch.ones(2, 4), "new": torch.full((3, 4), 2.0)}

    def write(state: str, path: Path) -> None:
        block = blocks[state]
        key, shape = ("up.weight", "rows"), (8, 4)
        rows = torch.arange(len(block))
        found = S2ftEntry(0, "rows", shape, rows, block)
        S2ftAdapter({key: found}).save(path)  # type: ignore[dict-item]

    def read(path: Path) -> Tensor:
        (found,) = S2ftAdapter.load(path).entries.values()
        return found.block

    return Writer("S2FT adapter", "adapter", write, read, blocks)


def _lowered(target: Any, name: str, file: str, read: Any) -> Writer:
    made = {state: fgcompile.lower(_gated(state), target) for state in CLOSED}
    wants = {state: _gated(state)(INPUT).detach() for state in CLOSED}
    return Writer(name, file, lambda state, path: made[state].save(path), read, wants)


def module() -> Writer:
    """`Lowered.save` of the same class: a folder."""
    return _lowered("module", "module folder", "small", _read_module)


def _read_module(path: Path) -> Tensor:
    return fgcompile.load(path, Mlp())(INPUT).detach()


def program() -> Writer:
    """A `.pt2` file."""

    def read(path: Path) -> Tensor:
        return torch.export.load(path).module()(x=INPUT).detach()

    return _lowered("fx", "fx .pt2", "model.pt2", read)


def _read_onnx(path: Path) -> Tensor:
    session = onnx_session(path, threads=1)
    (name,) = [value.name for value in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: INPUT.numpy()})[0])


def onnx() -> Writer:
    """An `.onnx` file."""
    return _lowered("onnx", "onnx", "model.onnx", _read_onnx)


def openvino() -> Writer:
    """A pair of files beside each other."""

    def read(path: Path) -> Tensor:
        from openvino import Core

        core = Core()
        core.set_property({"INFERENCE_PRECISION_HINT": "f32"})
        compiled = core.compile_model(core.read_model(str(path)), "CPU")
        return torch.from_numpy(next(iter(compiled(INPUT.numpy()).values())).copy())

    return _lowered("openvino", "openvino pair", "out/model.xml", read)


def lowering() -> Writer:
    """`lower(model, "onnx", path)` from its beginning."""
    models = {state: _gated(state) for state in CLOSED}
    wants = {state: model(INPUT).detach() for state, model in models.items()}

    def write(state: str, path: Path) -> None:
        fgcompile.lower(models[state], "onnx", path)

    return Writer("lower to onnx", "model.onnx", write, _read_onnx, wants)


def streaming(work: Path) -> Writer:
    """`fgcompile lower --target module`, tensor by tensor."""
    dense: Any = entry("llama").build()
    dense.config.architectures = [type(dense).__name__]
    dense.save_pretrained(work / "dense")
    wants = {}
    for depth, state in enumerate(CLOSED):
        model: Any = entry("llama").build()
        config = fgcompile.GateConfig(kinds=("mlp",))
        fgcompile.insert_gates(model, config=config)
        for gate in fgcompile.gates(model).values():
            gate.close(range(8 + 8 * depth))
        fgcompile.save_gates(model, work / f"gates-{state}")
        wants[state] = model(TOKENS).logits.detach()

    def write(state: str, path: Path) -> None:
        run_cli(*lower_arguments(work / "dense", work / f"gates-{state}", path))

    def read(path: Path) -> Tensor:
        loaded: Any = fgcompile.load(path)
        return loaded(TOKENS).logits.detach()

    return Writer("streamed lower", "small", write, read, wants)


class CommandError(FgcompileError):
    """The command line ended with status 1 and told why."""


def lower_arguments(model: Path | str, gates: Path, out: Path) -> list[str]:
    """The command line from a model with gates to a folder, without a report."""
    call = ["lower", model, "--gates", gates, "--target", "module", "--out", out]
    return [str(argument) for argument in (*call, "--report", os.devnull)]


def run_cli(*arguments: str) -> None:
    """Runs a verb; what it says goes to memory, where no disk is full.

    Raises:
        CommandError: If it ends with status 1 and a message, which is this one's too.
        RuntimeError: If it ends in another way.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(arguments)
    _, told, message = said.getvalue().rpartition("error: ")
    if status == 1 and told:
        raise CommandError(message.strip())
    if status:
        raise RuntimeError(f"exit status {status}: {said.getvalue()}")


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "gates": lambda work: gates(),
    "adapter": lambda work: adapter(),
    "module": lambda work: module(),
    "fx": lambda work: program(),
    "onnx": lambda work: onnx(),
    "openvino": lambda work: openvino(),
    "lower": lambda work: lowering(),
    "stream": streaming,
}
"""Each is made where it writes what it needs."""
