"""Inputs of other sizes than a program was captured with, for verifying it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fgcompile.program import Program


def other_inputs(
    program: Program,
    batch: int = 3,
    length: int = 7,
    padded: bool = False,
    seed: int = 1,
) -> dict[str, Any]:
    """Fresh inputs with the structure of `program.inputs`, at other sizes.

    Symbolic sizes along dim 0 become `batch`, those along other dims `length`, clamped
    to the range that capture found. Where the example sizes differ, so do the new ones
    (`length - 1` ...). Fixed sizes stay.

    Args:
        program: Tells which sizes may differ.
        batch: Rows.
        length: Sequence length of the first input that has a symbolic one.
        padded: Whether two-dimensional masks hide part of every row but the first,
            alternately at its end and at its beginning.
        seed: Same seed, same inputs.
    """
    values = [node.meta.get("val") for node in program.placeholders]
    return resized(program.inputs, values, batch, length, padded, seed)


def resized(
    inputs: dict[str, Any],
    values: list[Any],
    batch: int,
    length: int,
    padded: bool = False,
    seed: int = 1,
) -> dict[str, Any]:
    """Like `other_inputs`, for inputs of which `values` were traced."""
    generator = torch.Generator().manual_seed(seed)
    sizes = _Sizes(batch, length)
    leaves, spec = pytree.tree_flatten(list(inputs.values()))
    fresh = [
        _like(leaf, sizes.shape(value, leaf), generator, padded)
        if isinstance(leaf, Tensor)
        else leaf
        for value, leaf in zip(values, leaves, strict=True)
    ]
    return dict(zip(inputs, pytree.tree_unflatten(fresh, spec), strict=True))


class _Sizes:
    """New sizes for symbolic ones; sizes that were equal before stay equal."""

    def __init__(self, batch: int, length: int) -> None:
        self.wanted = {"batch": batch, "length": length}
        self.by_symbol: dict[Any, int] = {}
        self.by_hint: dict[tuple[str, int], int] = {}

    def shape(self, value: Any, leaf: Tensor) -> list[int]:
        if not isinstance(value, Tensor):
            return list(leaf.shape)
        return [
            size if isinstance(size, int) else self._size(size.node, dim, seen)
            for dim, (size, seen) in enumerate(
                zip(value.shape, leaf.shape, strict=True)
            )
        ]

    def _size(self, symbolic: Any, dim: int, seen: int) -> int:
        expression = symbolic.shape_env.simplify(symbolic.expr)
        for symbol in sorted(expression.free_symbols - self.by_symbol.keys(), key=str):
            bounds = symbolic.shape_env.var_to_range.get(symbol)
            self.by_symbol[symbol] = self._choose(dim, seen, bounds)
        return int(expression.subs(self.by_symbol))

    def _choose(self, dim: int, seen: int, bounds: Any) -> int:
        role = "length" if dim else "batch"
        if (role, seen) not in self.by_hint:
            wanted = self.wanted[role]
            if bounds is not None:
                # Tracing takes every size for 2 or more; what it found also holds for 1
                # as a rule, and 1 is the batch that most serve.
                lower = 1 if bounds.lower == 2 else bounds.lower
                wanted = int(max(lower, min(bounds.upper, wanted)))
            self.by_hint[role, seen] = wanted
            self.wanted[role] = max(2, wanted - 1)
        return self.by_hint[role, seen]


def _like(
    leaf: Tensor, shape: list[int], generator: torch.Generator, padded: bool
) -> Tensor:
    if leaf.is_floating_point() or leaf.is_complex():
        return torch.randn(shape, generator=generator).to(leaf)
    if _is_mask(leaf):
        return _mask(shape, padded).to(leaf)
    low, high = (0, 1) if leaf.is_meta else (int(leaf.min()), int(leaf.max()))
    return torch.randint(low, high + 1, shape, generator=generator).to(leaf)


def _is_mask(leaf: Tensor) -> bool:
    """All ones, or of truth values: what marks the positions that count."""
    return leaf.dtype == torch.bool or (not leaf.is_meta and bool((leaf == 1).all()))


def _mask(shape: list[int], padded: bool) -> Tensor:
    mask = torch.ones(shape, dtype=torch.long)
    if not padded or len(shape) != 2:
        return mask
    for row in range(1, shape[0]):
        hidden = min(row, shape[1] - 1)
        if row % 2:
            mask[row, -hidden:] = 0
        else:
            mask[row, :hidden] = 0
    return mask
