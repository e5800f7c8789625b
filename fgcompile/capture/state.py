"""What must hold while a model is traced, and is restored afterwards."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import sys
import threading
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from types import CellType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")
_LOCK = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """The function, of which only one call works at a time, whatever the thread.

    torch.export, and what is silenced while it works, are states of the process.
    """

    @functools.wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return function(*args, **kwargs)

    return locked


@contextlib.contextmanager
def tracing_state(model: nn.Module) -> Iterator[None]:
    """Eval mode, no caches, no fused fast paths, no gradients and no log noise.

    Training flags, configurations, buffers and logging are as before afterwards,
    whether or not the body raised. Modules keep no traced tensors, and functions of the
    model that remember results forget them, since these may be some.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_same_buffers(model))
        stack.enter_context(_no_traced_attributes(model))
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
def _no_traced_attributes(model: nn.Module) -> Iterator[None]:
    """Results that modules keep from one call to the next are none of a trace.

    Other attributes stay as the body left them: a flag that says that hooks were
    registered must not forget it while the hooks remain.
    """
    saved = {
        module: {
            name: (value, copy.copy(value) if _is_collection(value) else None)
            for name, value in vars(module).items()
            if name not in _OF_EVERY_MODULE
        }
        for module in model.modules()
    }
    try:
        yield
    finally:
        for module in model.modules():
            attributes = vars(module)
            own = [name for name in attributes if name not in _OF_EVERY_MODULE]
            for name in [name for name in own if _is_traced(attributes[name])]:
                del attributes[name]
                if name in saved.get(module, {}):
                    attributes[name], contents = saved[module][name]
                    _refill(attributes[name], contents)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _is_collection(value: Any) -> bool:
    return type(value) in (dict, list, set, OrderedDict, defaultdict)


def _is_traced(value: Any) -> bool:
    """Whether `value` is, or holds, a tensor of a trace."""
    if not isinstance(value, (Tensor, tuple)) and not _is_collection(value):
        return False
    leaves = value if isinstance(value, set) else pytree.tree_leaves(value)
    return any(isinstance(leaf, FakeTensor) for leaf in leaves)


def _refill(collection: Any, contents: Any) -> None:
    if contents is not None:
        collection.clear()
        add = collection.extend if isinstance(collection, list) else collection.update
        add(contents)


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
