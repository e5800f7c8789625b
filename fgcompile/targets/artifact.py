"""A file that a target wrote, verified in its runtime, with what the report says."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgcompile.report import Note, Variant
from fgcompile.report.wording import difference
from fgcompile.targets.forms import ANY, Form, Run
from fgcompile.targets.onnx import copy_onnx
from fgcompile.targets.quantize import quantize_onnx
from fgcompile.targets.side_by_side import quantized_variants
from fgcompile.targets.verify import Comparison


@dataclass(frozen=True)
class Artifact:
    """A file in a temporary folder, which goes when nothing runs it any more.

    Attributes:
        file: The file.
        read: What is in it.
        run: The file in its runtime.
        comparison: Of the exact file with the gated model, if it was verified.
        discard: Removes the folder now.
        rounded: Of the int8 file with the exact one, where there is one.
        notes: What the reader of a report must know.
        variants: Measures the files of the model, dense and lowered, side by side.
    """

    file: Path
    read: Callable[[], Any]
    run: Run
    comparison: Comparison | None
    discard: Callable[[], object]
    rounded: Comparison | None = None
    notes: tuple[Note, ...] = ()
    variants: Callable[[], tuple[Variant, ...]] = tuple

    def copy(self, target: Path) -> None:
        """Writes the file as `target`, with the file of its weights."""
        if self.file.suffix == ".onnx":
            copy_onnx(self.file, target)
        else:
            for part in self.file.parent.glob(f"{self.file.stem}.*"):
                shutil.copyfile(part, target.with_suffix(part.suffix))


def make_artifact(
    gated: Form,
    lowered: Form,
    file_name: str,
    runtime: str,
    verify: bool = True,
    dense: Callable[[], Form] | None = None,
) -> Artifact:
    """Writes `lowered` to a fresh folder and compares it with `gated` in its runtime.

    Args:
        gated: The model that was lowered.
        lowered: What is written.
        file_name: What the file is called.
        runtime: What its runtime is called.
        verify: Whether to compare.
        dense: The model without gates, if the file shall have int8 weights.

    Raises:
        ExportError: If the file cannot be written.
        VerifyError: If it differs from the gated model.
    """
    folder = Path(tempfile.mkdtemp(prefix="fgcompile-"))
    try:
        file = folder / file_name
        lowered.write(file)
        run = lowered.open(file)
        comparison = gated.compare(run, f"the file in {runtime}") if verify else None
        if dense is not None:
            return _quantized(lowered, dense, file, comparison)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    read = functools.partial(lowered.read, file)
    return Artifact(file, read, run, comparison, _kept_for(run, folder))


def _quantized(
    lowered: Form,
    dense: Callable[[], Form],
    exact_file: Path,
    exact: Comparison | None,
) -> Artifact:
    folder = exact_file.parent / "int8"
    folder.mkdir()
    file = folder / exact_file.name
    quantize_onnx(exact_file, file)
    run = lowered.open(file)
    rounded = lowered.compare(run, "the int8 file", ANY)
    note = Note(
        "int8 weights are close, not equal: outputs differ by up to "
        f"{difference(rounded.absolute)}, {rounded.relative:.1%} of the largest one, "
        f"on {rounded.cases} inputs; the verified difference is that of the float32 "
        "file",
        "quantization",
        "warning",
    )

    def variants() -> tuple[Variant, ...]:
        files = (exact_file, file)
        return quantized_variants(dense(), lowered, files, exact, rounded)

    discard = _kept_for(run, exact_file.parent)
    read = functools.partial(lowered.read, file)
    return Artifact(file, read, run, exact, discard, rounded, (note,), variants)


def _kept_for(run: Run, folder: Path) -> Callable[[], object]:
    """`folder` lives as long as the session that reads it."""
    return weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
