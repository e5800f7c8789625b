"""Closing units of real models, and comparing models on many shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile import gates

BATCHES, LENGTHS = (1, 3, 8), (5, 16, 64)


def random_half(model: nn.Module, seed: int, heads: int = 1) -> dict[str, Tensor]:
    """Closes half of the units of every gate; returns them by gate.

    With `heads`, as many close in each of the equal parts that a gate has: units
    inside heads are in the order of the heads.
    """
    generator = torch.Generator().manual_seed(seed)
    closed = {}
    for name, gate in gates(model).items():
        gate.reopen()
        units = torch.arange(gate.size).view(heads, -1)
        order = torch.rand(units.shape, generator=generator).argsort(dim=1)
        half = units.gather(1, order)[:, : units.shape[1] // 2]
        closed[name] = half.flatten().sort().values
        gate.close(closed[name])
    return closed


def batches(vocabulary: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Token ids and masks of all shapes; all rows but the first are padded.

    Rows are padded on the right and on the left in turn.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in BATCHES:
        for length in LENGTHS:
            shape = (batch, length)
            ids = torch.randint(3, vocabulary, shape, generator=generator)
            mask = torch.ones(shape, dtype=torch.long)
            for row in range(1, batch):
                hidden = 1 + row % (length - 2)
                mask[row, slice(-hidden, None) if row % 2 else slice(hidden)] = 0
            yield {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def worst_difference(
    reference: nn.Module,
    candidate: Callable[..., Any],
    inputs: Iterator[dict[str, Tensor]],
    visible_only: bool = False,
) -> float:
    """Largest difference over all `inputs`, relative to the largest magnitude.

    With `visible_only`, at the positions that the mask shows.
    """
    worst = 0.0
    for each in inputs:
        want, got = _tensors(reference(**each)), _tensors(candidate(**each))
        assert len(want) == len(got)
        shown = each["attention_mask"].bool()
        for a, b in zip(want, got, strict=True):
            assert a.shape == b.shape
            if visible_only:
                a, b = a[shown], b[shown]
            worst = max(worst, float((a - b).abs().max() / a.abs().max()))
    return worst


def parameter_count(model: nn.Module) -> int:
    """Parameter elements; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _tensors(outputs: Any) -> list[Tensor]:
    values = outputs.values() if isinstance(outputs, dict) else [outputs]
    return [value for value in values if isinstance(value, Tensor)]
