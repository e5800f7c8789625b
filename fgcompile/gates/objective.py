"""The sparsity terms: what is added to the loss, and the state behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.config import Budget
from fgcompile.gates.gate import Gate
from fgcompile.gates.selection import units_to_prune


class Progress(NamedTuple):
    """What the optimizer has done since the last training forward.

    Attributes:
        updates: Optimizer steps that moved a gate so far, int64 scalar.
        moved: Whether there was one since the last training forward, bool scalar.
        unanimity: Median step of the units that are not pruned over the largest,
            in [0, 1]: near 1 all gates move alike, so nothing tells them apart.
    """

    updates: Tensor
    moved: Tensor
    unanimity: Tensor


class Objective(nn.Module):
    """Base of the objectives; by itself it asks for nothing."""

    def penalty(self, gates: Sequence[Gate], updates: Tensor) -> Tensor:
        """The sparsity term, a float32 scalar with gradients to every logit."""
        return sum_of([gate.openness() * 0.0 for gate in gates])

    def update(self, gates: Sequence[Gate], progress: Progress) -> None:
        """Takes up what the optimizer did, once before every training forward."""


class FineGatesObjective(Objective):
    """`weight * mean over groups of |mean openness - (1 - target_sparsity)|`.

    Source: FineGates, the authors' code: a plain L1 distance per gate, averaged over
    the gates, without multiplier or ramp; 0 before step `begin`. `weighting="cost"` is
    ours: the average weights a group by what its units are worth.
    """

    def __init__(
        self, target_sparsity: float, weight: float, begin: int, weighting: str
    ) -> None:
        """An objective without state; the arguments are those of GateConfig."""
        super().__init__()
        self.keep, self.weight = 1 - target_sparsity, weight
        self.begin, self.weighting = begin, weighting

    def penalty(self, gates: Sequence[Gate], updates: Tensor) -> Tensor:
        """The sparsity term."""
        shares = [self._share(gate) for gate in gates]
        distances = [(gate.openness().mean() - self.keep).abs() for gate in gates]
        terms = [w * d for w, d in zip(shares, distances, strict=True)]
        average = torch.stack(terms).sum() / torch.stack(shares).sum()
        return self.weight * (updates >= self.begin) * average

    def _share(self, gate: Gate) -> Tensor:
        one = torch.ones((), device=gate.params.device)
        return gate.params.sum() if self.weighting == "cost" else one


class BudgetObjective(Objective):
    """A Lagrangian that drives the counted cost to a target, and enforces it.

    With `s` the fraction of the gated cost in open units and `t` its target, the term
    is `l1 (s - t) + l2 (s - t)^2`, whose multipliers grow by gradient ascent. Its value
    counts units whose eval factor is not 0; its gradient is that of the openness,
    weighted by what each unit costs (straight-through). The target falls linearly.

    The term presses on all gates, and those that matter resist. What it has not closed
    yet, `pruned` closes: the units that score lowest, in training and in eval alike,
    so that the counted cost meets the target at every step whatever the optimizer does.
    Once the target has arrived at the limit, the selection is final and the pressure
    ends: what is left is trained without further loss of units.

    The multipliers rest while the gates move nearly in step, since more pressure would
    close them all at once. They grow with the square root of the number of units, as
    the noise in the gradient of one unit does against its share of the cost.

    Source: CoFi (Xia et al. 2022) for the Lagrangian, its ramp and zeroing the lowest
    scores; counting, zeroing already in training, and the end of it are ours.
    """

    l1: Tensor
    l2: Tensor
    target: Tensor
    final: Tensor

    def __init__(
        self, budget: Budget, totals: dict[str, float], gated: dict[str, float]
    ):
        """An objective at its start: nothing is asked yet.

        Args:
            budget: The limits.
            totals: Cost of the whole model, by what is limited.
            gated: Cost of all gated units, by what is limited.

        Raises:
            GateError: If even closing every unit would not meet a limit.
        """
        super().__init__()
        self.budget = budget
        self.costs = tuple(budget.limits)
        self.goal = tuple(
            _gated_limit(budget, what, totals[what], gated[what]) for what in self.costs
        )
        count = len(self.costs)
        self.register_buffer("l1", torch.zeros(count))
        self.register_buffer("l2", torch.zeros(count))
        self.register_buffer("target", torch.ones(count))
        self.register_buffer("final", torch.zeros((), dtype=torch.bool))

    def penalty(self, gates: Sequence[Gate], updates: Tensor) -> Tensor:
        """The sparsity term."""
        gap = self._fraction(gates) - self.target
        return (self.l1.clone() * gap + self.l2.clone() * gap * gap).sum()

    def update(self, gates: Sequence[Gate], progress: Progress) -> None:
        """Advances target, multipliers and pruned units."""
        since = (progress.updates - self.budget.begin) / self.budget.ramp
        goal = torch.tensor(self.goal, device=self.target.device)
        self.target.copy_(1 + (goal - 1) * since.clamp(0, 1))
        self._ascend(gates, progress, final=since >= 1)
        self._prune(gates)
        self.final.copy_(since >= 1)

    def _ascend(self, gates: Sequence[Gate], progress: Progress, final: Tensor) -> None:
        gap = self._fraction(gates) - self.target
        units = sum(gate.size for gate in gates)
        rate = self.budget.ascent * math.sqrt(units) * progress.moved
        rising = torch.where(progress.unanimity < UNANIMOUS, gap, gap.clamp(max=0.0))
        self.l1.add_(rate * rising).clamp_(min=0.0).mul_(~final)
        self.l2.add_(rate * rising * rising).mul_(~final)

    def _fraction(self, gates: Sequence[Gate]) -> Tensor:
        """Fraction of each cost in open units, as if nothing were pruned."""
        parts = []
        for gate in gates:
            openness = gate.openness()
            counted = (gate.score() > 0) & ~gate.closed
            open_ = counted + (openness - openness.detach())
            parts.append(self._cost(gate) @ open_)
        return torch.stack(parts).sum(0) / self._total(gates)

    def _prune(self, gates: Sequence[Gate]) -> None:
        score = torch.cat([gate.score() for gate in gates])
        costs = torch.cat(
            [self._cost(g).masked_fill(g.closed, 0.0) for g in gates], dim=1
        )
        limits = self.target * self._total(gates)
        pruned = units_to_prune(score, costs.double(), limits.double())
        sizes = [gate.size for gate in gates]
        for gate, units in zip(gates, pruned.split(sizes), strict=True):
            gate.pruned.copy_(torch.where(self.final, gate.pruned, units))

    def _total(self, gates: Sequence[Gate]) -> Tensor:
        return torch.stack([self._cost(gate).sum(1) for gate in gates]).sum(0)

    def _cost(self, gate: Gate) -> Tensor:
        return torch.stack([cast(Tensor, getattr(gate, what)) for what in self.costs])


UNANIMOUS = 0.4
"""Unanimity from which the multipliers rest; noise alone gives Adam about 0.2."""


def _gated_limit(budget: Budget, what: str, total: float, gated: float) -> float:
    """The limit on `what`, as a fraction of the gated cost."""
    limit = budget.limits[what]
    if budget.of == "gated":
        return limit
    fixed = total - gated
    if limit * total < fixed:
        raise GateError(
            f"Budget({what}={limit}, of='model') cannot be met: {fixed / total:.1%} of "
            f"{total:,.0f} {what} are outside every gate\n"
            "  Raise the limit, or gate more kinds of group."
        )
    return (limit * total - fixed) / gated


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Sum over all elements of all parts, a scalar."""
    return torch.stack([part.sum() for part in parts]).sum()
