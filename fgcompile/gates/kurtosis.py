"""FineGates' kurtosis variant: rows and columns with heavy tails count less.

Of every matrix, `a = mean(x) * W` is what an average token puts through each weight,
among the rows and columns that are open. The kurtosis of a row of `a` says whether a
few of its entries carry it; such rows should stay. So the mean openness is weighted by
`softmax(-sqrt(mean z^4) / 100)` over the open rows, and columns alike. Source:
FineGates (arXiv 2602.09169), the authors' code, where the flag is off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgcompile.gates.flat import Flat
from fgcompile.gates.gate import Gate
from fgcompile.gates.objective import FineGatesObjective

TEMPERATURE = 100.0


@dataclass(eq=False)
class Watched:
    """A matrix, its two gates, and the mean of what it last read.

    Attributes:
        weight: The parameter.
        rows_first: Whether its dim 0 makes the outputs.
        rows: Gate of the outputs.
        columns: Gate of the inputs.
        mean: Mean input over batch and tokens, `[inputs]`; None before any forward.
    """

    weight: nn.Parameter
    rows_first: bool
    rows: Gate
    columns: Gate
    mean: Tensor | None = None

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Takes the mean of an input, before it is gated."""
        self.mean = x.detach().float().reshape(-1, x.shape[-1]).mean(0)

    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """What rows and columns count in their means; 0 for those that are closed."""
        weight = self.weight if self.rows_first else self.weight.T
        mean = torch.ones(weight.shape[1], device=weight.device)
        rows, columns = self.rows.open, self.columns.open
        passed = weight.float() * (mean if self.mean is None else self.mean)
        active = passed[rows][:, columns]
        return _spread(root_kurtosis(active, 1), rows), _spread(
            root_kurtosis(active, 0), columns
        )


def root_kurtosis(values: Tensor, dim: int) -> Tensor:
    """`sqrt(mean z^4)` along a dim; 0 where the values do not vary."""
    if values.shape[dim] < 2:
        return values.new_zeros(values.shape[1 - dim])
    deviation = values - values.mean(dim, keepdim=True)
    z = deviation / values.std(dim, keepdim=True)
    return z.pow(4).mean(dim).sqrt().nan_to_num(0.0, 0.0, 0.0)


def _spread(kurtosis: Tensor, active: Tensor) -> Tensor:
    weights = torch.zeros(len(active), device=active.device)
    weights[active] = torch.softmax(-kurtosis / TEMPERATURE, 0)
    return weights


class KurtosisObjective(FineGatesObjective):
    """The term of FineGates with means that are weighted by kurtosis."""

    def __init__(
        self,
        target_sparsity: float,
        weight: float,
        begin: int,
        pairs: Sequence[Watched],
    ) -> None:
        """An objective for the gates of `pairs`, in their order."""
        super().__init__(target_sparsity, weight, begin, "equal")
        self.pairs = tuple(pairs)

    def means(self, units: Flat) -> Tensor:
        """Weighted mean openness of every gate, shape `[gates]`."""
        weights = torch.cat([w for pair in self.pairs for w in pair.weights()])
        return units.sums(units.openness() * weights)
