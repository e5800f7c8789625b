"""What a model is written as, and how the file is run, timed and compared.

A form stands for one model: the gated one, the lowered one or the dense one. Two
models of the same form have files with the same inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fgcompile.capture import other_inputs
from fgcompile.errors import FgcompileError
from fgcompile.program import Program
from fgcompile.targets.onnx import OPSET, OnnxModel, read_onnx, write_onnx
from fgcompile.targets.openvino import OpenVinoModel, read_openvino, write_openvino
from fgcompile.targets.verify import Comparison, verify_equal

ROUNDING = 10.0
"""Factor on the tolerance: a runtime with kernels of its own rounds differently."""

ANY = math.inf
"""Factor on the tolerance where a difference is measured, not judged."""

TOKENS = 128
"""Length of the row of tokens that runtimes are timed with."""

Run = Callable[..., Any]


class Form(Protocol):
    """A model, as it is written to one kind of file."""

    def write(self, file: Path) -> None:
        """Writes the model to `file`."""

    def read(self, file: Path) -> Any:
        """What is in a file of this form."""

    def open(self, file: Path, threads: int = 0) -> Run:
        """A file of this form in its runtime."""

    def compare(self, run: Run, name: str, scale: float = ROUNDING) -> Comparison:
        """How far `run` is from the model, at most `scale` times the tolerance."""

    def timed_inputs(self) -> dict[str, Any]:
        """One row of 128 tokens where the model takes it, else its example inputs."""


@dataclass(frozen=True)
class OnnxForm:
    """One forward pass as an ONNX file."""

    program: Program
    opset: int = OPSET

    def write(self, file: Path) -> None:
        write_onnx(self.program, file, self.opset)

    def read(self, file: Path) -> Any:
        return read_onnx(file)

    def open(self, file: Path, threads: int = 0) -> Run:
        return OnnxModel(file, self.program, threads)

    def compare(self, run: Run, name: str, scale: float = ROUNDING) -> Comparison:
        return _compare(self.program, run, name, scale)

    def timed_inputs(self) -> dict[str, Any]:
        return _timed_inputs(self.program)


@dataclass(frozen=True)
class OpenVinoForm:
    """One forward pass as an OpenVINO file."""

    program: Program

    def write(self, file: Path) -> None:
        write_openvino(self.program, file)

    def read(self, file: Path) -> Any:
        return read_openvino(file)

    def open(self, file: Path, threads: int = 0) -> Run:
        return OpenVinoModel(file, self.program, threads)

    def compare(self, run: Run, name: str, scale: float = ROUNDING) -> Comparison:
        return _compare(self.program, run, name, scale)

    def timed_inputs(self) -> dict[str, Any]:
        return _timed_inputs(self.program)


def _compare(program: Program, run: Run, name: str, scale: float) -> Comparison:
    return verify_equal(program, run, name=name, scale=scale, visible_only=True)


def _timed_inputs(program: Program) -> dict[str, Any]:
    inputs = other_inputs(program, batch=1, length=TOKENS)
    try:
        program(**inputs)
    except (FgcompileError, IndexError, RuntimeError):
        return program.inputs  # the model takes no such length
    return inputs
