"""Sessions of onnxruntime that do not disturb each other, and what they are fed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fgcompile.targets.latency.files import timed_options

Feed = dict[str, np.ndarray[Any, Any]]


def session(
    file: Path, threads: int, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session on so many threads; with a profiler, if its file has a prefix."""
    options = timed_options(threads)
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


def runner(opened: onnxruntime.InferenceSession, batch: int, tokens: int) -> Any:
    """A function that runs the session on `batch` rows of `tokens`."""
    return functools.partial(opened.run, None, feed(opened, batch, tokens))


def feed(opened: onnxruntime.InferenceSession, batch: int, tokens: int) -> Feed:
    """Tokens, full masks or random pictures."""
    random = np.random.default_rng(0)
    found: Feed = {}
    for each in opened.get_inputs():
        free = iter((batch, tokens))
        shape = [n if isinstance(n, int) else next(free) for n in each.shape]
        if each.type == "tensor(float)":
            found[each.name] = random.standard_normal(shape, np.float32)
        elif each.name == "input_ids":
            found[each.name] = random.integers(0, 100, shape)
        else:
            found[each.name] = np.full(shape, int("mask" in each.name))
    return found
