"""Rules of normalisations: statistics over some factors, then scale and shift."""

from __future__ import annotations

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, dim_rule
from fgcompile.rules.shapes import tensor_of


@dim_rule("aten::layer_norm", "aten::rms_norm")
def layer_norm(node: Node) -> DimRule:
    """Statistics over the last dims; zeros may leave, with a repair."""
    a = arguments(node)
    factors = [f"n{k}" for k in range(len(a["normalized_shape"]))]
    dims = " ".join(factors)
    parts, operands = [f"... {dims}"], [a["input"]]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            parts.append(dims)
            operands.append(a[name])
    centred = node.target._schema.name == "aten::layer_norm"  # type: ignore[union-attr]
    return DimRule(
        f"{', '.join(parts)} -> ... {dims}",
        kind="normalization",
        operands=tuple(operands),
        annihilators=() if centred else (0,),
        statistics=tuple(factors),
    )


@dim_rule("aten::batch_norm")
def batch_norm(node: Node) -> DimRule | None:
    """In eval mode: scale and shift of each channel by constants."""
    a = arguments(node)
    if a["training"] or a["running_mean"] is None:
        return None
    rank = _rank(a["input"])
    space = "".join(f" s{k}" for k in range(rank - 2))
    names = ("input", "weight", "bias", "running_mean", "running_var")
    return DimRule(
        f"b c{space}, c, c, c, c -> b c{space}",
        kind="pointwise",
        operands=tuple(a[name] for name in names),
    )


@dim_rule("aten::group_norm", "aten::instance_norm")
def group_norm(node: Node) -> DimRule:
    """Channels stay whole: their statistics are shared within a group."""
    a = arguments(node)
    rank = _rank(a["input"])
    space = " _" * (rank - 2)
    operands = tuple(a.get(name) for name in ("input", "weight", "bias"))
    return DimRule(
        f"b c{space}, c, c -> b c{space}",
        kind="mixing",
        operands=operands,
        pinned={"c": "channels of a group share their statistics"},
    )


def _rank(node: Node) -> int:
    tensor = tensor_of(node)
    assert tensor is not None
    return tensor.dim()
