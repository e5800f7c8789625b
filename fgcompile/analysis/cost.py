"""What units are worth: parameters [count] and multiply-accumulates [count].

MACs are those of contractions. One contraction costs the product of the sizes of all
its factors; elementwise operators cost nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
        parameters: Shape of every parameter, and the units of each of its dims that
            has more than one index.
    """

    contractions: list[Contraction] = field(default_factory=list)
    parameters: dict[str, tuple[tuple[int, ...], dict[int, slice]]] = field(
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
            gone = {dim: int(dead[ids].sum()) for dim, ids in dims.items()}
            total += math.prod(n - gone.get(dim, 0) for dim, n in enumerate(shape))
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
    dims: dict[str, dict[int, slice]] = {}
    for family in flow.units.families:
        units = slice(family.start, family.start + family.size)
        dims.setdefault(family.name, {})[family.dim] = units
    for name, index in flow.parameters.items():
        costs.parameters[name] = flow.values[index].shape, dims.get(name, {})
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


def unit_costs(
    costs: Costs, classes: Classes, lots: list[UnitIds]
) -> tuple[list[Counts], list[Counts]]:
    """Parameters and MACs [count] that vanish if one class of a lot alone goes.

    A head takes along what it owns.

    Args:
        costs: What can be counted.
        classes: Classes of the units.
        lots: Classes that are alike, one array each.
    """
    parameters = [np.zeros(lot.size) for lot in lots]
    macs = [np.zeros(lot.size) for lot in lots]
    for place in _places(classes, lots):
        _add_parameters(costs, place, parameters)
        _add_macs(costs, place, macs)
    return parameters, macs


_SHIFT = 32


def _places(classes: Classes, lots: list[UnitIds]) -> Iterator[UnitIds]:
    """Lot and position in it of every unit, as one number; -1 where it is in none.

    Once for the classes that are no heads, and once for heads with what they own.
    """
    place = np.empty(classes.count + 1, np.int64)
    place[-1] = -1
    for k, lot in enumerate(lots):
        place[lot] = (k << _SHIFT) + np.arange(lot.size)
    heads = np.append(classes.heads, False)
    yield np.where(heads, -1, place)[classes.labels]
    owner = np.where(heads[classes.labels], classes.labels, classes.owner)
    if classes.heads.any():
        yield np.where(heads, place, -1)[owner]


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
        return tuple(map(self.number, tensor.shape))

    def number(self, size: Any) -> int:
        """A size, which may be a symbol, as a number."""
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


def _add_parameters(costs: Costs, place: UnitIds, totals: list[Counts]) -> None:
    """Adds the parameters that hold a unit, each counted once, per unit."""
    for shape, dims in costs.parameters.values():
        taken: dict[int, dict[int, Counts]] = {}
        for dim, ids in dims.items():
            for lot, counts in _counts(place[ids], totals):
                taken.setdefault(lot, {})[dim] = counts
        for lot, gone in taken.items():
            kept = np.ones(totals[lot].size)
            for dim, size in enumerate(shape):
                kept *= size - gone.get(dim, 0.0)
            totals[lot] += math.prod(shape) - kept


def _add_macs(costs: Costs, place: UnitIds, totals: list[Counts]) -> None:
    """Adds the MACs of the positions that hold a unit, per unit."""
    for one in costs.contractions:
        kept: dict[int, Counts] = {}
        for part in one.parts:
            for lot, counts in _counts(_at_positions(part, place), totals):
                share = kept.setdefault(lot, np.ones(totals[lot].size))
                share *= 1 - counts / part.size
        for lot, share in kept.items():
            totals[lot] += one.macs * (1 - share)


def _at_positions(part: Part, place: UnitIds) -> UnitIds:
    """Places at the positions of a part; one that is there twice counts once."""
    rows: list[UnitIds] = []
    for ids in part.planes:
        row = np.where(ids >= 0, place[ids], -1)
        if not any(np.array_equal(row, other) for other in rows):
            rows.append(row)
    if len(rows) == 1:
        return rows[0]
    ordered = np.sort(np.stack(rows), axis=0)
    ordered[1:][ordered[1:] == ordered[:-1]] = -1
    return ordered.reshape(-1)


def _counts(places: UnitIds, totals: list[Counts]) -> Iterator[tuple[int, Counts]]:
    """Lots found in `places`, and how often each of their units is there."""
    places = places[places >= 0]
    lots = places >> _SHIFT
    for lot in np.flatnonzero(np.bincount(lots)).tolist():
        units = places[lots == lot] & ((1 << _SHIFT) - 1)
        yield lot, np.bincount(units, minlength=totals[lot].size).astype(float)
