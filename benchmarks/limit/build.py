"""ONNX files of dense and pruned models, each made once, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.limit import files
from benchmarks.machine import ROOT
from benchmarks.shapes import build
from fgcompile import GateConfig, gates, insert_gates, lower, status
from fgcompile.analysis.cost import program_macs
from fgcompile.analysis.flow import trace_planes
from fgcompile.capture import capture
from fgcompile.passes import gather_live
from fgcompile.program import Program
from fgcompile.targets.onnx import write_onnx

LENGTHS = (16, 128, 197, 512)
VARIANTS = ("dense", "shared", "finegates", "gathers")
"""Dense; gates shared by coupled dims; those of the papers, each matrix by itself, with
gathers and scatters where they pay; and with all of them, as published."""

_LARGE = 500_000_000
_FACTS = "facts.json"


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        file: The ONNX file.
        parameters: Of the lowered program [count].
        counted: Fraction of what is gated that is left; of matrices, as the papers
            count it: rows times columns of each.
        matrices: Parameters of the matrices that have gates of their own [count].
        macs: Of one row, by its length [count].
    """

    file: str
    parameters: int
    counted: float
    matrices: int
    macs: dict[str, int]


def built(model: str, variant: str, removed: int) -> Built:
    """The files of a variant, from the cache or made now by another process.

    They stay there until this process ends.

    Raises:
        RuntimeError: If they cannot be made; the message is that of the other process.
    """
    name = f"{model}-{variant}" + ("" if variant == "dense" else f"-{removed}")
    folder = files.hold(name)
    if not (folder / _FACTS).exists():
        command = [
            *(sys.executable, "-m", "benchmarks.limit.build"),
            *(model, variant, str(removed), str(folder)),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise RuntimeError(f"{name}: exit code {done.returncode}: {last}")
        files.make_room()
    return read(folder)


def read(folder: Path) -> Built:
    """What `make` left in `folder`."""
    return Built(**json.loads((folder / _FACTS).read_text(encoding="utf-8")))


def make(model: str, variant: str, removed: int, folder: Path) -> None:
    """Writes the ONNX file of a variant into `folder`, and facts about it."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        program, counted, matrices = _MAKERS[variant](
            build(model), removed / 100, work / "model.onnx"
        )
        flow = trace_planes(program)
        macs = {str(n): program_macs(program, flow, 1, n) for n in LENGTHS}
        names = {n.target for n in program.graph.nodes if program.is_parameter(n)}
        tensors = dict(program.graph_module.named_parameters())
        count = sum(tensors[str(name)].numel() for name in names)
        file = str(folder / "model.onnx")
        facts = Built(file, count, counted, matrices, macs)
        for part in work.iterdir():
            os.replace(part, folder / part.name)
        # What is read first is written last: it says that the rest is there.
        text = json.dumps(asdict(facts))
        (work / _FACTS).write_text(text, encoding="utf-8")
        os.replace(work / _FACTS, folder / _FACTS)


Maker = Callable[[nn.Module, float, Path], tuple[Program, float, int]]


def _dense(model: nn.Module, removed: float, file: Path) -> tuple[Program, float, int]:
    program = capture(model)
    write_onnx(program, file)
    return program, 1.0, 0


def _shared(model: nn.Module, removed: float, file: Path) -> tuple[Program, float, int]:
    insert_gates(model)
    generator = torch.Generator().manual_seed(0)
    for gate in gates(model).values():
        order = torch.randperm(gate.size, generator=generator)
        gate.close(order[: round(gate.size * removed)])
    return _lowered(model, file)


def _finegates(
    model: nn.Module, removed: float, file: Path
) -> tuple[Program, float, int]:
    """Rows and columns of each matrix go by themselves, as many as remove that much."""
    insert_gates(model, config=GateConfig(coupling="none"))
    generator = torch.Generator().manual_seed(0)
    for gate in gates(model).values():
        order = torch.randperm(gate.size, generator=generator)
        gate.close(order[round(gate.size * (1 - removed) ** 0.5) :])
    return _lowered(model, file)


def _gathers(
    model: nn.Module, removed: float, file: Path
) -> tuple[Program, float, int]:
    gather_live.GATHER, gather_live.SCATTER = 0, 1
    return _finegates(model, removed, file)


def _lowered(model: nn.Module, file: Path) -> tuple[Program, float, int]:
    """Verified, but for models of a billion parameters, where that takes minutes."""
    counted = status(model)["cost"]["params"]
    single = [gate for gate in gates(model).values() if gate.kind in ("row", "column")]
    pairs = zip(single[::2], single[1::2], strict=True)
    matrices = sum(rows.size * columns.size for rows, columns in pairs)
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    lowered = lower(model, "onnx", file, verify=not large)
    return lowered.program, counted, matrices


_MAKERS: dict[str, Maker] = {
    "dense": _dense,
    "shared": _shared,
    "finegates": _finegates,
    "gathers": _gathers,
}

if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
