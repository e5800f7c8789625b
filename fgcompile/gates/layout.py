"""Which units of a program a gate acts on, and the steps that touch them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.analysis.kinds import data_nodes
from fgcompile.analysis.steps import Align, Flow, Step
from fgcompile.units import BoolArray, UnitIds


class Layout:
    """Which groups every step touches, found once for all gates.

    Attributes:
        analysis: The groups.
        data: Nodes whose tensors depend on the inputs of the model.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.data = data_nodes(analysis.program)
        classes, roles = analysis.classes, analysis.roles
        place = np.full(classes.count + 1, -1, np.int64)
        for number, group in enumerate(analysis.groups):
            place[group.classes] = (number << _SHIFT) + np.arange(group.size)
        # A gate on a head acts on the values that it passes on. Where a statistic runs
        # across heads, a closed head must be zero before it: it acts on all of a head.
        passing = classes.mark(np.flatnonzero(roles.passed))[classes.labels]
        crossed = _crossed_heads(analysis)[classes.owner]
        owner = np.where(passing | crossed, classes.owner, classes.count)
        heads = np.append(classes.heads, False)
        self._inside = np.where(heads, place, -1)[owner]
        owning = np.zeros(classes.count + 1, bool)
        owning[owner] = True
        # Heads that are dims of parameters own nothing, and are gated as they are.
        self._own = np.where(heads & owning, -1, place)[classes.labels]
        self._summarised = self._groups_of(np.flatnonzero(roles.summarised))
        self._steps = self._steps_by_group()

    def target(self, group: CoupledGroup) -> Target:
        """What a gate of `group` acts on."""
        number = self._number(group)
        place = self._own
        if group.kind == "head" and (self._inside >> _SHIFT == number).any():
            place = self._inside
        steps = self._steps.get(number, [])
        return Target(self, group, number, place, steps, number in self._summarised)

    def _number(self, group: CoupledGroup) -> int:
        return next(k for k, g in enumerate(self.analysis.groups) if g is group)

    def _groups_of(self, ids: UnitIds) -> set[int]:
        ids = ids[ids >= 0]
        found: set[int] = set()
        for place in (self._own[ids], self._inside[ids]):
            numbers = place[place >= 0] >> _SHIFT
            found.update(np.flatnonzero(np.bincount(numbers)).tolist())
        return found

    def _steps_by_group(self) -> dict[int, list[Step]]:
        flow = self.analysis.flow
        touched = [
            set().union(*(self._groups_of(plane) for plane in value.planes))
            for value in flow.values
        ]
        steps: dict[int, list[Step]] = {}
        for step in flow.steps:
            values = [v for v in (*step.operands, *step.outputs) if v is not None]
            for number in set().union(*(touched[v] for v in values)):
                steps.setdefault(number, []).append(step)
        return steps


_SHIFT = 32


def _crossed_heads(analysis: Analysis) -> BoolArray:
    """Flag [classes + 1] of the heads that a sum or a statistic runs across."""
    flow, owner = analysis.flow, analysis.classes.owner
    crossed = np.zeros(analysis.classes.count + 1, bool)
    for step in flow.steps:
        if step_kind(step) not in ("normalization", "reduction"):
            continue
        assert isinstance(step, Align)
        for slot in step.slots:
            ids = slot.spread(flow.values[slot.value].planes[slot.plane])
            owners = np.where(ids >= 0, owner[ids], -1)
            for axis in set(slot.axes) & set(summed_axes(step)):
                if not (owners == owners.take([0], axis)).all():
                    crossed[owners[owners >= 0]] = True
    return crossed


def summed_axes(step: Align) -> tuple[int, ...]:
    """Factors over which a normalisation or reduction sums."""
    named = [step.factors.index(f) for f in step.rule.statistics]
    return (*named, *step.contracted)


@dataclass(frozen=True, eq=False)
class Target:
    """A group to gate, and the steps that touch its units.

    Attributes:
        layout: Where all groups are.
        group: The group.
        number: Its position in the analysis.
        place: Position of a group, and of a unit in it, for each unit of the flow.
        steps: Steps with an operand or output that has units of the group.
        summarised: Whether a sum or a statistic runs over its units.
    """

    layout: Layout
    group: CoupledGroup
    number: int
    place: UnitIds
    steps: list[Step]
    summarised: bool

    @property
    def flow(self) -> Flow:
        """The flow that was analysed."""
        return self.layout.analysis.flow

    @property
    def data(self) -> set[Node]:
        """Nodes whose tensors depend on the inputs of the model."""
        return self.layout.data

    def carries(self, value: int | None) -> bool:
        """Whether a value has elements of the group."""
        return value is not None and any(
            bool((self.index(plane) >= 0).any())
            for plane in self.flow.values[value].planes
        )

    def index(self, plane: UnitIds) -> UnitIds:
        """Unit of the gate at each element of a plane, -1 for others."""
        place = np.where(plane >= 0, self.place[plane], -1)
        unit = place & ((1 << _SHIFT) - 1)
        return np.where(place >> _SHIFT == self.number, unit, -1)


def step_kind(step: Step) -> str:
    """Kind of a step's rule, "" where it has none."""
    return step.rule.kind if isinstance(step, Align) else ""
