"""Gating every value in which closed units would not be zero by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from fgcompile.analysis.kinds import is_weight
from fgcompile.analysis.steps import Align, Move, Slot, Step
from fgcompile.gates.layout import Target, step_kind
from fgcompile.gates.readers import Place, contracted_slots


class Writers:
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
            if step_kind(step) == "contraction":
                assert isinstance(step, Align)
                self._gate_contracted(step)
            if any(map(target.carries, step.outputs)):
                self._visit(step)

    def _gate_contracted(self, step: Align) -> None:
        """A parameter that a weight is multiplied with as it is, like a query."""
        contracted = [s.operand for s in contracted_slots(self.target, step)]
        if not any(self._zero(step.operands[k]) for k in contracted):
            self._gate_parameters(step, [step.operands[k] for k in contracted[:1]])

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
        if kind == "join":
            return all(map(self._zero, step.operands))
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


def zero_of_zeros(node: Node, zeros: list[Node]) -> bool:
    """Whether an elementwise operator is zero where the operands in `zeros` are.

    Found by running it on random numbers for the other tensors.
    """
    generator = torch.Generator().manual_seed(0)

    def sample(operand: Node) -> Any:
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
    except (RuntimeError, TypeError, IndexError):
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
