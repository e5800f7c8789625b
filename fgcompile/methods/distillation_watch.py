"""Keeping what named modules return in a forward, as student and teacher do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.remove import drop_hooks
from fgcompile.methods.weight_hooks import MethodHook

METHOD = "distillation"


class KeepHook(MethodHook):
    """Keeps what a module returns; a forward hook."""

    method = METHOD

    def __init__(self, seen: dict[str, Tensor], path: str) -> None:
        """Puts it in `seen`, under `path`."""
        self.seen, self.path = seen, path

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the forward."""
        self.seen[self.path] = output if isinstance(output, Tensor) else output[0]

    def __getstate__(self) -> dict[str, Any]:
        """Without tensors of a graph, which cannot be copied."""
        return vars(self) | {"seen": {}}


def keep(model: nn.Module, paths: Iterable[str], seen: dict[str, Tensor]) -> None:
    """From now on the modules at `paths` put what they return in `seen`."""
    for path in paths:
        module_at(model, path).register_forward_hook(KeepHook(seen, path))


def release(model: nn.Module, paths: Iterable[str]) -> None:
    """The modules at `paths` keep nothing any more."""
    for path in paths:
        drop_hooks(module_at(model, path), lambda hook: isinstance(hook, KeepHook))


@contextmanager
def kept_from(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at `paths` return while the context lasts, by path."""
    seen: dict[str, Tensor] = {}
    keep(model, paths, seen)
    try:
        yield seen
    finally:
        release(model, paths)


def kept_at(model: nn.Module, seen: dict[str, Tensor], path: str) -> Tensor:
    """What the module at `path` returned.

    Raises:
        GateError: If the forward of `model` did not call it.
    """
    if path not in seen:
        raise GateError(
            f"cannot distil: the forward of {type(model).__name__} calls no {path!r}\n"
            "  Name modules that it calls in DistillationConfig(layers=[...])."
        )
    return seen[path]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`.

    Raises:
        GateError: If there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise GateError(
            f"cannot distil: {type(model).__name__} has no module {path!r}"
        ) from None
