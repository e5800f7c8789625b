"""What methods add to a model beside its gates, and leave in its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Mergeable(ABC):
    """A module or a hook in a model, without which the weights can hold the same."""

    @abstractmethod
    def merge_into(self, model: nn.Module) -> None:
        """`model`, in which this is, computes the same without it. In place."""


def merge_methods(model: nn.Module) -> None:
    """The weights of `model` hold what methods added to it. In place."""
    added = [
        part
        for module in model.modules()
        for part in (
            module,
            *module._forward_pre_hooks.values(),
            *module._forward_hooks.values(),
        )
        if isinstance(part, Mergeable)
    ]
    for part in added:
        part.merge_into(model)
