"""Rules of elementwise operators; most need none beyond PyTorch's own tag."""

from __future__ import annotations

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, dim_rule
from fgcompile.rules.shapes import tensor_of


def pointwise(node: Node) -> DimRule:
    """The rule of every operator tagged pointwise: dims aligned by broadcasting."""
    operands = tuple(n for n in node.all_input_nodes if tensor_of(n) is not None)
    return _aligned(operands)


@dim_rule("aten::mul", "aten::logical_and")
def mul(node: Node) -> DimRule:
    """A product: zero wherever one operand is."""
    operands = tuple(a for a in node.args[:2] if isinstance(a, Node))
    tensors = tuple(n for n in operands if tensor_of(n) is not None)
    return _aligned(tensors, annihilators=tuple(range(len(tensors))))


@dim_rule("aten::div")
def div(node: Node) -> DimRule:
    """A quotient: zero wherever the numerator is."""
    operands = tuple(a for a in node.args[:2] if isinstance(a, Node))
    tensors = tuple(n for n in operands if tensor_of(n) is not None)
    return _aligned(tensors, annihilators=(0,) if tensors[:1] == operands[:1] else ())


@dim_rule("aten::_prelu_kernel")
def prelu(node: Node) -> DimRule:
    """Zeros stay zero, whatever their slope."""
    return _aligned(node.args, annihilators=(0,))  # type: ignore[arg-type]


@dim_rule("aten::masked_fill")
def masked_fill(node: Node) -> DimRule:
    """Filling zeros with zero changes nothing."""
    a = arguments(node)
    operands = (a["self"], a["mask"])
    return _aligned(operands, annihilators=(0,) if a["value"] == 0 else ())


@dim_rule("aten::zeros_like", "aten::ones_like", "aten::full_like")
def filled(node: Node) -> DimRule:
    """One value in the shape of an operand: it shrinks with it."""
    a = arguments(node)
    value = {"aten::zeros_like": 0, "aten::ones_like": 1}.get(
        node.target._schema.name,  # type: ignore[union-attr]
        a.get("fill_value"),
    )
    return _aligned((a["self"],), annihilators=(0,) if value == 0 else ())


@dim_rule("aten::where")
def where(node: Node) -> DimRule | None:
    """A choice between two values, elementwise; PyTorch does not tag it so."""
    return pointwise(node) if len(node.args) == 3 else None


@dim_rule("aten::tril", "aten::triu")
def triangle(node: Node) -> DimRule:
    """Zeros on one side of a diagonal of the last two dims."""
    reason = "which elements of it are kept depends on their places"
    return DimRule(
        "... i j -> ... i j",
        kind="mixing",
        operands=(node.args[0],),  # type: ignore[arg-type]
        annihilators=(0,),
        pinned={"i": reason, "j": reason},
    )


@dim_rule("fgcompile::gate")
def gate(node: Node) -> DimRule:
    """A gate: a product along one dim."""
    value, factors, dim = node.args
    tensor = tensor_of(value)  # type: ignore[arg-type]
    assert tensor is not None
    names = [f"n{k}" for k in range(tensor.dim())]
    text = " ".join(names)
    return DimRule(
        f"{text}, {names[dim]} -> {text}",  # type: ignore[index]
        kind="pointwise",
        operands=(value, factors),  # type: ignore[arg-type]
        annihilators=(0, 1),
    )


@dim_rule("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout")
def dropout(node: Node) -> DimRule | None:
    """The identity in eval mode; in training mode it draws, and has no rule."""
    a = arguments(node)
    if a["train"]:
        return None
    return _aligned((a["input"],), annihilators=(0,))


@dim_rule("aten::clone", "aten::contiguous", "aten::detach", "aten::alias")
@dim_rule("aten::to", "aten::_to_copy", "aten::lift_fresh", "aten::type_as")
@dim_rule("aten::lift_fresh_copy", "aten::detach_", "aten::silu_", "aten::relu_")
@dim_rule("aten::expand")
def identity(node: Node) -> DimRule:
    """Copies, casts and broadcasts of the first operand."""
    return _aligned((node.args[0],), annihilators=(0,))  # type: ignore[arg-type]


def _aligned(operands: tuple[Node, ...], annihilators: tuple[int, ...] = ()) -> DimRule:
    pattern = ", ".join(["..."] * len(operands)) + " -> ..."
    return DimRule(
        pattern, kind="pointwise", operands=operands, annihilators=annihilators
    )
