"""A program as steps over planes: what all dimension analyses read.

Every value that depends on a parameter has *planes* (see `fgcompile.units`), and
every node becomes one or more steps that say how the planes of its operands
and outputs correspond. Steps come in three forms:

- `Align`: dims labelled with factors, by the operator's rule;
- `Move`: a map from each output element to the input element it came from;
- `Pin`: nothing is known; every unit that reaches it stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from fgcompile.rules.pattern import Dim
from fgcompile.rules.registry import DimRule
from fgcompile.units import UnitIds, Units

Array = NDArray[Any]


@dataclass
class Value:
    """A tensor that depends on parameters.

    Attributes:
        node: Its producer; for intermediates of a rule, the node of the rule.
        shape: Hidden shape, see `fgcompile.rules.shapes`.
        planes: Unit ids, each of the value's rank and size 1 where uniform.
        table: Whether it comes from parameters by lookup, movement and elementwise
            operators alone (a bias table, not a stream of data).
        output: Position among the node's outputs; -1 for an intermediate.
    """

    node: Node
    shape: tuple[int, ...]
    planes: list[UnitIds]
    table: bool = False
    output: int = 0


@dataclass(frozen=True)
class Slot:
    """One plane of one operand, as it lies in the factors of its step.

    Attributes:
        value: Index of the value.
        plane: Index of the plane in the value.
        operand: Position in the rule's pattern; -1 for the output.
        split: Shape of the plane with compound dims split.
        order: Permutation of the split dims into factor order.
        full: Shape over all factors of the step; 1 where the plane is uniform.
        loose: Whether the operand may be wider than the step needs: it is then
            gathered here, and the step does not couple it.
    """

    value: int
    plane: int
    operand: int
    split: tuple[int, ...]
    order: tuple[int, ...]
    full: tuple[int, ...]
    loose: bool = False

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """Factors along which the plane varies."""
        return tuple(k for k, size in enumerate(self.full) if size > 1)

    def spread(self, array: Array) -> Array:
        """`array` of the plane's shape, laid out over the factors."""
        return array.reshape(self.split).transpose(self.order).reshape(self.full)

    def collect(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `spread`; `array` has shape `full`, the result `shape`."""
        permuted = tuple(self.split[k] for k in self.order)
        inverse = tuple(np.argsort(self.order)) if self.order else ()
        return array.reshape(permuted).transpose(inverse).reshape(shape)


@dataclass
class Align:
    """A step whose dims correspond by factors.

    Attributes:
        rule: The rule; its pattern's operands are `operands`.
        operands: Value index per operand, None where it holds no parameter.
        sources: The node behind each operand, None for intermediates and absent ones.
        dims: Factors of the dims of each operand.
        outputs: Value index of each output.
        factors: Factor names in nesting order, outermost first.
        sizes: Hidden size of each factor.
        slots: Planes of the operands.
        results: Planes of the outputs.
        contracted: Factors that only operands have.
        pinned: Factors that stay whole, with the reason.
        beside: Planes of operands, as (value, plane), that another step of the same
            node describes.
    """

    node: Node
    rule: DimRule
    operands: tuple[int | None, ...]
    sources: tuple[Node | None, ...]
    dims: tuple[tuple[Dim, ...], ...]
    outputs: tuple[int, ...]
    factors: tuple[str, ...]
    sizes: tuple[int, ...]
    slots: list[Slot] = field(default_factory=list)
    results: list[Slot] = field(default_factory=list)
    contracted: tuple[int, ...] = ()
    pinned: dict[int, str] = field(default_factory=dict)
    beside: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Link:
    """One plane of an output, taken from one plane of an input.

    `index` has the shape of the output plane and holds positions in the flattened
    input plane; -1 where the element comes from elsewhere. Along the dims in `repeats`
    the input plane is repeated: it goes where its neighbours in the output go.
    """

    source: int
    source_plane: int
    target: int
    target_plane: int
    index: NDArray[np.int64]
    repeats: tuple[int, ...] = ()


@dataclass
class Move:
    """A step that only places elements; `beside` is as in `Align`."""

    node: Node
    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    links: list[Link]
    beside: frozenset[tuple[int, int]] = frozenset()


@dataclass
class Pin:
    """A step that keeps every unit of its operands; `reason` indexes `reasons`."""

    node: Node
    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    reason: int


Step = Align | Move | Pin


@dataclass(frozen=True)
class Reason:
    """Why units may not shrink: at which node, and what would free them.

    `remedy` is what a user can do about an operator that is not known; `hint` says of
    one that is, what about it keeps the units.
    """

    text: str
    node: Node
    remedy: str = ""
    hint: str = ""


@dataclass
class Flow:
    """All values and steps of a program, in the order of its graph."""

    units: Units = field(default_factory=Units)
    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    of: dict[Node, tuple[int | None, ...]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)

    def value_of(self, node: Node | None) -> int | None:
        """Index of the (first) value of `node`, None if it holds no parameter."""
        return None if node is None else self.of.get(node, (None,))[0]
