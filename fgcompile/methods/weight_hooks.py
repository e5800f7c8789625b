"""Showing a computed weight in place of a parameter, while its reader's forward runs.

The parameter itself stays where it was, under its name, for optimizers, `state_dict`
and everything else; only `module.weight` inside that forward is another tensor. So the
class of every module stays, and layers of any origin that read a weight are served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.remove import drop_hooks


class MethodHook:
    """Base of the hooks of this package.

    Attributes:
        method: Name of the method that they belong to, by which they are found again.
    """

    method = ""


class Shown:
    """One parameter, and what is shown in its place."""

    def __init__(
        self, owner: nn.Module, name: str, weight: Callable[[], Tensor]
    ) -> None:
        """Shows `weight()` as `owner.name`."""
        self.owner, self.name, self.weight = owner, name, weight


class ShowHook(MethodHook):
    """Shows weights before a forward; a pre-hook."""

    def __init__(self, method: str, shown: Sequence[Shown], refusal: str = "") -> None:
        """Shows all of `shown`; `refusal` is the error for exporters, if any."""
        self.method, self.shown, self.refusal = method, tuple(shown), refusal

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Before the forward."""
        if self.refusal and torch.compiler.is_exporting():
            raise GateError(self.refusal)
        for one in self.shown:
            vars(one.owner)[one.name] = one.weight()

    def hide(self) -> None:
        """Shows the parameters again, after a forward or what interrupted it."""
        for one in self.shown:
            vars(one.owner).pop(one.name, None)


class HideHook(MethodHook):
    """Shows the parameters again; a forward hook that also runs after an error."""

    def __init__(self, before: ShowHook) -> None:
        """Undoes `before`."""
        self.method, self.before = before.method, before

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the forward."""
        self.before.hide()


def show(module: nn.Module, hook: ShowHook) -> None:
    """Registers `hook` and its counterpart on `module`."""
    module.register_forward_pre_hook(hook)
    module.register_forward_hook(HideHook(hook), always_call=True)


def remove_hooks(model: nn.Module, method: str) -> None:
    """No module of `model` has a hook of that method any more."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, ShowHook) and hook.method == method:
                hook.hide()
        drop_hooks(module, lambda h: isinstance(h, MethodHook) and h.method == method)


def freeze(model: nn.Module) -> list[nn.Parameter]:
    """No parameter of `model` is trained any more; those that were are returned."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    return trained
