"""A neutral description of one model, whatever it came from.

Loaders make summaries; the comparison reads only summaries. A node refers to
what it reads by position in its own summary, so generated names never matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fgcompile.report.digest import digest_of_array

Dialect = Literal["aten", "onnx", "parameters"]
Dim = int | str


@dataclass(frozen=True)
class TensorType:
    """Dtype and shape of a value; a str entry is a dynamic dim's name."""

    dtype: str = ""
    shape: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return self.dtype or "?"
        return f"{self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class Port:
    """One input or output of the model."""

    name: str
    type: TensorType


@dataclass(frozen=True, eq=False)
class Parameter:
    """One stored tensor.

    Args:
        name: Qualified name, such as "encoder.layer.0.mlp.up.weight".
        shape: Its shape.
        dtype: Numpy-like name of its element type, such as "float32".
        size_bytes: Bytes it occupies.
        read: Gives the values; called only where values must be compared.
        trained: Counts as a parameter, not as a constant or table.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    read: Callable[[], np.ndarray[Any, Any]] | None = field(default=None, repr=False)
    trained: bool = True

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    @cached_property
    def digest(self) -> str | None:
        """Names the values; None where they cannot be read."""
        return None if self.read is None else digest_of_array(self.read())


@dataclass(frozen=True)
class NodeRef:
    """Output number `output` of node number `node`."""

    node: int
    output: int = 0


@dataclass(frozen=True)
class InputRef:
    """Input number `index` of the model."""

    index: int


@dataclass(frozen=True)
class ParameterRef:
    """A stored tensor, by its key in `ModelSummary.parameters`.

    `label` is what this use calls it: two uses of one tensor that an exporter
    merged keep their own names.
    """

    key: str
    label: str = ""


@dataclass(frozen=True)
class Constant:
    """A literal operand: a number, a small table, a device."""

    text: str


Operand = NodeRef | InputRef | ParameterRef | Constant | None


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        op: Operator name without overload, such as "aten.view" or "MatMul".
        operands: What it reads, in order; None for an omitted operand.
        attributes: Sorted (name, text) pairs.
        outputs: Types of its results.
        sizes: Shapes of its results at the summary's stated input shapes; None
            where they could not be derived.
        module: Module path that the graph itself records; empty where unknown.
        display: What to call its place in a report; not used for matching.
        line: "file.py:12"; empty where unknown.
        scope: Subgraph it lives in, such as "then_branch"; empty at top level.
        origin: The captured op it was made from, such as "aten.linear".
    """

    op: str
    operands: tuple[Operand, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    outputs: tuple[TensorType, ...] = ()
    sizes: tuple[tuple[int, ...] | None, ...] = ()
    module: str = ""
    display: str = ""
    line: str = ""
    scope: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Group:
    """Coupled parameter dims of one model: (parameter name, dim) pairs."""

    name: str
    kind: str
    size: int
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class ModelSummary:
    """Everything the comparison knows about one model.

    Args:
        dialect: Which operators `nodes` use; "parameters" has no nodes.
        inputs: In call order.
        outputs: In return order.
        results: What each output returns.
        nodes: In an order where operands come first.
        parameters: By key; keys are private to the summary.
        groups: Coupled groups, where an analysis ran.
        opsets: Operator set versions, sorted (domain, version) pairs.
        input_sizes: Shapes of the inputs at which `Node.sizes` hold.
        notes: Sentences for the reader about what could not be seen.
    """

    dialect: Dialect
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    results: tuple[Operand, ...] = ()
    nodes: tuple[Node, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    opsets: tuple[tuple[str, int], ...] = ()
    input_sizes: tuple[tuple[int, ...] | None, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def stated_shape(self) -> str:
        """The inputs with the shapes that MACs are counted at."""
        return ", ".join(
            f"{port.name}{list(size)}"
            for port, size in zip(self.inputs, self.input_sizes, strict=True)
            if size is not None
        )

    @property
    def parameter_count(self) -> int:
        return sum(p.count for p in self.parameters.values() if p.trained)

    @property
    def size_bytes(self) -> int:
        return sum(p.size_bytes for p in self.parameters.values())
