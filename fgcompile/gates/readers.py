"""Gating the operand of every contraction with a weight that sums over the units."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from fgcompile.analysis.kinds import is_weight
from fgcompile.analysis.steps import Align, Slot, Step
from fgcompile.gates.layout import Target


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


def only_contracted(target: Target) -> bool:
    """Whether every unit of the target ends in contractions with weights.

    Sums over the units, and statistics, see a unit beside the others.
    """
    if target.summarised:
        return False
    for step in target.steps:
        if not isinstance(step, Align) or step.rule.kind != "contraction":
            continue
        for slot in contracted_slots(target, step):
            weight = _weight_beside(target, step, slot)
            if weight is None and not is_weight(
                target.flow, step, slot.operand, target.data
            ):
                return False
    return True


def readers(target: Target) -> list[Place]:
    places = []
    for step in target.steps:
        if not isinstance(step, Align) or step.rule.kind != "contraction":
            continue
        for slot in contracted_slots(target, step):
            weight = _weight_beside(target, step, slot)
            table = is_weight(target.flow, step, slot.operand, target.data)
            if weight is not None and not table:
                operand = step.sources[slot.operand]
                places.append(Place(step.node, operand, step, weight))
    return places


def contracted_slots(target: Target, step: Align) -> list[Slot]:
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
