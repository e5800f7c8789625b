"""MACs of one forward pass, from the shapes of a summary's nodes.

The one place that knows what an operator costs. Multiply-accumulates of products
with weights and of attention count; pointwise work does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fgcompile.report.roles import is_convolution, is_matmul
from fgcompile.report.summary import (
    InputRef,
    ModelSummary,
    Node,
    NodeRef,
    ParameterRef,
)

Shape = tuple[int, ...]
_WEIGHTED = {
    "aten.linear": 1,
    "aten.addmm": 2,
    "module.Linear": 1,
    "Gemm": 1,
    "QLinearMatMul": 3,
    "com.microsoft::DynamicQuantizeMatMul": 1,
    "com.microsoft::MatMulIntegerToFloat": 1,
}
_ATTENTION = {
    "aten.scaled_dot_product_attention",
    "Attention",
    "com.microsoft::MultiHeadAttention",
    "com.microsoft::GroupQueryAttention",
}
_UNCOUNTED = {"LSTM", "GRU", "RNN", "aten.lstm", "aten.gru", "com.microsoft::Attention"}
_MOST_READ = 3
_DEPTH = re.compile(r"\d{1,18}")


def count_macs(summary: ModelSummary) -> int | None:
    """MACs [count] at the summary's stated shape; None where a shape is missing."""
    if summary.dialect == "parameters":
        return None
    counts = [node_macs(node, summary) for node in summary.nodes]
    return None if None in counts else sum(count or 0 for count in counts)


def node_macs(node: Node, summary: ModelSummary) -> int | None:
    """MACs [count] of one node; 0 for pointwise work, None where not known."""
    shapes = [operand_shape(operand, summary) for operand in node.operands]
    shapes += [None] * (_MOST_READ - len(shapes))  # a damaged file may lack operands
    result = node.sizes[0] if node.sizes else None
    if node.op in _UNCOUNTED:
        return None
    if is_convolution(node):
        transposed = "transpose" in node.op.lower()
        return _convolution(shapes[1], shapes[0] if transposed else result)
    if node.op == "com.microsoft::MatMulNBits" and result is not None:
        depth = dict(node.attributes).get("K", "")
        return math.prod(result) * int(depth) if _DEPTH.fullmatch(depth) else None
    if node.op in _ATTENTION:
        return _attention(shapes[:3])
    if node.op in _WEIGHTED:
        return _product(shapes[_contracted_slot(node)], result)
    if is_matmul(node) or node.op in ("aten.baddbmm",):
        return _product(shapes[-2 if node.op == "aten.baddbmm" else 0], result)
    if node.op.endswith(("einsum", "Einsum")):
        return _einsum(dict(node.attributes).get("equation", ""), shapes)
    return 0


def operand_shape(operand: object, summary: ModelSummary) -> Shape | None:
    """Concrete shape of what a node reads."""
    if isinstance(operand, NodeRef):
        sizes = summary.nodes[operand.node].sizes
        return sizes[operand.output] if operand.output < len(sizes) else None
    if isinstance(operand, InputRef):
        return summary.input_sizes[operand.index]
    if isinstance(operand, ParameterRef):
        return summary.parameters[operand.key].shape
    return None


def _contracted_slot(node: Node) -> int:
    """The data operand, whose last dim is summed over."""
    return 1 if node.op == "aten.addmm" else 0


def _product(data: Shape | None, result: Shape | None) -> int | None:
    if not data or result is None:
        return None
    return math.prod(result) * data[-1]


def _convolution(weight: Shape | None, positions: Shape | None) -> int | None:
    """Per element of the result (or of the data, if transposed) one kernel."""
    if weight is None or positions is None:
        return None
    return math.prod(positions) * math.prod(weight[1:])


def _attention(operands: Sequence[Shape | None]) -> int | None:
    """Scores and weighted sum, whatever the split of a dim into heads."""
    if len(operands) < 3 or not all(operands):
        return None
    query, key, value = (shape for shape in operands if shape)
    if min(map(len, (query, key, value))) < 2 or not key[-2]:
        return None
    length = key[-2]
    four = len(query) == len(value) == 4
    heads = query[1] // max(value[1], 1) if four else 1
    per_row = math.prod(value) // length * heads
    return math.prod(query) * length + query[-2] * length * per_row


def _einsum(equation: str, shapes: Sequence[Shape | None]) -> int | None:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):
        if shape is None or "." in term or len(term) != len(shape):
            return None
        sizes |= dict(zip(term, shape, strict=True))
    return math.prod(sizes.values()) if len(terms) > 1 else 0
