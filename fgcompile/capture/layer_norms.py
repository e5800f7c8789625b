"""Layer normalisations that are written out, as one operator.

Of `(x - mean(x)) * rsqrt(mean((x - mean(x))^2) + eps)` no unit can leave: a zero of `x`
does not stay zero once the mean is subtracted. Only the normalisation as a whole is
known to be repaired when zeros leave, so that is what the graph has to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fgcompile.program import arguments

aten = torch.ops.aten


@dataclass(frozen=True)
class _Mean:
    """`mean(source, dims, keepdim=True)`; the dims in order."""

    source: Node
    dims: tuple[int, ...]


def as_one_operator(node: Node, call: Callable[..., Node]) -> bool:
    """Rewrites `node` if it is the last operator of a layer norm; whether it is.

    Args:
        node: A product or quotient.
        call: Makes a node before `node`, of an operator and its arguments.
    """
    parts = _quotient(node)
    if parts is None:
        return False
    centred, variance, eps = parts
    mean = _centred(centred)
    if mean is None or _variance(variance) != mean:
        return False
    value = mean.source.meta["val"]
    # In short types the operator rounds once, and what is written rounds every step.
    if value.dtype not in (torch.float32, torch.float64):
        return False
    first, last = mean.dims[0], value.dim() - 1
    sizes = [value.shape[dim] for dim in mean.dims]
    if not all(type(size) is int for size in sizes):
        return False
    trailing = mean.dims == tuple(range(first, last + 1))
    if trailing:
        node.target = aten.layer_norm.default
        node.args = (mean.source, sizes, None, None, eps)
    elif len(mean.dims) == 1:
        moved = call(aten.transpose.int, mean.source, first, last)
        norm = call(aten.layer_norm.default, moved, sizes, None, None, eps)
        node.target, node.args = aten.transpose.int, (norm, first, last)
    else:
        return False
    node.kwargs = {}
    return True


def _quotient(node: Node) -> tuple[Any, Any, float] | None:
    """`a`, `v` and `eps` of `a / sqrt(v + eps)`, however it is spelled."""
    a = arguments(node)
    left, right = a["self"], a["other"]
    if node.target is aten.div.Tensor:
        pairs = [(left, _under_root(right))]
    else:
        pairs = [(left, _under_inverse_root(right)), (right, _under_inverse_root(left))]
    for value, inside in pairs:
        if _is(inside, aten.add.Tensor):
            a = arguments(inside)
            if isinstance(a["other"], float) and a["alpha"] == 1:
                return value, a["self"], a["other"]
    return None


def _under_root(node: Any) -> Any:
    if _is(node, aten.sqrt.default):
        return arguments(node)["self"]
    return _base(node, 0.5)


def _under_inverse_root(node: Any) -> Any:
    if _is(node, aten.rsqrt.default):
        return arguments(node)["self"]
    if _is(node, aten.reciprocal.default):
        return _under_root(arguments(node)["self"])
    return _base(node, -0.5)


def _base(node: Any, exponent: float) -> Any:
    """What is raised to the power of `exponent`, or None."""
    if not _is(node, aten.pow.Tensor_Scalar):
        return None
    a = arguments(node)
    return a["self"] if a["exponent"] == exponent else None


def _centred(node: Any) -> _Mean | None:
    """The mean that is subtracted from what it is the mean of."""
    if not _is(node, aten.sub.Tensor):
        return None
    a = arguments(node)
    mean = _mean(a["other"])
    return mean if mean and mean.source is a["self"] and a["alpha"] == 1 else None


def _variance(node: Any) -> _Mean | None:
    """The mean of which `node` is the mean square distance, in the same dims."""
    if _is(node, aten.var.correction, aten.var.dim):
        a = arguments(node)
        biased = a.get("correction", a.get("unbiased")) in (0, False)
        return _over_dims(a) if biased else None
    squares = _mean(node)
    if squares is None:
        return None
    square = squares.source
    mean = _centred(_base(square, 2))
    if mean is None and _is(square, aten.mul.Tensor):
        a = arguments(square)
        mean, other = _centred(a["self"]), _centred(a["other"])
        if mean != other:
            return None
    return mean if mean and mean.dims == squares.dims else None


def _mean(node: Any) -> _Mean | None:
    if not _is(node, aten.mean.dim):
        return None
    a = arguments(node)
    same_type = a["dtype"] in (None, a["self"].meta["val"].dtype)
    return _over_dims(a) if same_type else None


def _over_dims(a: dict[str, Any]) -> _Mean | None:
    """The mean over the dims that a reduction names, if it keeps them."""
    if not a["dim"] or not a["keepdim"]:
        return None
    rank = a["self"].meta["val"].dim()
    return _Mean(a["self"], tuple(sorted(dim % rank for dim in a["dim"])))


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.target in targets
