"""How fast ONNX files run, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgcompile.errors import FormatError
from fgcompile.targets.extras import cause, require
from fgcompile.targets.timing import median_times

if TYPE_CHECKING:
    import onnxruntime

_KINDS = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2"}


def onnx_latencies(
    files: Sequence[Path],
    batch: int = 1,
    length: int = 128,
    threads: int = 1,
    seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median time of one run of each file in onnxruntime [s], in turns.

    Args:
        files: ONNX files.
        batch: Size of the first dynamic axis of every input.
        length: Size of its other dynamic axes.
        threads: Threads of the runtime.
        seconds: About how long to measure.
        clock: As for `median_times`.

    Raises:
        ExportError: If onnxruntime is not installed.
        FormatError: If a file is missing or damaged, or does not run at that size.
    """
    require("onnx", "onnxruntime")
    calls = [_Run(file, batch, length, threads) for file in files]
    return median_times(calls, seconds, clock)


def timed_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session that takes turns with others.

    Its threads stop to spin when a run ends: they would slow down the file whose turn
    it is then.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class _Run:
    """One file, opened, with inputs."""

    def __init__(self, file: Path, batch: int, length: int, threads: int) -> None:
        import onnxruntime

        options = timed_options(threads)
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
            self.feed = {
                each.name: _array(each, batch, length)
                for each in self.session.get_inputs()
            }
            self()
        except Exception as error:
            raise FormatError(
                f"cannot run {file.name} on {batch} rows of {length}: {cause(error)}\n"
                "  Check the file, or choose sizes that the model takes."
            ) from error

    def __call__(self) -> object:
        return self.session.run(None, self.feed)


def _array(each: Any, batch: int, length: int) -> np.ndarray[Any, Any]:
    """Ones, or random numbers: what is a token's number must exist in any table."""
    sizes = [
        size if isinstance(size, int) else batch if dim == 0 else length
        for dim, size in enumerate(each.shape)
    ]
    if each.type in _KINDS:
        values = np.random.default_rng(0).standard_normal(sizes)
        return values.astype(_KINDS[each.type])
    return np.ones(sizes, bool if each.type == "tensor(bool)" else "i8")
