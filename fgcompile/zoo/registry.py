"""The zoo: small models with random weights, built offline, one entry each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: Unique; a variant follows a colon ("bert:eager").
        factory: Makes the model, from the global random state.
        inputs: Makes example inputs; None where capture makes them itself.
        unseen: Whether it is kept out of development, to test generality.
    """

    name: str
    factory: Callable[[], nn.Module]
    inputs: Callable[[], Inputs] | None = None
    unseen: bool = False

    def build(self) -> nn.Module:
        """The model in eval mode; equal for every call, no parameter is special."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.factory().eval()
            randomise(model)
        return model

    def example_inputs(self) -> Inputs | None:
        """Inputs by argument name, or None for a transformers model."""
        if self.inputs is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.inputs()


_ENTRIES: dict[str, Entry] = {}


def register(entry: Entry) -> None:
    """Add an entry.

    Raises:
        ValueError: If the name is taken.
    """
    if entry.name in _ENTRIES:
        raise ValueError(f"zoo entry {entry.name} is registered twice")
    _ENTRIES[entry.name] = entry


def entries() -> Iterator[Entry]:
    """All entries in the order of registration."""
    yield from _ENTRIES.values()


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        KeyError: If there is none.
    """
    return _ENTRIES[name]


def randomise(model: nn.Module) -> None:
    """Make every tensor generic: no zero bias, no unit norm, no equal variance.

    Matrices get unit gain, so that activations neither vanish nor explode; vectors
    move a little from where they were initialised.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                _randomise_statistics(module)


def _randomise_statistics(norm: nn.modules.batchnorm._BatchNorm) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0.0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
