"""The dense and the lowered model, with float and with int8 weights, side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from fgcompile.report import Variant
from fgcompile.targets.forms import ANY, Form
from fgcompile.targets.onnx import data_file
from fgcompile.targets.quantize import quantize_onnx
from fgcompile.targets.timing import median_times
from fgcompile.targets.verify import Comparison


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    form: Form
    difference: float | None = None
    reference: str = ""


def quantized_variants(
    dense: Form,
    lowered: Form,
    files: tuple[Path, Path],
    exact: Comparison | None,
    rounded: Comparison,
) -> tuple[Variant, ...]:
    """Size, time and difference of dense and lowered, float and int8.

    Times are those of one row of 128 tokens where the model takes it, else of the
    example inputs, on one thread.

    Args:
        dense: The model without gates; it is written here, beside `files`.
        lowered: What `files` hold.
        files: Float, and int8.
        exact: Between the gated model and the float file, if that was verified.
        rounded: Between the float and the int8 model.
    """
    float_file, int8_file = files
    dense_file = float_file.with_name("dense.onnx")
    dense_int8_file = float_file.with_name("dense-int8.onnx")
    dense.write(dense_file)
    quantize_onnx(dense_file, dense_int8_file)
    coarse = dense.compare(dense.open(dense_int8_file), "the dense int8 file", ANY)
    same = (None, "") if exact is None else (exact.relative, "gated model")
    return _measured(
        _File("dense float32", dense_file, dense),
        _File("dense int8", dense_int8_file, dense, coarse.relative, "dense float32"),
        _File("lowered float32", float_file, lowered, *same),
        _File("lowered int8", int8_file, lowered, rounded.relative, "lowered float32"),
    )


def _measured(*files: _File) -> tuple[Variant, ...]:
    inputs = files[-1].form.timed_inputs()
    runs = [file.form.open(file.path, threads=1) for file in files]
    times = median_times([functools.partial(run, **inputs) for run in runs])
    return tuple(
        Variant(
            *(file.name, _size(file.path), round(seconds / times[0], 3)),
            *(file.difference, file.reference),
        )
        for file, seconds in zip(files, times, strict=True)
    )


def _size(file: Path) -> int:
    data = data_file(file)
    return file.stat().st_size + (data.stat().st_size if data.exists() else 0)
