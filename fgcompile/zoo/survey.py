"""What capture makes of each model of the zoo, as rows of a table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fgcompile.capture import capture, other_inputs
from fgcompile.capture.state import tracing_state
from fgcompile.errors import FgcompileError
from fgcompile.program import Program
from fgcompile.zoo.registry import Entry


@dataclass(frozen=True)
class Row:
    """Capture of one model.

    Attributes:
        name: Of the zoo entry.
        inputs: Input names with their sizes; `b` and `t` may vary.
        nodes: Calls in the graph.
        seconds: Wall time of capture [s].
        difference: Largest difference between the program and the model at other
            sizes and with padding, relative to the largest output.
        error: Why capture failed, or "".
    """

    name: str
    inputs: str = ""
    nodes: int = 0
    seconds: float = 0.0
    difference: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.name:26} FAILED {self.error}"
        return (
            f"{self.name:26} {self.seconds:5.1f} s {self.nodes:5} nodes "
            f"{self.difference:8.1e} {self.inputs}"
        )


def survey(chosen: Iterable[Entry]) -> Iterator[Row]:
    """One row per entry; failures are rows too."""
    for entry in chosen:
        model = entry.build()
        start = time.perf_counter()
        try:
            program = capture(model, entry.example_inputs())
        except FgcompileError as error:
            yield Row(entry.name, error=str(error).partition("\n")[0])
            continue
        seconds = time.perf_counter() - start
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        difference = max(_differences(program))
        yield Row(entry.name, _inputs(program), len(calls), seconds, difference)


def _inputs(program: Program) -> str:
    return " ".join(
        f"{node.target}[{' '.join(_sizes(node.meta['val']))}]"
        for node in program.placeholders
    )


def _sizes(value: Tensor) -> Iterator[str]:
    for dim, size in enumerate(value.shape):
        yield str(size) if isinstance(size, int) else "t" if dim else "b"


def _differences(program: Program) -> Iterator[float]:
    model = program.user_model
    assert model is not None
    for inputs in (
        program.inputs,
        other_inputs(program, batch=3, length=7),
        other_inputs(program, batch=5, length=9, padded=True),
    ):
        with tracing_state(model):
            expected = pytree.tree_leaves(model(**inputs))
        with torch.no_grad():
            got = pytree.tree_leaves(program(**inputs))
        for one, other in zip(got, expected, strict=True):
            scale = max(1e-9, float(other.abs().max()))
            yield float((one - other).abs().max()) / scale
