"""Which sizes of the example inputs are traced as symbols, and that they stay so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

Choice = Callable[[Tensor], set[int]]


def _batch(_: Tensor) -> set[int]:
    return {0}


def _batch_and_tokens(tensor: Tensor) -> set[int]:
    integral = not (tensor.is_floating_point() or tensor.is_complex())
    return {0, 1} if integral else {0}


def _batch_and_sequence(tensor: Tensor) -> set[int]:
    """Feature sequences `[b t c]` and waveforms `[b t]` count as sequences too."""
    return {0, 1} if tensor.dim() <= 3 else {0}


def _nothing(_: Tensor) -> set[int]:
    return set()


# From most to least general: the first that the model can be traced with is taken.
LADDER: tuple[tuple[str, Choice], ...] = (
    ("batch and sequence", _batch_and_sequence),
    ("batch and tokens", _batch_and_tokens),
    ("batch", _batch),
    ("no", _nothing),
)


def dynamic_shapes(inputs: dict[str, Any], choice: Choice) -> dict[str, Any]:
    """`dynamic_shapes` for torch.export; sizes 0 and 1 are never symbols."""

    def one(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        dims = {dim for dim in choice(leaf) if dim < leaf.dim() and leaf.shape[dim] > 1}
        return {dim: Dim.AUTO for dim in sorted(dims)}

    return pytree.tree_map(one, inputs)


def distinct_plans(
    inputs: dict[str, Any], fixed: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rungs of the ladder that differ for these inputs, as (label, shapes).

    With `fixed`, the last one only.
    """
    seen: list[dict[str, Any]] = []
    for label, choice in LADDER[-1:] if fixed else LADDER:
        plan = dynamic_shapes(inputs, choice)
        if plan not in seen:
            seen.append(plan)
            yield label, plan


def grow_batch(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with a batch that can be traced as a symbol of its own.

    A batch of 1, or one as large as the second dim, is repeated along dim 0, if all
    tensors agree on dim 0; otherwise the inputs come back as they are.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes:
        return inputs
    (batch,) = sizes
    if batch > 1 and all(t.dim() < 2 or t.shape[1] != batch for t in tensors):
        return inputs
    repeats = 2 if batch > 1 else _free_factor(tensors)

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf] * repeats)

    return pytree.tree_map(repeat, inputs)


def _free_factor(tensors: list[Tensor]) -> int:
    taken = {tensor.shape[1] for tensor in tensors if tensor.dim() > 1}
    return next(size for size in (2, 3, 4) if size not in taken or size == 4)


@contextmanager
def dynamic_sizes(sizes: ShapeEnv | None) -> Iterator[None]:
    """Dynamic sizes stay dynamic.

    A view that no longer fits may still fit the one batch that was traced; an operator
    that asks for it settles the size for all programs that share these symbols.

    Raises:
        ValueError: If a size was settled; it is dynamic again.
    """
    if sizes is None:
        yield
        return
    known, ranges = dict(sizes.replacements), dict(sizes.var_to_range)
    try:
        yield
    finally:
        settled = [
            symbol
            for symbol, value in sizes.replacements.items()
            if value.is_number and known.get(symbol) != value
        ]
        if settled:
            for current, before in (
                (sizes.replacements, known),
                (sizes.var_to_range, ranges),
            ):
                current.clear()
                current.update(before)
            sizes._update_version_counter()
            sizes._replacements_version_counter += 1  # what nodes remember is stale
    if settled:
        raise ValueError(f"it fits one size of {settled[0]} only")
