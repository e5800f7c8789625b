"""Distillation: a gated model is pulled towards the dense one it came from.

The loss that the model returns in training becomes
`task * L + logits * T^2 KL(teacher || student) + hidden * mean squared distance`, with
both distributions softened by the temperature T. Source: Hinton et al. 2015 for the
logits; CoFi (arXiv 2204.00408), section 3.3, for hidden states while pruning.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.hooks import loss_of, share_of, with_loss
from fgcompile.methods.distillation_terms import (
    entry_of,
    hidden_distance,
    logit_distance,
    logits_of,
)
from fgcompile.methods.weight_hooks import MethodHook, remove_hooks

ModuleT = TypeVar("ModuleT", bound=nn.Module)

METHOD = "distillation"
UNUSED = ("labels", "num_items_in_batch")
"""Arguments that the teacher does without."""


@dataclass(frozen=True)
class DistillationConfig:
    """What is compared, and how much it counts.

    Attributes:
        temperature: Divides the logits of both models. Logits of one column, as in
            regression, are compared by their squared distance instead.
        task: Factor of the model's own loss.
        logits: Factor of the distance of the logits.
        hidden: Factor of the distance of the hidden states.
        layers: Paths of modules whose results are compared; of a mapping, those of
            the student and, for each, that of the teacher. Empty takes all hidden
            states that a transformers model returns.
    """

    temperature: float = 2.0
    task: float = 1.0
    logits: float = 1.0
    hidden: float = 1.0
    layers: Sequence[str] | Mapping[str, str] = ()

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            GateError: If one makes no sense.
        """
        if self.temperature <= 0 or min(self.task, self.logits, self.hidden) < 0:
            raise GateError(
                f"{self}: expected a temperature above 0, and no negative factor"
            )
        if not self.logits and not self.hidden:
            raise GateError(
                "DistillationConfig: both factors are 0, so nothing is done"
            )

    @classmethod
    def cofi(cls) -> DistillationConfig:
        """CoFi's factors: 0.1 for the logits, 0.9 for the hidden states, T 2."""
        return cls(temperature=2.0, task=0.0, logits=0.1, hidden=0.9)

    @property
    def paths(self) -> dict[str, str]:
        """Modules of the teacher by those of the student."""
        if isinstance(self.layers, Mapping):
            return dict(self.layers)
        return dict(zip(self.layers, self.layers, strict=True))


def distill(
    model: ModuleT, teacher: nn.Module, config: DistillationConfig | None = None
) -> ModuleT:
    """Distils `teacher` into `model` in every training forward, until removed.

    A model that returns a loss returns the sum; for others, add
    `distillation_loss(model)` to yours. Eval forwards are as before. The teacher gets
    the model's own inputs, in eval mode and without gradients, and is no part of its
    parameters, checkpoints or `state_dict`.

    Args:
        model: What is trained; in place.
        teacher: Takes the same inputs; usually a copy from before `insert_gates`.
        config: What is compared.

    Returns:
        The same object.

    Raises:
        GateError: If a teacher is there already, or a module has no such path, or
            hidden states are asked of a model that returns none.
    """
    config = config or DistillationConfig()
    if _hook_of(model) is not None:
        raise GateError(
            f"{type(model).__name__} has a teacher already\n"
            "  Remove it with fgcompile.methods.remove_distillation(model)."
        )
    for path, other in config.paths.items():
        _module(model, path), _module(teacher, other)
    if config.hidden and not config.paths and not hasattr(model, "main_input_name"):
        raise GateError(
            f"{type(model).__name__} returns no hidden states\n"
            "  Name modules to compare with DistillationConfig(layers=[...]), or set "
            "hidden=0."
        )
    hook = DistillHook(model, teacher, config)
    model.register_forward_pre_hook(_AskHook(hook), with_kwargs=True)
    # Before the hook that adds the penalty of gates, which `task` must not scale.
    model.register_forward_hook(hook, prepend=True, with_kwargs=True, always_call=False)
    return model


def remove_distillation(model: ModuleT) -> ModuleT:
    """`model` has no teacher any more; the same object."""
    remove_hooks(model, METHOD)
    return model


def distillation_loss(model: nn.Module) -> Tensor:
    """The term of the last training forward, for models that return no loss.

    Raises:
        GateError: If there is no teacher, no training forward yet, or the model
            returned a loss, which holds the term already.
    """
    hook = _hook_of(model)
    if hook is None or hook.term is None:
        name = type(model).__name__
        missing = f"{name} has no teacher"
        if hook is not None:
            missing = f"{name} holds no term of its own"
        raise GateError(
            f"{missing}\n"
            "  Call distill(model, teacher), then the model in training; a loss that "
            "it returns has the term already."
        )
    return hook.term


class _AskHook(MethodHook):
    """Asks a transformers model for its hidden states, and watches named modules."""

    method = METHOD

    def __init__(self, hook: DistillHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not _acts(module) or not self.hook.config.hidden:
            return None
        if self.hook.config.paths:
            self.hook.watch(module)
            return None
        return args, kwargs | {"output_hidden_states": True}


class DistillHook(MethodHook):
    """Runs the teacher after a training forward, and adds the term to the loss.

    Attributes:
        config: What is compared.
        last: Values of the parts in the last training forward, without gradients.
        term: The whole term with gradients, if the model returned no loss.
    """

    method = METHOD

    def __init__(
        self, model: nn.Module, teacher: nn.Module, config: DistillationConfig
    ) -> None:
        """Distils `teacher` into `model`."""
        self.teacher, self.config = teacher, config
        self.names = tuple(inspect.signature(model.forward).parameters)
        self.last: dict[str, Tensor] = {}
        self.term: Tensor | None = None
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def watch(self, module: nn.Module) -> None:
        """Keeps what the named modules of the student return in this forward."""
        self._seen = {}
        self._handles = [
            _module(module, path).register_forward_hook(_keeper(self._seen, path))
            for path in self.config.paths
        ]

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output, with the term in its loss."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not _acts(module):
            return output
        given = dict(zip(self.names, args, strict=False)) | kwargs
        term = self._term(output, given, args, kwargs)
        loss = loss_of(output, given)
        if loss is None:
            self.term = term
            return output
        self.term = None
        term = term * share_of(module, given)
        return with_loss(output, self.config.task * loss + term.to(loss.dtype))

    def _term(
        self, output: Any, given: Mapping[str, Any], args: Any, kwargs: Any
    ) -> Tensor:
        expected, kept = self._teach(args, kwargs)
        mask = given.get("attention_mask")
        parts = {}
        if self.config.logits:
            own, other = logits_of(output), logits_of(expected)
            parts["logits"] = logit_distance(own, other, self.config.temperature, mask)
        if self.config.hidden:
            pairs = self._hidden_pairs(output, expected, kept)
            each = [hidden_distance(own, other, mask) for own, other in pairs]
            parts["hidden"] = torch.stack(each).mean()
        self.last = {name: part.detach() for name, part in parts.items()}
        return sum(
            (getattr(self.config, name) * part for name, part in parts.items()),
            next(iter(parts.values())) * 0.0,
        )

    @torch.no_grad()
    def _teach(self, args: Any, kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """What the teacher returns, and the results of its named modules."""
        device = next((a.device for a in (*args, *kwargs.values()) if _is(a)), None)
        first = next(self.teacher.parameters(), None)
        if device is not None and first is not None and first.device != device:
            self.teacher.to(device)
        inputs = {k: v for k, v in kwargs.items() if k not in UNUSED}
        self.teacher.eval()
        with _kept(self.teacher, self.config.paths.values()) as kept:
            return self.teacher(*args, **inputs), kept

    def _hidden_pairs(
        self, output: Any, expected: Any, kept: dict[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        if self.config.paths:
            named = self.config.paths.items()
            return [(self._seen[own], kept[other]) for own, other in named]
        own, other = (entry_of(o, "hidden_states") for o in (output, expected))
        return list(zip(own, other, strict=True))


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


def _acts(module: nn.Module) -> bool:
    return module.training and not torch.compiler.is_exporting()


def _keeper(seen: dict[str, Tensor], path: str) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen[path] = output if _is(output) else output[0]

    return keep


@contextmanager
def _kept(model: nn.Module, paths: Any) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    handles = [
        _module(model, path).register_forward_hook(_keeper(seen, path))
        for path in paths
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise GateError(
            f"cannot distil: {type(model).__name__} has no module {path!r}"
        ) from None


def _hook_of(model: nn.Module) -> DistillHook | None:
    hooks = (h for m in model.modules() for h in m._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, DistillHook)), None)
