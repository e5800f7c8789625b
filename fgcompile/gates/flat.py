"""All units of all gates side by side, so that a step costs a few operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgcompile.gates.gate import Gate
from fgcompile.gates.parametrization import Parametrization


@dataclass(frozen=True)
class Flat:
    """The units of all gates at one moment; every tensor has shape `[n]`.

    Attributes:
        parametrization: How a position becomes a factor; one for all gates.
        sizes: Units of each gate.
        theta: Positions, with gradients to the logits.
        closed: Units that the user closed.
        pruned: Units that the budget keeps closed.
        importance: What the loss would notice of their closing; see `Gate`.
        params: Parameters [count] that a unit is worth.
        macs: MACs [count] that a unit is worth.
    """

    parametrization: Parametrization
    sizes: tuple[int, ...]
    theta: Tensor
    closed: Tensor
    pruned: Tensor
    importance: Tensor
    params: Tensor
    macs: Tensor

    def openness(self) -> Tensor:
        """Smooth stand-in for "is open", in [0, 1]; 0 for units the user closed."""
        openness = self.parametrization.openness(self.theta)
        return openness.masked_fill(self.closed, 0.0)

    def score(self) -> Tensor:
        """The eval factors before they are clamped: how far from closing units are."""
        return self.parametrization.stretched(self.theta, None)

    def costs(self, what: Sequence[str]) -> Tensor:
        """What units are worth, one row per kind of cost, shape `[len(what) n]`."""
        return torch.stack(
            [{"params": self.params, "macs": self.macs}[w] for w in what]
        )

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the units of each gate, shape `[gates]`."""
        return torch.stack([part.sum() for part in values.split(self.sizes)])


def flatten(gates: Sequence[Gate]) -> Flat:
    """The units of `gates` as they are now."""
    theta = torch.cat([gate.position for gate in gates])
    anchors = [gate.anchor for gate in gates if gate.anchor is not None]
    if anchors:
        theta = torch.cat(anchors) + (theta - torch.cat([gate.seen for gate in gates]))
    return Flat(
        gates[0].parametrization,
        tuple(gate.size for gate in gates),
        theta,
        torch.cat([gate.closed for gate in gates]),
        torch.cat([gate.pruned for gate in gates]),
        torch.cat([gate.importance for gate in gates]),
        torch.cat([gate.params for gate in gates]),
        torch.cat([gate.macs for gate in gates]),
    )
