"""Distillation: a gated model is pulled towards the dense one it came from.

The loss that the model returns in training becomes
`task * L + logits * T^2 KL(teacher || student) + hidden * mean squared distance`, with
both distributions softened by the temperature T. Source: Hinton et al. 2015 for the
logits; CoFi (arXiv 2204.00408), section 3.3, for hidden states while pruning.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.hooks import loss_of, share_of, with_loss
from fgcompile.gates.mergeable import Mergeable
from fgcompile.methods.distillation_outputs import Masks, logits_of, state_pairs
from fgcompile.methods.distillation_terms import hidden_distance, logit_distance
from fgcompile.methods.distillation_watch import (
    METHOD,
    keep,
    kept_at,
    kept_from,
    module_at,
    release,
)
from fgcompile.methods.weight_hooks import MethodHook, remove_hooks

ModuleT = TypeVar("ModuleT", bound=nn.Module)

UNUSED = frozenset({"labels", "num_items_in_batch"})
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
        GateError: If a teacher is there already, or is the model itself, or a module
            has no such path, or hidden states are asked of a model that returns none.
    """
    config = config or DistillationConfig()
    if any(module is model for module in teacher.modules()):
        raise GateError(
            f"cannot distil {type(model).__name__} from itself\n"
            "  Pass a teacher of its own: copy.deepcopy(model) before gates are there."
        )
    if _hook_of(model) is not None:
        raise GateError(
            f"{type(model).__name__} has a teacher already\n"
            "  Remove it with fgcompile.methods.remove_distillation(model)."
        )
    for path, other in config.paths.items():
        module_at(model, path), module_at(teacher, other)
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
    model.register_forward_hook(_ForgetHook(hook), always_call=True)
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
        if not _acts(module):
            return None
        self.hook.term = None  # so that one batch's graph is held, not two
        if not self.hook.config.hidden:
            return None
        if self.hook.config.paths:
            self.hook.watch(module)
            return None
        return args, kwargs | {"output_hidden_states": True}


class DistillHook(Mergeable, MethodHook):
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
        # A decoder whose inputs are not given makes them of the labels.
        reads = inspect.signature(teacher.forward).parameters
        makes = {"labels", "decoder_input_ids"} <= reads.keys()
        self.unused = UNUSED - {"labels"} if makes else UNUSED
        self.last: dict[str, Tensor] = {}
        self.term: Tensor | None = None
        self._seen: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without graphs, which belong to this model and cannot be copied."""
        return vars(self) | {"term": None, "_seen": {}}

    def merge_into(self, model: nn.Module) -> None:
        """See `remove_distillation`: what was learnt is in the weights."""
        remove_distillation(model)

    def watch(self, module: nn.Module) -> None:
        """Keeps what the named modules of the student return in this forward."""
        self.forget(module)  # what an interrupt of the last forward may have left
        keep(module, self.config.paths, self._seen)

    def forget(self, module: nn.Module) -> dict[str, Tensor]:
        """What was kept; it is kept no more, and no module is watched."""
        release(module, self.config.paths)
        seen, self._seen = self._seen, {}
        return seen

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output, with the term in its loss."""
        if not _acts(module):
            return output
        given = dict(zip(self.names, args, strict=False)) | kwargs
        term = self._term(module, given, output, *self._teach(module, args, kwargs))
        loss = loss_of(output, given)
        if loss is None:
            self.term = term
            return output
        term = term * share_of(module, given)
        return with_loss(output, self.config.task * loss + term.to(loss.dtype))

    def _term(
        self,
        module: nn.Module,
        given: Mapping[str, Any],
        output: Any,
        expected: Any,
        named: Sequence[tuple[str, Tensor, Tensor]],
    ) -> Tensor:
        masks = Masks.of(module, given)
        parts = {}
        if self.config.logits:
            own, other = logits_of(output), logits_of(expected)
            temperature = self.config.temperature
            parts["logits"] = logit_distance(own, other, temperature, masks.decoder)
        if self.config.hidden:
            pairs = [(own, other, masks.at(module, at)) for at, own, other in named]
            if not self.config.paths:
                pairs = state_pairs(output, expected, masks)
            each = [hidden_distance(*pair) for pair in pairs]
            parts["hidden"] = torch.stack(each).mean()
        self.last = {name: part.detach() for name, part in parts.items()}
        return sum(
            (getattr(self.config, name) * part for name, part in parts.items()),
            next(iter(parts.values())) * 0.0,
        )

    @torch.no_grad()
    def _teach(
        self, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, list[tuple[str, Tensor, Tensor]]]:
        """What the teacher returns, and by path what named modules of both did."""
        # First, as the teacher may share modules that are watched.
        seen = self.forget(module)
        device = next(
            (a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None
        )
        first = next(self.teacher.parameters(), None)
        if device is not None and first is not None and first.device != device:
            self.teacher.to(device)
        inputs = {k: v for k, v in kwargs.items() if k not in self.unused}
        self.teacher.eval()
        paths = self.config.paths if self.config.hidden else {}
        with kept_from(self.teacher, {*paths.values()}) as kept:
            expected = self.teacher(*args, **inputs)
        return expected, [
            (own, kept_at(module, seen, own), kept_at(self.teacher, kept, at))
            for own, at in paths.items()
        ]


class _ForgetHook(MethodHook):
    """Lets go of what was seen, also after an error; a forward hook."""

    method = METHOD

    def __init__(self, hook: DistillHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if _acts(module):
            self.hook.forget(module)


def _acts(module: nn.Module) -> bool:
    return module.training and not torch.compiler.is_exporting()


def _hook_of(model: nn.Module) -> DistillHook | None:
    hooks = (h for m in model.modules() for h in m._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, DistillHook)), None)
