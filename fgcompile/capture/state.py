"""What must hold while a model is traced, and is restored afterwards."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from types import CellType
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def tracing_state(model: nn.Module) -> Iterator[None]:
    """Eval mode, no caches, no fused fast paths, no gradients and no log noise.

    Training flags, configurations, buffers and logging are as before afterwards,
    whether or not the body raised; functions of the model that remember results forget
    them, since these may be traced tensors.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_buffers(model))
        stack.enter_context(eval_mode(model))
        stack.enter_context(_no_caches(model))
        stack.enter_context(_no_fast_path())
        stack.callback(_forget_results, model)
        stack.enter_context(silence())
        stack.enter_context(torch.no_grad())
        yield


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode in the body, for the model and each of its modules as it was after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Counters and the like that a forward pass writes hold what they held before."""
    saved = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in saved:
            module._buffers[name] = buffer
            # Fake tensors write to real ones without counting it as a new version.
            if not buffer.is_meta and not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)


@contextlib.contextmanager
def _no_caches(model: nn.Module) -> Iterator[None]:
    """Key-value caches are outputs that grow with use: no part of one forward pass."""
    saved = []
    for config in configurations(model):
        if getattr(config, "use_cache", False):
            saved.append(config)
            config.use_cache = False
    try:
        yield
    finally:
        for config in saved:
            config.use_cache = True


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """nn.TransformerEncoderLayer would call one opaque op instead of its parts."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _forget_results(model: nn.Module) -> None:
    """Clears every `functools.lru_cache` in the code of the model's classes."""
    classes = {base for m in model.modules() for base in type(m).__mro__}
    own = [c for c in classes if not c.__module__.startswith(("torch.", "builtins"))]
    modules = {sys.modules[c.__module__] for c in own if c.__module__ in sys.modules}
    for namespace in (*own, *modules):
        for value in list(vars(namespace).values()):
            cells = getattr(value, "__closure__", None) or ()
            for cached in (value, *(_content(cell) for cell in cells)):
                if isinstance(cached, _CACHED):
                    cached.cache_clear()


_CACHED = type(functools.lru_cache(lambda: None))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put in yet
        return None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed, logged or warned about in the body."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def configurations(model: nn.Module) -> list[Any]:
    """Every distinct `config` object of the model's modules and their parts."""
    found: dict[int, Any] = {}
    pending = [getattr(module, "config", None) for module in model.modules()]
    while pending:
        config = pending.pop()
        if config is None or id(config) in found or isinstance(config, (dict, str)):
            continue
        found[id(config)] = config
        names = getattr(config, "sub_configs", None) or ()
        pending += [getattr(config, name, None) for name in names]
    return list(found.values())
