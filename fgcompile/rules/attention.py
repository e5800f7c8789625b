"""The rule of fused attention: two contractions around a softmax."""

from __future__ import annotations

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, dim_rule
from fgcompile.rules.shapes import tensor_of


@dim_rule("aten::scaled_dot_product_attention")
def scaled_dot_product_attention(node: Node) -> tuple[DimRule, ...]:
    """Scores, weights and output, as eager attention would compute them.

    With `enable_gqa` every `r` consecutive query heads read one key/value head.
    """
    a = arguments(node)
    grouped = a.get("enable_gqa", False)
    key = tensor_of(a["key"])
    assert key is not None
    heads, shared = ("b (g r)", "b g") if grouped else ("...", "...")
    sizes = {"g": int(key.shape[1])} if grouped else {}
    mask = tensor_of(a["attn_mask"]) if a["attn_mask"] is not None else None
    rank = mask.dim() if mask is not None else 4
    added = " ".join(("b", "(g r)", "q", "k")[-rank:])
    reason = "attention weights are normalised over the keys"
    return (
        DimRule(
            f"{heads} q d, {shared} k d, ... q k -> {heads} q k"
            if not grouped
            else f"{heads} q d, {shared} k d, {added} -> {heads} q k",
            operands=(a["query"], a["key"], a["attn_mask"]),
            addends=(2,),
            sizes=sizes,
            output="scores",
        ),
        DimRule(
            "... q k -> ... q k",
            kind="mixing",
            operands=("scores",),
            pinned={"k": reason},
            output="weights",
        ),
        DimRule(
            f"{heads} q k, {shared} k e -> {heads} q e",
            operands=("weights", a["value"]),
            sizes=sizes,
        ),
    )
