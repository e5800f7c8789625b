"""Hidden shapes: the part of a shape that parameters decide.

Batch and sequence sizes are symbols in a captured graph. Units live along
static dims, and along the static part of mixed ones: the hidden size of
`12*s0` (heads folded into the batch) is 12, that of `s0 + 1` is 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import Node


def hidden_size(size: Any) -> int:
    """The constant factor of a size: itself if static, 1 if purely symbolic."""
    if isinstance(size, int):
        return size
    return _content(size.node.expr)


def hidden_shape(value: torch.Tensor) -> tuple[int, ...]:
    """`hidden_size` of every dim."""
    return tuple(map(hidden_size, value.shape))


def trial_shapes(*values: torch.Tensor) -> list[list[int]]:
    """The shapes of values with small numbers in them, a prime for every symbol."""
    sizes: list[Any] = [size for value in values for size in value.shape]
    dynamic = [size.node.expr for size in sizes if not isinstance(size, int)]
    symbols = sorted(set().union(*(e.free_symbols for e in dynamic)), key=str)
    primes = {symbol: sympy.prime(k + 2) for k, symbol in enumerate(symbols)}
    return [
        [s if isinstance(s, int) else int(s.node.expr.subs(primes)) for s in v.shape]
        for v in values
    ]


def tensor_of(node: Node) -> torch.Tensor | None:
    """The fake tensor that a node computes, None if it computes something else."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def operands_of(node: Node) -> list[Node]:
    """The nodes among the arguments, in order, each as often as it is one."""
    found: list[Node] = []
    torch.fx.map_arg((node.args, node.kwargs), found.append)
    return found


@lru_cache(maxsize=4096)
def _content(expression: sympy.Expr) -> int:
    content = expression.as_content_primitive()[0]
    return int(content) if content.is_Integer and content > 0 else 1
