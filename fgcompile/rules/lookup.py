"""Rules of lookups: rows picked by data."""

from __future__ import annotations

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, dim_rule
from fgcompile.rules.shapes import tensor_of


@dim_rule("aten::embedding")
def embedding(node: Node) -> DimRule:
    """A table's rows by index: its columns are hidden dims, its rows stay."""
    a = arguments(node)
    return DimRule(
        "v h, ... -> ... h",
        kind="lookup",
        operands=(a["weight"], a["indices"]),
        pinned={"v": "its index is data (embedding)"},
    )


@dim_rule("aten::gather")
def gather(node: Node) -> DimRule:
    """Elements along one dim by index; the other dims are aligned."""
    a = arguments(node)
    tensor = tensor_of(a["input"] if "input" in a else a["self"])
    assert tensor is not None
    rank = tensor.dim()
    dim = a["dim"] % rank if rank else 0
    outer = [f"n{k}" for k in range(rank)]
    source = [name if k != dim else "p" for k, name in enumerate(outer)]
    target = [name if k != dim else "_" for k, name in enumerate(outer)]
    return DimRule(
        f"{' '.join(source)}, {' '.join(target)} -> {' '.join(target)}",
        kind="mixing",
        operands=(a.get("input", a.get("self")), a["index"]),
        annihilators=(0,),
        pinned={"p": "its index is data (gather)"},
    )
