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
from torch.fx.operator_schemas import normalize_function

aten = torch.ops.aten

_Call = Callable[..., Node]


@dataclass(frozen=True)
class _Mean:
    """`mean(source, dims, keepdim=True)`."""

    source: Node
    dims: tuple[int, ...]


def one_operator(node: Node, call: _Call) -> bool:
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
    if value.dtype not in (torch.float32, torch.float64) or not mean.dims:
        return False
    first, last = mean.dims[0], value.dim() - 1
    trailing = mean.dims == tuple(range(first, last + 1))
    sizes = [value.shape[dim] for dim in mean.dims]
    if not all(type(size) is int for size in sizes):
        return False
    if trailing:
        source: Node = mean.source
        node.target, node.args = (
            aten.layer_norm.default,
            (source, sizes, None, None, eps),
        )
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
    left, right = node.args[:2]
    if node.target is aten.div.Tensor:
        pairs = [(left, _under(right, aten.sqrt.default, 0.5))]
    else:
        inverse = (aten.rsqrt.default, -0.5)
        pairs = [(left, _under(right, *inverse)), (right, _under(left, *inverse))]
    for value, inside in pairs:
        if _is(inside, aten.add.Tensor):
            a = _arguments(inside)
            if isinstance(a["other"], float) and a["alpha"] == 1:
                return value, a["input"], a["other"]
    return None


def _under(node: Any, root: Any, exponent: float) -> Any:
    """The operand of a root, also of one that is written as a power."""
    if _is(node, root):
        return node.args[0]
    if _is(node, aten.pow.Tensor_Scalar) and node.args[1] == exponent:
        return node.args[0]
    reciprocal = exponent < 0 and _is(node, aten.reciprocal.default)
    return _under(node.args[0], aten.sqrt.default, 0.5) if reciprocal else None


def _centred(node: Any) -> _Mean | None:
    """The mean that is subtracted from what it is the mean of."""
    if not _is(node, aten.sub.Tensor):
        return None
    a = _arguments(node)
    mean = _mean(a["other"])
    return mean if mean and mean.source is a["input"] and a["alpha"] == 1 else None


def _variance(node: Any) -> _Mean | None:
    """The mean of which `node` is the mean square distance, in the same dims."""
    if _is(node, aten.var.correction, aten.var.dim):
        a = _arguments(node)
        biased = a.get("correction", a.get("unbiased")) in (0, False)
        return _mean_of(node, a) if biased and a["dim"] else None
    squares = _mean(node)
    if squares is None:
        return None
    square = squares.source
    if _is(square, aten.pow.Tensor_Scalar) and square.args[1] == 2:
        mean = _centred(square.args[0])
    elif _is(square, aten.mul.Tensor):
        mean, other = map(_centred, square.args)
        mean = mean if mean == other else None
    else:
        return None
    return mean if mean and mean.dims == squares.dims else None


def _mean(node: Any) -> _Mean | None:
    if not _is(node, aten.mean.dim):
        return None
    a = _arguments(node)
    same = a["dtype"] in (None, node.args[0].meta["val"].dtype)
    return _mean_of(node, a) if same and a["dim"] else None


def _mean_of(node: Node, a: dict[str, Any]) -> _Mean | None:
    source = a["input"]
    rank = source.meta["val"].dim()
    return (
        _Mean(source, tuple(sorted(d % rank for d in a["dim"])))
        if a["keepdim"]
        else None
    )


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.target in targets


def _arguments(node: Node) -> dict[str, Any]:
    found = normalize_function(
        node.target,  # type: ignore[arg-type]
        node.args,
        node.kwargs,
        normalize_to_only_use_kwargs=True,
    )
    assert found is not None, node.format_node()
    return found.kwargs
