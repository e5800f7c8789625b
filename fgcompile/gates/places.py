"""Where in a graph a gate must act so that a closed unit is gone.

A place is an operand of a node, or the output of a node. Two strategies:

- *Readers*: gate the operand of every contraction with a weight that sums over the
  units. Right where nothing else sees them; one place per group, mostly.
- *Writers*: gate every value in which the units would not be zero by themselves, so
  that they are zero everywhere. Needed where a statistic or an output sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Node

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.analysis.kinds import data_nodes, is_weight
from fgcompile.analysis.steps import Align, Flow, Move, Slot, Step
from fgcompile.units import UnitIds


@dataclass(frozen=True, eq=False)
class Place:
    """A value that is gated.

    Attributes:
        node: The node that reads or produces it.
        operand: The value, if it is gated for that reader alone; None for the output
            of `node`.
        step: The step of `node`.
        weight: The slot of the weight that is summed along the units, or that makes
            them; None where there is none.
    """

    node: Node
    operand: Node | None
    step: Step
    weight: Slot | None = None

    @property
    def value(self) -> Node:
        """The node whose tensor is gated."""
        return self.node if self.operand is None else self.operand


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
        # A gate on a head acts on the values that it passes on.
        passing = classes.mark(np.flatnonzero(roles.passed))[classes.labels]
        owner = np.where(passing, classes.owner, classes.count)
        heads = np.append(classes.heads, False)
        self._own = np.where(heads, -1, place)[classes.labels]
        self._inside = np.where(heads, place, -1)[owner]
        self._summarised = self._groups_of(np.flatnonzero(roles.summarised))
        self._steps = self._steps_by_group()

    def target(self, group: CoupledGroup) -> Target:
        """What a gate of `group` acts on."""
        number = self._number(group)
        place = self._inside if group.kind == "head" else self._own
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


def places_of(target: Target) -> list[Place]:
    """The places of a gate for `target`, in the order of the graph."""
    if target.group.kind != "qk" and _only_contracted(target):
        return _readers(target)
    return _Writers(target).places


def _only_contracted(target: Target) -> bool:
    """Whether every unit of the target ends in contractions with weights.

    Sums over the units, and statistics, see a unit beside the others.
    """
    if target.summarised:
        return False
    for step in target.steps:
        if not isinstance(step, Align) or step.rule.kind != "contraction":
            continue
        for slot in _contracted(target, step):
            weight = _weight_beside(target, step, slot)
            if weight is None and not is_weight(
                target.flow, step, slot.operand, target.data
            ):
                return False
    return True


def _readers(target: Target) -> list[Place]:
    places = []
    for step in target.steps:
        if not isinstance(step, Align) or step.rule.kind != "contraction":
            continue
        for slot in _contracted(target, step):
            weight = _weight_beside(target, step, slot)
            operand = step.sources[slot.operand]
            if operand in target.data and weight is not None:
                places.append(Place(step.node, operand, step, weight))
    return places


def _contracted(target: Target, step: Align) -> list[Slot]:
    """Slots of operands whose units the step sums over."""
    values = target.flow.values
    return [
        slot
        for slot in step.slots
        if slot.axes
        and slot.axes[-1] in step.contracted
        and slot.operand not in step.rule.addends
        and bool((target.index(values[slot.value].planes[slot.plane]) >= 0).any())
    ]


def _weight_beside(target: Target, step: Align, slot: Slot) -> Slot | None:
    """The slot of a weight that is summed along the same factor."""
    flow = target.flow
    for other in step.slots:
        same = other.axes and other.axes[-1] == slot.axes[-1]
        if (
            same
            and other.operand != slot.operand
            and is_weight(flow, step, other.operand, target.data)
        ):
            return other
    return None


class _Writers:
    """Walks the steps, and gates what is not zero where the units are closed.

    `zero` tells of every value that carries the units whether they are zero in it.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.flow = target.flow
        self.zero: dict[int, bool] = {}
        self.places: list[Place] = []
        self.parameters: set[int] = set()
        for step in target.steps:
            if any(map(target.carries, step.outputs)):
                self._visit(step)

    def _visit(self, step: Step) -> None:
        if self._deferred(step):
            self._set(step, False)
            return
        if isinstance(step, Move) or step_kind(step) == "pointwise":
            self._gate_parameters(step, step.operands)
        elif step_kind(step) in ("normalization", "reduction"):
            # Its statistics see the units of a parameter that comes as it is.
            self._gate_parameters(step, step.operands[:1])
        zero = self._is_zero(step)
        if not zero:
            slot = self._making_weight(step)
            self.places.append(Place(step.node, None, step, slot))
        self._set(step, True)

    def _set(self, step: Step, zero: bool) -> None:
        for value in step.outputs:
            self.zero[value] = zero

    def _deferred(self, step: Step) -> bool:
        """Parameters on their way to where they meet data are gated there."""
        moves = isinstance(step, Move) or step_kind(step) == "pointwise"
        return moves and step.node not in self.target.data

    def _gate_parameters(self, step: Step, operands: Sequence[int | None]) -> None:
        annihilated = self._annihilated(step)
        for operand in operands:
            if operand is None or annihilated or self._zero(operand):
                continue
            if not self.target.carries(operand):
                continue
            node = self.flow.values[operand].node
            source = _parameter_behind(node)
            if source is None:
                continue
            if operand not in self.parameters:
                self.parameters.add(operand)
                self.places.append(Place(source, None, step))
            self.zero[operand] = True

    def _annihilated(self, step: Step) -> bool:
        return isinstance(step, Align) and any(
            self._zero(step.operands[k]) for k in step.rule.annihilators
        )

    def _zero(self, value: int | None) -> bool:
        return value is not None and self.zero.get(value, False)

    def _is_zero(self, step: Step) -> bool:
        """Whether the units are zero in the outputs, given what is so far."""
        if isinstance(step, Move):
            return all(self._zero(v) for v in step.operands if self.target.carries(v))
        if not isinstance(step, Align):
            return False
        kind = step.rule.kind
        if kind == "contraction":
            return self._is_zero_product(step)
        if self._annihilated(step):
            return True
        if kind == "pointwise":
            return self._preserves_zero(step)
        if kind == "reduction":
            return self._zero(step.operands[0])
        if kind == "normalization":
            rms = step.node.target._schema.name == "aten::rms_norm"  # type: ignore[union-attr]
            return rms and self._zero(step.operands[0])
        return False

    def _is_zero_product(self, step: Align) -> bool:
        passed = {s.operand for s in step.slots if s.axes and self._passes(step, s)}
        addends = set(step.rule.addends)
        factors = any(self._zero(step.operands[k]) for k in passed - addends)
        present = [k for k in addends if step.dims[k]]
        return factors and all(self._zero(step.operands[k]) for k in present)

    def _passes(self, step: Align, slot: Slot) -> bool:
        plane = self.flow.values[slot.value].planes[slot.plane]
        inner = slot.axes[-1] not in step.contracted
        return inner and bool((self.target.index(plane) >= 0).any())

    def _preserves_zero(self, step: Align) -> bool:
        """Whether the operator gives zero for zeros, whatever its other operands."""
        zeros = [
            source
            for source, value in zip(step.sources, step.operands, strict=True)
            if source is not None and self._zero(value)
        ]
        return bool(zeros) and zero_of_zeros(step.node, zeros)

    def _making_weight(self, step: Step) -> Slot | None:
        if not isinstance(step, Align):
            return None
        for slot in step.slots:
            weight = is_weight(self.flow, step, slot.operand, self.target.data)
            if slot.axes and weight and self._passes(step, slot):
                return slot
        return None


def step_kind(step: Step) -> str:
    """Kind of a step's rule, "" where it has none."""
    return step.rule.kind if isinstance(step, Align) else ""


def zero_of_zeros(node: Node, zeros: list[Node]) -> bool:
    """Whether an elementwise operator is zero where the operands in `zeros` are.

    Found by running it on random numbers for the other tensors.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(operand: Node) -> object:
        value = operand.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return 2 if value is not None else None
        if operand in zeros:
            return torch.zeros(8)
        numbers = torch.randn(8, generator=generator)
        return numbers > 0 if value.dtype == torch.bool else numbers

    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), sample)
    try:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError):
        return False
    return isinstance(result, torch.Tensor) and not bool(result.any())


def _parameter_behind(node: Node) -> Node | None:
    """The parameter of which `node` is a view, None if it is something else."""
    while node.op == "call_function":
        operands = [n for n in node.all_input_nodes if "val" in n.meta]
        tensors = [n for n in operands if isinstance(n.meta["val"], torch.Tensor)]
        if len(tensors) != 1:
            return None
        node = tensors[0]
    return node if node.op == "get_attr" else None
