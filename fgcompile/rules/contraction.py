"""Rules of contractions: sums of products over factors that the output lacks."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, dim_rule, operand
from fgcompile.rules.shapes import tensor_of

_LETTERS = "mnop"


@dim_rule("aten::linear")
def linear(node: Node) -> DimRule:
    """`x W^T + b`, weight stored output first."""
    a = arguments(node)
    return DimRule(
        "... i, o i, o -> ... o",
        operands=(a["input"], a["weight"], a["bias"]),
        addends=(2,),
    )


@dim_rule("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot")
def matmul(node: Node) -> DimRule:
    """Matrix products with NumPy's rules for ranks and batches."""
    left, right = node.args[:2]
    return DimRule(_matmul_pattern(_rank(left), _rank(right)))


@dim_rule("aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv")
def addmm(node: Node) -> DimRule | None:
    """A matrix product and a broadcast addend."""
    a = list(arguments(node).values())
    addend, left, right = a[:3]
    if node.target._schema.name == "aten::addbmm":  # type: ignore[union-attr]
        return None
    product = _matmul_pattern(_rank(left), _rank(right))
    inputs, output = product.split(" -> ")
    tokens = output.split()
    addend_tokens = " ".join(tokens[len(tokens) - _rank(addend) :])
    if "..." in tokens:
        addend_tokens = output
    return DimRule(
        f"{inputs}, {addend_tokens} -> {output}",
        operands=(left, right, addend),
        addends=(2,),
    )


@dim_rule("aten::bilinear")
def bilinear(node: Node) -> DimRule:
    """`x A_o y + b_o` for each output `o`, weight stored output first."""
    a = arguments(node)
    return DimRule(
        "... i, ... j, o i j, o -> ... o",
        operands=(a["input1"], a["input2"], a["weight"], a["bias"]),
        addends=(3,),
    )


def _matmul_pattern(left: int, right: int) -> str:
    if left == 1:
        tokens = ("i", "i") if right == 1 else ("i", "... i o")
        return f"{tokens[0]}, {tokens[1]} -> " + ("" if right == 1 else "... o")
    if right == 1:
        return "... q i, i -> ... q"
    # A matrix has no batch dims, and `...` would stand for none: name them only
    # where they exist, so that addends can be aligned.
    batch = "... " if max(left, right) > 2 else ""
    return f"{batch}q i, {batch}i o -> {batch}q o"


@dim_rule("aten::einsum")
def einsum(node: Node) -> DimRule | None:
    """The equation itself, if it has an explicit output and no repeated index."""
    equation, operands = str(node.args[0]), node.args[1]
    if "->" not in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    if any(len(set(t.replace(".", ""))) < len(t.replace(".", "")) for t in terms):
        return None
    pattern = ", ".join(map(_spaced, terms)) + " -> " + _spaced(output)
    return DimRule(pattern, operands=tuple(operands))  # type: ignore[arg-type]


def _spaced(term: str) -> str:
    text = term.replace("...", ".")
    return " ".join("..." if c == "." else f"{c.lower()}{ord(c)}" for c in text)


@dim_rule("aten::conv1d", "aten::conv2d", "aten::conv3d")
def convolution(node: Node) -> DimRule:
    """Convolutions; in groups, the channels of a group stay together."""
    a = arguments(node)
    groups, rank = a["groups"], _rank(a["input"])
    space = " _" * (rank - 2)
    if groups == 1:
        pattern = f"b i{space}, o i{space}, o -> b o{space}"
        sizes = {}
    else:
        pattern = f"b (g i){space}, (g o) i{space}, (g o) -> b (g o){space}"
        sizes = {"g": groups}
    return DimRule(
        pattern,
        operands=(a["input"], a["weight"], a["bias"]),
        addends=(2,),
        sizes=sizes,
    )


@dim_rule("aten::conv_transpose1d", "aten::conv_transpose2d.input")
def transposed_convolution(node: Node) -> DimRule | None:
    """Transposed convolutions without groups; the weight is stored input first."""
    a = arguments(node)
    if a["groups"] != 1:
        return None
    space = " _" * (_rank(a["input"]) - 2)
    return DimRule(
        f"b i{space}, i o{space}, o -> b o{space}",
        operands=(a["input"], a["weight"], a["bias"]),
        addends=(2,),
    )


@dim_rule("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(node: Node) -> DimRule:
    """Rows sorted by expert, each multiplied with its expert's matrix."""
    reason = "the rows' experts are chosen by data (grouped matrix product)"
    return DimRule(
        "t i, x i o -> t o",
        operands=(operand(node), operand(node, 1)),
        pinned={"x": reason},
    )


def _rank(value: Any) -> int:
    tensor = tensor_of(value)
    assert tensor is not None
    return tensor.dim()
