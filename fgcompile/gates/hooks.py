"""How gates act in an eager model: hooks that are objects, so copies are independent.

`copy.deepcopy` and pickling follow the attributes of an object, so that the hooks of a
copied model refer to the gates of the copy. A closure would keep using the original's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every

from fgcompile.errors import GateError
from fgcompile.gates.container import GateContainer, Site
from fgcompile.gates.kurtosis import Watched
from fgcompile.gates.linear import costs_less_on_weight, gated_weight


class GateHook:
    """Base of every hook of this package, by which they are found again."""


class UpdateHook:
    """Base of hooks that add an update to a slice of a weight, which merging removes.

    Attributes:
        hidden: Whether nothing is added for now.
    """

    hidden = False


@contextmanager
def hidden_updates(model: nn.Module) -> Iterator[None]:
    """No update of a slice acts: units inside and outside of it are alike."""
    every_hook: list[Any] = [
        hook for module in model.modules() for hook in module._forward_hooks.values()
    ]
    hooks = [hook for hook in every_hook if isinstance(hook, UpdateHook)]
    for hook in hooks:
        hook.hidden = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.hidden = False


class InputHook(GateHook):
    """Gates one argument of a module; a forward pre-hook with keywords."""

    def __init__(self, module: nn.Module, name: str, site: Site) -> None:
        """Gates the argument `name` of `module`.

        Args:
            module: The module that is called.
            name: Position or keyword of the argument.
            site: Where and how it is gated.

        Raises:
            GateError: If the forward of `module` has no such argument.
        """
        self.site = site
        self.position, self.keyword = _argument(module, name, site)
        self.shown: Any = None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with one of them gated."""
        at = self.position
        if at is not None and at < len(args):
            gated = self._gated(module, args[at])
            return (*args[:at], gated, *args[at + 1 :]), kwargs
        if self.keyword not in kwargs:
            raise GateError(
                f"{self.site.label} is gated, but the module was called without it"
            )
        gated = self._gated(module, kwargs[self.keyword])
        return args, kwargs | {self.keyword: gated}

    def _gated(self, module: nn.Module, x: Any) -> Any:
        """The gated argument; as it is if the weight that it meets is gated."""
        self.reset(module)  # what an interrupt of the last forward may have left
        cheaper = costs_less_on_weight(module, x, self.site.dim, self.site.size)
        weight = module._parameters.get("weight")
        if not cheaper or weight is None or _others_look_on(module):
            return self.site.apply_to(x)
        self.shown = gated_weight(weight, self.site.factors())
        vars(module)["weight"] = self.shown
        return x

    def reset(self, module: nn.Module) -> None:
        """Show the weight again."""
        if self.shown is not None and vars(module).get("weight") is self.shown:
            del vars(module)["weight"]
        self.shown = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is shown, which a copy does not show."""
        return vars(self) | {"shown": None}


def _others_look_on(module: nn.Module) -> bool:
    """Whether hooks of anyone else see the input of `module`, or show it a weight."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = (InputHook, ResetHook, OutputHook, WatchHook)
    others = [hook for hook in hooks if not isinstance(hook, own)]
    of_all = (
        every._global_forward_pre_hooks,
        every._global_forward_hooks,
        every._global_backward_pre_hooks,
        every._global_backward_hooks,
    )
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(others or backward or any(of_all))


def _argument(module: nn.Module, name: str, site: Site) -> tuple[int | None, str]:
    """Position and keyword of an argument; callers may use either."""
    known = inspect.signature(module.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in known if p.kind in named]
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in known)
    if name.isdigit():
        position = int(name)
        if position < len(names):
            return position, names[position]
        if open_ended:
            return position, ""
    elif name in names:
        return names.index(name), name
    elif open_ended:
        return None, name
    raise GateError(f"cannot gate {site.label}: forward takes {', '.join(names)}")


class WatchHook(GateHook):
    """Shows the input of a module to an objective; a forward pre-hook with keywords."""

    def __init__(self, watched: Watched) -> None:
        """Shows training inputs to `watched`."""
        self.watched = watched

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Before the forward."""
        if module.training and not torch.compiler.is_exporting():
            self.watched.see((args or tuple(kwargs.values()))[0])


class OutputHook(GateHook):
    """Gates one result of a module; a forward hook."""

    def __init__(self, name: str, site: Site) -> None:
        """Gates the result at position or key `name`."""
        self.name, self.site = name, site

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output, with one of its values gated."""
        if isinstance(output, Tensor):
            return self.site.apply_to(output)
        if isinstance(output, Mapping):
            key = list(output)[int(self.name)] if self.name.isdigit() else self.name
            output[key] = self.site.apply_to(output[key])  # type: ignore[index]
            return output
        items = list(output)
        items[int(self.name)] = self.site.apply_to(items[int(self.name)])
        if hasattr(output, "_fields"):
            return type(output)(*items)
        return type(output)(items)


class ParameterHook(GateHook):
    """Shows a gated tensor in place of parameters, while a forward runs that uses them.

    For modules whose weight is read by another module's forward, such as `out_proj` of
    `nn.MultiheadAttention`: no call passes through them, so no argument can be gated.
    The instance attribute hides the parameter from `module.weight` only; optimizers
    and `state_dict` keep seeing the parameter.
    """

    def __init__(self, sites: Sequence[tuple[nn.Module, str, Site]]) -> None:
        """Gates parameters, each given by its owner, its name there, and its site."""
        self.sites = tuple(sites)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Before the forward: show the gated tensors."""
        self.reset(module)
        for owner, name, site in self.sites:
            shown = vars(owner).get(name, owner._parameters[name])
            vars(owner)[name] = site.apply_to(shown)

    def reset(self, module: nn.Module) -> None:
        """Show the parameters again."""
        for owner, name, _ in self.sites:
            vars(owner).pop(name, None)


class ResetHook(GateHook):
    """The forward hook that belongs to one that shows weights; also after an error."""

    def __init__(self, before: InputHook | ParameterHook) -> None:
        """Undoes `before`."""
        self.before = before

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the forward: show the parameters again."""
        self.before.reset(module)


class BeginHook(GateHook):
    """Tells the gates that a forward of the whole model begins; a pre-hook.

    Calling a submodule by itself begins nothing: it sees the last forward's sample.
    Under gradient checkpointing, two forwards before one backward recompute the first
    with the sample of the second; run a backward after each, or set noise=0.
    """

    def __init__(self, container: GateContainer) -> None:
        """Begins forwards of the model that owns `container`."""
        self.container = container

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Before the forward; not while it is only recorded by an exporter."""
        if not torch.compiler.is_exporting():
            self.container.begin_forward()


class PenaltyHook(GateHook):
    """Adds the sparsity term to the loss that a model returns in training.

    A loss is the entry `loss` of a mapping, or the first value of a tuple if labels
    were given. Under gradient accumulation a model that divides its loss by
    `num_items_in_batch` (the items of all micro-batches) gets the share of the term
    that its items are of all items, so that one optimizer step sees it once. Loops
    that divide the loss by the number of micro-batches divide the term as well.
    """

    def __init__(self, container: GateContainer, model: nn.Module) -> None:
        """Adds the term of `container` to the loss of `model`."""
        self.container = container
        self.names = tuple(inspect.signature(model.forward).parameters)

    def __call__(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output with the term in its loss; unchanged where it has no loss."""
        if not self.container.training or torch.compiler.is_exporting():
            return output
        given = dict(zip(self.names, args, strict=False)) | kwargs
        loss = loss_of(output, given)
        if loss is None:
            return output
        penalty = self.container.penalty() * share_of(module, given)
        return with_loss(output, loss + penalty.to(loss.dtype))


def loss_of(output: Any, given: Mapping[str, Any]) -> Tensor | None:
    """The loss in what a model returns, if it is one to descend."""
    loss: Any = None
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple) and output and _labels(given) is not None:
        loss = output[0]
    is_loss = isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad
    return loss if is_loss else None


def with_loss(output: Any, loss: Tensor) -> Any:
    if isinstance(output, Mapping):
        output["loss"] = loss  # type: ignore[index]
        return output
    if hasattr(output, "_fields"):
        return type(output)(loss, *output[1:])
    return (loss, *output[1:])


def _labels(given: Mapping[str, Any]) -> Any:
    named = (value for name, value in given.items() if "label" in name)
    return next((value for value in named if value is not None), None)


def share_of(module: nn.Module, given: Mapping[str, Any]) -> Any:
    """The part of all accumulated items that is in this micro-batch."""
    items, labels = given.get("num_items_in_batch"), _labels(given)
    if items is None or not isinstance(labels, Tensor):
        return 1.0
    shifted = given.get("shift_labels")
    if shifted is not None:
        labels = shifted
    elif _shifts_labels(module):
        labels = labels[..., 1:]
    here = (labels != IGNORED).sum()
    return here / torch.as_tensor(items, device=here.device)


IGNORED = -100
"""Label that losses skip, as torch.nn.functional.cross_entropy does."""


def _shifts_labels(module: nn.Module) -> bool:
    """Whether the loss predicts the next label, so that the first is never used."""
    config = getattr(module, "config", None)
    decoder_only = not getattr(config, "is_encoder_decoder", False)
    return decoder_only and getattr(module, "loss_type", None) in NEXT_TOKEN_LOSSES


NEXT_TOKEN_LOSSES = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "CsmForConditionalGeneration",
)
"""Values of `loss_type` in transformers whose loss shifts the labels by itself."""
