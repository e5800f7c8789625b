"""The inputs that are tried when programs are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fgcompile.capture import other_inputs
from fgcompile.program import Program

SHAPES = (
    *((1, 5, False), (2, 16, True), (3, 9, True), (3, 33, False)),
    *((8, 7, True), (1, 64, False)),
)
"""Batch size, length and padding of the inputs, besides the example inputs.

Large batches are short and long rows alone: for a model of a billion parameters it is
the number of tokens that lowering takes its time for.
"""

_FEW_ROWS, _MANY_NUMBERS = 3, 100_000
"""More rows than the former are not tried where they hold more numbers than the latter:
pictures and sounds cannot be short."""


def verification_inputs(program: Program) -> Iterator[dict[str, Any]]:
    """The example inputs, and fresh ones of other sizes, with and without padding.

    Sizes that are fixed leave fewer cases to tell apart: each comes once. The first
    fresh one always comes, for its numbers.
    """
    yield program.inputs
    seen: list[Any] = []
    for seed, (batch, length, padded) in enumerate(SHAPES):
        inputs = other_inputs(program, batch, length, padded, seed=seed)
        numbers = sum(tensor.numel() for tensor in tensors_of(inputs))
        if _case(inputs) in seen or (batch > _FEW_ROWS and numbers > _MANY_NUMBERS):
            continue
        seen += [_case(inputs), _case(program.inputs)]
        yield inputs


def _case(inputs: dict[str, Any]) -> list[Any]:
    """What tells inputs from others that differ in their numbers alone."""
    return [(tensor.shape, _hidden(tensor)) for tensor in tensors_of(inputs)]


def _hidden(tensor: Tensor) -> list[Any]:
    """What `tensor` hides, if it may be a mask: one of truth values, zeros and ones."""
    if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
        return []
    return tensor.tolist() if tensor.min() >= 0 and tensor.max() <= 1 else []


def shapes_of(inputs: dict[str, Any]) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in inputs.items() if isinstance(v, Tensor)}


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in a nest, or in an output of transformers."""
    if hasattr(outputs, "to_tuple"):
        outputs = outputs.to_tuple()
    leaves = pytree.tree_leaves(outputs)
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]
