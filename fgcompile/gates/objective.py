"""The sparsity terms: what is added to the loss, and the state behind it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fgcompile.errors import GateError
from fgcompile.gates.config import Budget
from fgcompile.gates.flat import Flat
from fgcompile.gates.gate import KeepsDtype
from fgcompile.gates.latency import LatencyCurves, units_over
from fgcompile.gates.selection import units_to_prune


class Progress(NamedTuple):
    """What the optimizer has done since the last training forward.

    Attributes:
        updates: Optimizer steps that moved a gate so far, int64 scalar.
        moved: Whether there was one since the last training forward, bool scalar.
        unanimity: Median step towards closed of the units that are not pruned, over
            the largest step, in [-1, 1]: near 1 all gates close alike, so nothing
            tells them apart.
    """

    updates: Tensor
    moved: Tensor
    unanimity: Tensor


class Objective(KeepsDtype):
    """Base of the objectives; by itself it asks for nothing."""

    def penalty(self, units: Flat, updates: Tensor) -> Tensor:
        """The sparsity term, a float32 scalar with gradients to every logit."""
        return (units.openness() * 0.0).sum()

    def update(self, units: Flat, progress: Progress) -> Tensor:
        """Takes up what the optimizer did, once before every training forward.

        Returns:
            The units to keep closed from now on, bool, shape `[n]`.
        """
        return units.pruned


class FineGatesObjective(Objective):
    """`weight * mean over groups of |mean openness - (1 - target_sparsity)|`.

    Source: FineGates, the authors' code: a plain L1 distance per gate, averaged over
    the gates, without multiplier or ramp; 0 before step `begin`. `weighting="cost"` is
    ours: the average weights a group by the parameters that its units are worth.
    """

    def __init__(
        self, target_sparsity: float, weight: float, begin: int, weighting: str
    ) -> None:
        """An objective without state; the arguments are those of GateConfig."""
        super().__init__()
        self.keep, self.weight = 1 - target_sparsity, weight
        self.begin, self.weighting = begin, weighting

    def penalty(self, units: Flat, updates: Tensor) -> Tensor:
        """The sparsity term."""
        distances = (self.means(units) - self.keep).abs()
        by_cost = self.weighting == "cost"
        shares = units.sums(units.params) if by_cost else torch.ones_like(distances)
        average = (shares * distances).sum() / shares.sum()
        return self.weight * (updates >= self.begin) * average

    def means(self, units: Flat) -> Tensor:
        """Mean openness of every gate, shape `[gates]`."""
        counts = units.sums(torch.ones_like(units.params))
        return units.sums(units.openness()) / counts


class BudgetObjective(Objective):
    """A Lagrangian that drives the counted cost to a target, and enforces it.

    With `s` the fraction of the gated cost in open units and `t` its target, the term
    is `l1 (s - t) + l2 (s - t)^2`, whose multipliers grow by gradient ascent. Its value
    counts units whose eval factor is not 0; its gradient is that of the openness,
    weighted by what each unit costs (straight-through). The target falls linearly.

    Whatever the term has not closed, `pruned` closes: the units whose importance is
    least for what they cost, in training and in eval alike, so that the counted cost
    meets the target at every step whatever the optimizer does. Importance in different
    groups compares only roughly, so each group keeps a part of its best units. Once
    the target has arrived at the limit, the selection is final and the pressure ends:
    what is left is trained without further loss of units.

    A limit on latency is counted by the curves that were measured, after the others:
    how much a unit saves depends on how many are left.

    By default (`ascent=0`) there is no pressure: a term that presses on all gates
    alike weakens the units that stay.

    The multipliers rest while the gates close nearly in step, since more pressure would
    close them all at once. They grow with the square root of the number of units, as
    the noise in the gradient of one unit does against its share of the cost.

    Source: CoFi (Xia et al. 2022) for the Lagrangian, its ramp and zeroing the lowest;
    Molchanov et al. (CVPR 2019) for the importance; counting, zeroing already in
    training, and the end of it are ours.
    """

    l1: Tensor
    l2: Tensor
    target: Tensor
    final: Tensor

    def __init__(
        self,
        budget: Budget,
        totals: dict[str, float],
        gated: dict[str, float],
        curves: LatencyCurves | None = None,
    ):
        """An objective at its start: nothing is asked yet.

        Args:
            budget: The limits.
            totals: Cost of the whole model, by what is limited.
            gated: Cost of all gated units, by what is limited.
            curves: Of the latency, if that is limited.

        Raises:
            GateError: If even closing every unit would not meet a limit.
        """
        super().__init__()
        self.budget, self.curves = budget, curves
        self.costs = tuple(budget.limits)
        self.counted = tuple(what for what in self.costs if what != "latency")
        goals = {
            what: _gated_limit(budget, what, totals[what], gated[what])
            for what in self.counted
        }
        if curves is not None:
            goals["latency"] = _latency_limit(budget, curves)
        self.goal = tuple(goals[what] for what in self.costs)
        count = len(self.costs)
        self.register_buffer("l1", torch.zeros(count))
        self.register_buffer("l2", torch.zeros(count))
        self.register_buffer("target", torch.ones(count))
        self.register_buffer("final", torch.zeros((), dtype=torch.bool))

    def penalty(self, units: Flat, updates: Tensor) -> Tensor:
        """The sparsity term."""
        gap = self._fraction(units) - self.target
        return (self.l1.clone() * gap + self.l2.clone() * gap * gap).sum()

    def update(self, units: Flat, progress: Progress) -> Tensor:
        """Advances target and multipliers; returns the units to keep closed."""
        since = (progress.updates - self.budget.begin) / self.budget.ramp
        goal = torch.tensor(self.goal, device=self.target.device)
        self.target.copy_(1 + (goal - 1) * since.clamp(0, 1))
        self._ascend(units, progress, final=since >= 1)
        selected = torch.where(self.final, units.pruned, self._selection(units))
        self.final.copy_(since >= 1)
        return selected

    def _ascend(self, units: Flat, progress: Progress, final: Tensor) -> None:
        gap = self._fraction(units) - self.target
        rate = self.budget.ascent * math.sqrt(sum(units.sizes)) * progress.moved
        rising = torch.where(progress.unanimity < UNANIMOUS, gap, gap.clamp(max=0.0))
        self.l1.add_(rate * rising).clamp_(min=0.0).mul_(~final)
        self.l2.add_(rate * rising * rising).mul_(~final)

    def _fraction(self, units: Flat) -> Tensor:
        """Fraction of each cost in open units, as if nothing were pruned."""
        openness = units.openness()
        counted = (units.score() > 0) & ~units.closed
        smooth = counted + (openness - openness.detach())
        fractions = []
        if self.counted:
            costs = units.costs(self.counted)
            fractions.append(costs @ smooth / costs.sum(1))
        if self.curves is not None:
            # The value is that of the curves, the gradient what a unit is worth.
            slope = (self._latency_costs(units) * smooth).sum()
            value = self._latency(units, counted) - slope.detach()
            fractions.append((value + slope)[None].float())
        return torch.cat(fractions)

    def _latency(self, units: Flat, counted: Tensor) -> Tensor:
        """Fraction of the dense latency if the units in `counted` are open."""
        assert self.curves is not None
        return self.curves.fraction(units.sums(counted.double()))

    def _latency_costs(self, units: Flat) -> Tensor:
        assert self.curves is not None
        costs = self.curves.unit_costs()
        sizes = torch.tensor(units.sizes, device=costs.device)
        return costs.repeat_interleave(sizes, output_size=sum(units.sizes)).float()

    def _selection(self, units: Flat) -> Tensor:
        worth = self._worth(units)
        protected = self._protected(units, worth)
        pruned = torch.zeros_like(units.closed)
        if self.counted:
            costs = units.costs(self.counted).double()
            limits = self.target[: len(self.counted)].double() * costs.sum(1)
            still = costs.masked_fill(units.closed, 0.0)
            pruned = units_to_prune(worth, still, limits, protected)
        if self.curves is None:
            return pruned
        gone = pruned | units.closed
        order = (worth + 2 * worth.max().clamp_min(1) * protected).argsort(stable=True)
        limit = self.target[-1].double() + ROUNDING
        return (
            pruned
            | units_over(
                order, gone, lambda closed: self._latency(units, ~closed) <= limit
            )
            & ~units.closed
        )

    def _worth(self, units: Flat) -> Tensor:
        """Importance of each unit for what it costs; scores break ties."""
        if self.counted:
            cost = units.costs(self.counted)[0]
        else:
            cost = self._latency_costs(units)
        worth = units.importance / cost.clamp_min(1e-12)
        scale = worth.max().clamp_min(1e-30)
        return worth / scale + 1e-6 * units.score()

    def _protected(self, units: Flat, worth: Tensor) -> Tensor:
        """The best units of every gate: its share, times `evenness`."""
        share = self.budget.evenness * self._even_share(units)
        parts = []
        for score in worth.split(units.sizes):
            order = score.argsort(descending=True, stable=True)
            # Rounded down, so that no group of few units breaks the budget.
            best = (
                torch.arange(len(score), device=score.device)
                < (share * len(score) + 1e-6).floor()
            )
            parts.append(torch.empty_like(best).scatter(0, order, best))
        return torch.cat(parts)

    def _even_share(self, units: Flat) -> Tensor:
        """Share of its units that every gate would keep if all were pruned alike."""
        shares = self.target
        if self.curves is not None:
            fixed = self._latency(units, torch.zeros_like(units.closed)).to(shares)
            even = (shares[-1:] - fixed) / (1 - fixed)
            shares = torch.cat([shares[:-1], even.clamp(0, 1)])
        return shares.min()


ROUNDING = 1e-9
"""A latency that exceeds its limit by less than this is rounding."""

UNANIMOUS = 0.4
"""Unanimity from which the multipliers rest; noise alone stays well below it."""


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


def _latency_limit(budget: Budget, curves: LatencyCurves) -> float:
    limit = budget.limits["latency"]
    fixed = float(curves.fraction(torch.zeros(len(curves.units))))
    if limit < fixed:
        raise GateError(
            f"Budget(latency={limit}) cannot be met: {fixed:.1%} of the dense model's "
            "latency is outside every gate\n"
            "  Raise the limit, or gate more kinds of group."
        )
    return limit
