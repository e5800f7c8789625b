"""What units are worth: parameters [count] and multiply-accumulates [count].

MACs are those of contractions. One contraction costs the product of the sizes of all
its factors; elementwise operators cost nothing here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fgcompile.analysis.classes import Classes
from fgcompile.analysis.kinds import is_convolution
from fgcompile.analysis.steps import Align, Flow, Slot
from fgcompile.program import Program
from fgcompile.rules.pattern import parse
from fgcompile.rules.shapes import tensor_of
from fgcompile.units import BoolArray, UnitIds

BATCH = 1
LENGTH = 128
"""Where sizes are symbols: one example of a common length."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Dims of a contraction along which planes vary together, as in `(h d)`.

    Attributes:
        size: Number of positions.
        planes: Unit ids of each plane at each position, shape `[planes size]`.
    """

    size: int
    planes: UnitIds


@dataclass(frozen=True)
class Contraction:
    """One contraction: `macs`, and the parts that may lose positions."""

    macs: int
    parts: tuple[Part, ...]


@dataclass
class Costs:
    """The contractions and parameters of a program, ready to be counted.

    Attributes:
        contractions: All contractions that touch a parameter's units.
        parameters: Shape, and ids of the units along each dim (None where the dim
            has a single index), of every parameter.
    """

    contractions: list[Contraction] = field(default_factory=list)
    parameters: dict[str, tuple[tuple[int, ...], list[UnitIds | None]]] = field(
        default_factory=dict
    )

    @property
    def macs(self) -> int:
        """MACs of the whole program."""
        return sum(c.macs for c in self.contractions)

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole program."""
        return sum(math.prod(shape) for shape, _ in self.parameters.values())

    def parameters_without(self, dead: BoolArray) -> int:
        """Parameters that stay if the units flagged in `dead` go."""
        total = 0
        for shape, dims in self.parameters.values():
            gone = [0 if ids is None else int(dead[ids].sum()) for ids in dims]
            total += math.prod(n - d for n, d in zip(shape, gone, strict=True))
        return total

    def macs_without(self, dead: BoolArray) -> int:
        """MACs that stay if the units flagged in `dead` go."""
        total = 0
        for one in self.contractions:
            rest, divisor = one.macs, 1
            for part in one.parts:
                rest *= part.size - int(dead[part.planes].any(axis=0).sum())
                divisor *= part.size
            total += rest // divisor
        return total


def costs_of(
    program: Program, flow: Flow, batch: int = BATCH, length: int = LENGTH
) -> Costs:
    """Everything countable about `program`, for these sizes of its symbols."""
    costs = Costs()
    sizes = ConcreteSizes(program, batch, length)
    for step in flow.steps:
        if isinstance(step, Align) and step.rule.kind == "contraction":
            costs.contractions.append(_contraction(flow, step, sizes))
    dims: dict[str, dict[int, UnitIds]] = {}
    for family in flow.units.families:
        dims.setdefault(family.name, {})[family.dim] = family.ids
    for name, index in flow.parameters.items():
        shape = flow.values[index].shape
        known = dims.get(name, {})
        costs.parameters[name] = shape, [known.get(k) for k in range(len(shape))]
    return costs


def program_macs(
    program: Program, flow: Flow, batch: int = BATCH, length: int = LENGTH
) -> int:
    """MACs of one forward pass with `batch` examples of `length` tokens.

    Contractions in which no parameter takes part are not counted.
    """
    sizes = ConcreteSizes(program, batch, length)
    return sum(
        _macs(step, sizes)
        for step in flow.steps
        if isinstance(step, Align) and step.rule.kind == "contraction"
    )


def unit_costs(costs: Costs, classes: Classes) -> tuple[Counts, Counts]:
    """Parameters and MACs [count] that vanish if one class alone goes.

    A head takes along what it owns.
    """
    own = classes.labels
    of_head = np.where(classes.heads[own], own, classes.owner)
    parameters = _vanishing_parameters(costs, own, classes.count)
    macs = _vanishing_macs(costs, own, classes.count)
    if classes.heads.any():
        heads = classes.heads
        parameters[heads] = _vanishing_parameters(costs, of_head, classes.count)[heads]
        macs[heads] = _vanishing_macs(costs, of_head, classes.count)[heads]
    return parameters, macs


class ConcreteSizes:
    """Numbers in place of the symbols of a program's shapes."""

    def __init__(self, program: Program, batch: int, length: int) -> None:
        self._numbers: dict[Any, int] = {}
        self._known: dict[Any, int] = {}
        for node in program.placeholders:
            value = tensor_of(node)
            for dim, size in enumerate(value.shape if value is not None else ()):
                if not isinstance(size, int):
                    number = length if dim else batch
                    self._numbers.setdefault(size.node.expr, number)

    def of(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """Shape of a traced tensor in numbers."""
        return tuple(map(self._number, tensor.shape))

    def _number(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self._known:
            value = expression.subs(self._numbers)
            # A size that depends on data: the one that was traced.
            self._known[expression] = (
                int(value) if value.is_Integer else int(size.node.hint or 1)
            )
        return self._known[expression]


def _contraction(flow: Flow, step: Align, sizes: ConcreteSizes) -> Contraction:
    slots = [s for s in (*step.slots, *step.results) if s.axes]
    return Contraction(
        _macs(step, sizes),
        tuple(_part(flow, step, axes, slots) for axes in _joined(slots)),
    )


def _macs(step: Align, sizes: ConcreteSizes) -> int:
    """Product of the sizes of all factors, and of the extents no factor names."""
    factors: dict[str, int] = dict(zip(step.factors, step.sizes, strict=True))
    extents: dict[int, int] = {}
    output = None if step.rule.output else tensor_of(step.node)
    described = list(zip(step.dims, step.sources, strict=True))
    tensors = [(d, tensor_of(n)) for d, n in described if n is not None]
    if output is not None:
        dims = parse(step.rule.pattern).output_dims(output.dim())
        tensors.append((dims, output))
    for position, (dims, tensor) in enumerate(tensors):
        assert tensor is not None
        shape = sizes.of(tensor)
        unnamed = [n for dim, n in zip(dims, shape, strict=True) if not dim]
        extents[position] = math.prod(unnamed)
        for dim, size in zip(dims, shape, strict=True):
            if len(dim) == 1:
                factors[dim[0]] = max(factors.get(dim[0], 1), size)
    named = math.prod(n for f, n in factors.items() if f not in step.rule.pinned)
    return named * _extent(step, extents)


def _extent(step: Align, extents: dict[int, int]) -> int:
    """Positions times kernel of a convolution; 1 for everything else."""
    if not is_convolution(step.node):
        return 1
    schema = step.node.target._schema  # type: ignore[union-attr]
    transposed = "transpose" in schema.name
    return extents[1] * extents[0 if transposed else max(extents)]


def _joined(slots: list[Slot]) -> list[tuple[int, ...]]:
    """Axes that some plane ties together, disjoint."""
    groups: list[set[int]] = []
    for slot in slots:
        tie = set(slot.axes)
        touched = [g for g in groups if g & tie]
        groups = [g for g in groups if not g & tie]
        groups.append(tie.union(*touched))
    return sorted(tuple(sorted(g)) for g in groups)


def _part(flow: Flow, step: Align, axes: tuple[int, ...], slots: list[Slot]) -> Part:
    shape = tuple(n if k in axes else 1 for k, n in enumerate(step.sizes))
    planes: list[UnitIds] = []
    seen = set()
    for slot in slots:
        if set(slot.axes) <= set(axes):
            ids = flow.values[slot.value].planes[slot.plane]
            spread = np.broadcast_to(slot.spread(ids), shape).reshape(-1)
            key = spread.tobytes()
            if key not in seen:
                seen.add(key)
                planes.append(spread)
    return Part(math.prod(shape), np.stack(planes))


def _vanishing_parameters(costs: Costs, labels: UnitIds, count: int) -> Counts:
    """Parameters that hold a unit of a label, counted once each, per label."""
    total = np.zeros(count)
    for shape, dims in costs.parameters.values():
        taken = {
            k: _label_counts(labels[ids])
            for k, ids in enumerate(dims)
            if ids is not None
        }
        if not taken:
            continue
        touched = np.unique(np.concatenate([found for found, _ in taken.values()]))
        kept = np.ones(touched.size)
        for k, size in enumerate(shape):
            gone = np.zeros(touched.size)
            if k in taken:
                gone[np.searchsorted(touched, taken[k][0])] = taken[k][1]
            kept *= size - gone
        total[touched] += math.prod(shape) - kept
    return total


def _label_counts(labels: UnitIds) -> tuple[UnitIds, UnitIds]:
    found, number = np.unique(labels[labels >= 0], return_counts=True)
    return found, number


def _vanishing_macs(costs: Costs, labels: UnitIds, count: int) -> Counts:
    """MACs of the positions that hold a unit of a label, per label."""
    total = np.zeros(count)
    for one in costs.contractions:
        fractions = [_fractions(part, labels) for part in one.parts]
        touched = np.unique(np.concatenate([found for found, _ in fractions]))
        kept = np.ones(touched.size)
        for found, fraction in fractions:
            kept[np.searchsorted(touched, found)] *= 1 - fraction
        total[touched] += one.macs * (1 - kept)
    return total


def _fractions(part: Part, labels: UnitIds) -> tuple[UnitIds, Counts]:
    """Share of the positions of `part` that each label takes."""
    at = np.where(part.planes >= 0, labels[part.planes], -1)
    position = np.broadcast_to(np.arange(part.size), at.shape)
    pairs = at[at >= 0] * part.size + position[at >= 0]
    found, number = np.unique(np.unique(pairs) // part.size, return_counts=True)
    return found, number / part.size
