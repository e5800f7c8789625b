"""How long a model takes, and what its units take of that, in onnxruntime.

Measured are the dense model as a whole, and for each group what its units take part in,
with all of them and with fewer. Groups that are alike are measured once. All run in
turns, so that each finds the caches as other work left them and meets the same load.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgcompile.analysis.coupling import Analysis
from fgcompile.analysis.regions import shares
from fgcompile.errors import ExportError, FgcompileError
from fgcompile.gates.latency import GroupTimes, LatencyTable, SharedTime
from fgcompile.printer import show
from fgcompile.program import Program
from fgcompile.targets.extras import cause, require
from fgcompile.targets.latency.cache import cache_file, machine, recall, remember
from fgcompile.targets.latency.files import onnx_latencies
from fgcompile.targets.latency.parts import write_parts
from fgcompile.targets.latency.region import Region, make_region
from fgcompile.targets.onnx import OPSET, write_onnx
from fgcompile.targets.timing import undisturbed_clock

logger = logging.getLogger("fgcompile")

KEPT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a group's units that are measured; between them, times are linear."""

SECONDS = 10.0
"""About how long is measured, once everything is written."""

STEPS = 4
"""What a progress bar counts."""

Progress = Callable[[str, int, int], object]
Clock = Callable[[Sequence[Path]], list[float]]


@dataclass(frozen=True)
class Setting:
    """What is measured with: rows, tokens in a row, threads of the runtime."""

    batch: int = 1
    length: int = 128
    threads: int = 1


def measure(
    analysis: Analysis,
    names: Sequence[str],
    setting: Setting,
    *,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> LatencyTable:
    """Latencies of a model and of its groups on this machine.

    Args:
        analysis: Of the model; its weights are read.
        names: Groups, in the order that the table shall have.
        setting: What is measured with.
        fresh: Measure again, whatever is in the cache.
        progress: Called with what is done now, the steps done and those there are.

    Raises:
        ExportError: If an optional package is missing, or a part cannot be measured.
        FormatError: If the model does not run at that size.
    """
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    file = cache_file(_facts(analysis, names, setting))
    known = None if fresh else recall(file)
    if known is not None:
        return known
    table = _measure(analysis, names, setting, progress)
    remember(file, table)
    return table


def _facts(
    analysis: Analysis, names: Sequence[str], setting: Setting
) -> dict[str, object]:
    """Everything that times depend on."""
    return {
        "model": _digest(analysis.program),
        "groups": list(names),
        "kept": KEPT,
        "sizes": [setting.batch, setting.length, setting.threads],
        "machine": machine(),
        "runtime": runtime(),
        "opset": OPSET,
    }


def runtime() -> str:
    """Name and version of what is measured with."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _digest(program: Program) -> str:
    shapes = {
        str(node.target): list(program.parameter(node).shape)
        for node in program.graph.nodes
        if node.op == "get_attr"
    }
    text = f"{show(program)}\n{sorted(shapes.items())}"
    return hashlib.sha256(text.encode()).hexdigest()


def _clock(setting: Setting) -> Clock:
    sizes = (setting.batch, setting.length, setting.threads)
    clock = undisturbed_clock(setting.threads)
    return lambda files: onnx_latencies(files, *sizes, SECONDS, clock)


def _measure(
    analysis: Analysis,
    names: Sequence[str],
    setting: Setting,
    progress: Progress,
) -> LatencyTable:
    sizes = (setting.batch, setting.length)
    progress("reading the model", 0, STEPS)
    regions = {name: make_region(analysis, name, *sizes) for name in names}
    alike = {region.digest: name for name, region in reversed(regions.items())}
    counts = {name: _counts(regions[name].size) for name in alike.values()}
    parts = [(name, kept) for name, found in counts.items() for kept in found]
    with tempfile.TemporaryDirectory(prefix="fgcompile-") as folder:
        progress("writing the dense model", 1, STEPS)
        dense_file = Path(folder) / "dense.onnx"
        write_onnx(analysis.program, dense_file)
        progress("writing its parts", 2, STEPS)
        files = _write(regions, parts, Path(folder))
        progress("measuring", 3, STEPS)
        dense, *times = _clock(setting)([dense_file, *files])
    progress("measured", STEPS, STEPS)
    found: dict[str, list[float]] = {name: [] for name in counts}
    for (name, _), seconds in zip(parts, times, strict=True):
        found[name].append(seconds)
    groups = tuple(
        GroupTimes(
            *(name, analysis.by_name[name].kind),
            *(counts[twin], _rising(found[twin])),
        )
        for name, region in regions.items()
        for twin in [alike[region.digest]]
    )
    return LatencyTable(
        *(dense, groups, _shared(analysis, groups, dense)),
        *(setting.batch, setting.length, setting.threads),
        *(runtime(), machine()),
    )


def _counts(size: int) -> tuple[int, ...]:
    return tuple(sorted({round(share * size) for share in KEPT}))


def _write(
    regions: Mapping[str, Region], parts: Sequence[tuple[str, int]], folder: Path
) -> list[Path]:
    """A file for each of `parts`, a group and how many of its units are kept."""
    try:
        return write_parts([regions[name].keeping(n) for name, n in parts], folder)
    except FgcompileError as error:
        groups = ", ".join(dict.fromkeys(name for name, _ in parts))
        raise ExportError(
            f"cannot measure the latency of {groups}: {cause(error)}\n"
            "  Set a limit on macs instead, or gate other kinds of group."
        ) from error


def _rising(seconds: Sequence[float]) -> tuple[float, ...]:
    """Times that grow with the units, as those measured do but for noise.

    Halfway between the largest so far and the smallest from there on, beyond the first:
    what a part takes without any unit, such as the call itself, is not theirs.
    """
    found = np.array(seconds)
    largest = np.maximum.accumulate(found)
    smallest = np.minimum.accumulate(found[::-1])[::-1]
    middle = (largest + smallest) / 2
    return tuple((middle - middle[0]).tolist())


def _shared(
    analysis: Analysis, groups: Sequence[GroupTimes], dense: float
) -> tuple[SharedTime, ...]:
    """The time of every group, divided like its MACs among the parts it shares."""
    macs = shares(analysis, [group.name for group in groups])
    whole = {
        group.name: sum(n for names, n in macs.items() if group.name in names)
        for group in groups
    }
    time = {group.name: group.seconds[-1] for group in groups}
    parts = [
        SharedTime(
            names, float(np.mean([time[name] * count / whole[name] for name in names]))
        )
        for names, count in macs.items()
    ]
    # What has no product in it, such as a table of embeddings.
    parts += [SharedTime((name,), time[name]) for name in time if not whole[name]]
    together = sum(part.seconds for part in parts)
    if together > 1.1 * dense:
        logger.warning(
            "the parts of the model took %.0f%% of the time of the whole: something "
            "else kept the machine busy; measure again, with fresh=True",
            100 * together / dense,
        )
    return tuple(parts)
