"""Rules of reductions, and of operators that read whole rows."""

from __future__ import annotations

import re
from dataclasses import replace

from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import DimRule, Kind, dim_rule
from fgcompile.rules.shapes import tensor_of


@dim_rule("aten::sum", "aten::mean", "aten::linalg_vector_norm")
def zero_safe_reduction(node: Node) -> DimRule:
    """Sums: a zero adds nothing. Means too, once divided by the original count.

    Norms of a negative order look for the smallest, where a zero counts.
    """
    return _reduce(node, zero_safe=arguments(node).get("ord", 2) >= 0)


@dim_rule("aten::amax", "aten::amin", "aten::var", "aten::std", "aten::prod.dim_int")
@dim_rule("aten::any.dim", "aten::all.dim")
def whole_row_reduction_of_zeros(node: Node) -> DimRule:
    """Reductions in which a zero counts, and that make a zero of nothing but zeros."""
    return replace(_reduce(node, zero_safe=False), annihilators=(0,))


@dim_rule("aten::max.dim", "aten::min.dim", "aten::argmax", "aten::argmin")
@dim_rule("aten::var_mean", "aten::logsumexp", "aten::aminmax", "aten::mode")
@dim_rule("aten::median", "aten::nanmedian", "aten::kthvalue")
def whole_row_reduction(node: Node) -> DimRule:
    """Reductions in which a zero counts: the reduced dims stay whole."""
    return _reduce(node, zero_safe=False)


@dim_rule("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::cumsum")
@dim_rule("aten::sort", "aten::topk", "aten::argsort", "aten::cumprod")
@dim_rule("aten::_safe_softmax", "aten::cummax", "aten::cummin")
@dim_rule("aten::logcumsumexp")
def along_one_dim(node: Node) -> DimRule:
    """Operators that compare or accumulate along one dim, which stays whole."""
    a = arguments(node)
    dims = _names(node)
    dim = dims[a["dim"] % len(dims)]
    text = " ".join(dims)
    kept = " ".join("_" if d == dim else d for d in dims)
    schema = node.target._schema  # type: ignore[union-attr]
    same_size = not schema.name.endswith("topk")
    return DimRule(
        f"{text} -> {text if same_size else kept}",
        kind="mixing",
        operands=(_first(node),),
        pinned={dim: f"{schema.name.split('::')[1]} reads it as a whole"},
        outputs=len(schema.returns),
    )


@dim_rule("aten::max_pool1d", "aten::max_pool2d", "aten::avg_pool1d")
@dim_rule("aten::avg_pool2d", "aten::adaptive_avg_pool1d", "aten::upsample_nearest2d")
@dim_rule("aten::adaptive_avg_pool2d", "aten::adaptive_max_pool2d")
@dim_rule("aten::upsample_bilinear2d", "aten::upsample_bicubic2d")
@dim_rule("aten::_upsample_bicubic2d_aa", "aten::_upsample_bilinear2d_aa")
@dim_rule("aten::max_pool2d_with_indices", "aten::upsample_linear1d")
@dim_rule("aten::max_pool3d_with_indices", "aten::avg_pool3d")
@dim_rule("aten::_adaptive_avg_pool3d", "aten::upsample_trilinear3d")
@dim_rule("aten::upsample_nearest1d", "aten::upsample_nearest3d")
def pooling(node: Node) -> DimRule:
    """Pooling and resampling: channels pass, positions are mixed."""
    name = node.target._schema.name  # type: ignore[union-attr]
    positions = int(re.findall(r"(\d)d", name)[0])
    passing = " ".join(_names(node)[:-positions])
    space = " _" * positions
    return DimRule(
        f"{passing}{space} -> {passing}{space}",
        kind="mixing",
        operands=(_first(node),),
        annihilators=(0,),
        outputs=len(node.target._schema.returns),  # type: ignore[union-attr]
    )


def _reduce(node: Node, *, zero_safe: bool) -> DimRule:
    a, names = arguments(node), _names(node)
    dim, keepdim = a.get("dim"), a.get("keepdim", False)
    if dim is None or dim == []:
        reduced = set(range(len(names)))
    else:
        reduced = {d % len(names) for d in (dim if isinstance(dim, list) else [dim])}
    kept = [name for k, name in enumerate(names) if k not in reduced]
    if keepdim:
        kept = ["_" if k in reduced else name for k, name in enumerate(names)]
    op = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    pinned = {} if zero_safe else {names[k]: f"{op} counts zeros" for k in reduced}
    kind: Kind = "reduction" if zero_safe else "mixing"
    return DimRule(
        f"{' '.join(names)} -> {' '.join(kept)}",
        kind=kind,
        operands=(_first(node),),
        zero_safe=zero_safe,
        pinned=pinned,
        outputs=len(node.target._schema.returns),  # type: ignore[union-attr]
    )


def _first(node: Node) -> Node:
    first = node.args[0]
    assert isinstance(first, Node)
    return first


def _names(node: Node) -> list[str]:
    tensor = tensor_of(_first(node))
    assert tensor is not None
    return [f"n{k}" for k in range(tensor.dim())]
