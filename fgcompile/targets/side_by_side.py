"""The dense and the lowered model, with float and with int8 weights, side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgcompile.capture import other_inputs
from fgcompile.errors import FgcompileError
from fgcompile.program import Program
from fgcompile.report import Variant
from fgcompile.targets.onnx import OnnxModel, data_file, write_onnx
from fgcompile.targets.quantize import measure_difference, quantize_onnx
from fgcompile.targets.timing import median_times
from fgcompile.targets.verify import Comparison

_TOKENS = 128


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    program: Program
    difference: float | None = None
    reference: str = ""


def quantized_variants(
    dense: Program,
    lowered: Program,
    files: tuple[Path, Path],
    exact: Comparison | None,
    rounded: Comparison,
    opset: int,
) -> tuple[Variant, ...]:
    """Size, time and difference of dense and lowered, float and int8.

    Times are those of one row of 128 tokens where the model takes it, else of the
    example inputs, on one thread.

    Args:
        dense: The model without gates; it is exported here, beside `files`.
        lowered: What `files` hold.
        files: Float, and int8; each with inputs and outputs of `lowered`.
        exact: Between the gated model and the float file, if that was verified.
        rounded: Between the float and the int8 model.
        opset: ONNX opset.
    """
    float_file, int8_file = files
    dense_file = float_file.with_name("dense.onnx")
    dense_int8_file = float_file.with_name("dense-int8.onnx")
    write_onnx(dense, dense_file, opset)
    quantize_onnx(dense_file, dense_int8_file)
    dense_rounded = measure_difference(
        dense, OnnxModel(dense_int8_file, dense), "the dense int8 file"
    )
    relative = None if exact is None else exact.relative
    return _measured(
        _File("dense float32", dense_file, dense),
        _File(
            *("dense int8", dense_int8_file, dense),
            *(dense_rounded.relative, "dense float32"),
        ),
        _File("lowered float32", float_file, lowered, relative, "gated model"),
        _File(
            *("lowered int8", int8_file, lowered),
            *(rounded.relative, "lowered float32"),
        ),
    )


def _measured(*files: _File) -> tuple[Variant, ...]:
    inputs = _timed_inputs(files[-1].program)
    models = [OnnxModel(file.path, file.program, threads=1) for file in files]
    times = median_times([functools.partial(model, **inputs) for model in models])
    return tuple(
        Variant(
            file.name,
            _size(file.path),
            round(seconds / times[0], 3),
            file.difference,
            file.reference if file.difference is not None else "",
        )
        for file, seconds in zip(files, times, strict=True)
    )


def _timed_inputs(program: Program) -> dict[str, Any]:
    inputs = other_inputs(program, batch=1, length=_TOKENS)
    try:
        program(**inputs)
    except (FgcompileError, IndexError, RuntimeError):
        return program.inputs  # the model takes no such length
    return inputs


def _size(file: Path) -> int:
    data = data_file(file)
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)
