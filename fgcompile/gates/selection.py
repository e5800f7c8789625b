"""Which units a budget closes: the lowest scores, until the cost fits."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 3


def units_to_prune(
    score: Tensor, costs: Tensor, limits: Tensor, protected: Tensor | None = None
) -> Tensor:
    """Units to close so that every cost of the others is within its limit.

    Walks the units from the lowest score up. Where the next one would undershoot the
    limit, cheaper ones behind it fill the rest; where none is cheap enough, one more
    goes and the best of those that went come back as far as there is room. So the
    remaining cost is below the limit by less than the cheapest unit, or by less than
    the cheapest pruned one. Units that cost nothing stay.

    Args:
        score: One per unit, shape `[n]`.
        costs: Cost of each unit, one row per limit, float64, shape `[limits n]`.
        limits: Limit on the sum of each row over the units that stay.
        protected: Units that are pruned only where the others cannot fill a limit,
            bool, shape `[n]`.

    Returns:
        Bool, shape `[n]`.
    """
    # Only tensor operations: this runs in every training forward, also when compiled.
    order = score.argsort(stable=True)
    pruned = torch.zeros_like(score, dtype=torch.bool)
    spare = pruned if protected is None else protected[order]
    costs = costs[:, order]
    for cost, limit in zip(costs, limits, strict=True):
        pruned = _fill(pruned, cost, limit, spare)
    for _ in range(ROUNDS):
        pruned = pruned & ~_refill(pruned, costs, limits)
    for cost, limit in zip(costs, limits, strict=True):
        pruned = _fill(pruned, cost, limit, torch.zeros_like(spare))
    return torch.zeros_like(pruned).scatter(0, order, pruned)


def _fill(pruned: Tensor, cost: Tensor, limit: Tensor, spared: Tensor) -> Tensor:
    """`pruned`, and as many of the lowest units as are needed but not spared."""
    for _ in range(ROUNDS):
        pruned = pruned | _fitting(pruned, cost, limit, spared)
    return pruned | _cheapest(pruned, cost, limit, spared)


def _refill(pruned: Tensor, costs: Tensor, limits: Tensor) -> Tensor:
    """The highest of the pruned units that all limits have room for again."""
    rooms = limits - costs.masked_fill(pruned, 0.0).sum(1) + _rounding(costs)
    fits = pruned & (costs <= rooms[:, None]).all(0)
    running = costs.masked_fill(~fits, 0.0).flip(1).cumsum(1).flip(1)
    return fits & (running <= rooms[:, None]).all(0)


def _excess(pruned: Tensor, cost: Tensor, limit: Tensor) -> Tensor:
    # Rounded to nothing where it is nothing but the rounding of a sum.
    excess = cost.masked_fill(pruned, 0.0).sum() - limit
    return torch.where(excess > _rounding(cost), excess, 0.0)


def _rounding(cost: Tensor) -> Tensor:
    return 1e-9 * cost.sum(-1)


def _fitting(pruned: Tensor, cost: Tensor, limit: Tensor, spared: Tensor) -> Tensor:
    """The first units that together cost at most what is still too much."""
    excess = _excess(pruned, cost, limit)
    fits = ~pruned & ~spared & (cost > 0) & (cost <= excess + _rounding(cost))
    running = cost.masked_fill(~fits, 0.0).cumsum(0)
    return fits & (running <= excess + _rounding(cost)) & (excess > 0)


def _cheapest(pruned: Tensor, cost: Tensor, limit: Tensor, spared: Tensor) -> Tensor:
    """The first of the cheapest units left, if the limit is still exceeded."""
    left = cost.masked_fill(pruned | spared | (cost == 0), float("inf"))
    cheapest = (left == left.min()) & left.isfinite()
    first = cheapest & (cheapest.cumsum(0) == 1)
    return first & (_excess(pruned, cost, limit) > 0)
