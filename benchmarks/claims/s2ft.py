"""Which channels S2FT should train, and what two of its adapters do to each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import torch
import torch.nn.functional as F

from benchmarks.claims.network import EXAMPLE, FEW, Network, accuracy, digits, fit
from fgcompile import methods
from fgcompile.methods.s2ft_selection import Criterion

CHANNELS, FUSED = 0.25, 1 / 16
"""Of every hidden layer, in S2FT's adapters; and in those that are fused."""


def selection(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Accuracy on digits to the right, by what S2FT selects its channels by."""
    config = methods.S2ftConfig(heads=0, channels=CHANNELS, seed=seed)
    yield "random", accuracy(_s2ft(base, "right", seed, config), "right")
    for by in get_args(Criterion):
        for largest in (False, True) if by != "random" else ():
            model = _s2ft(base, "right", seed, replace(config, by=by, largest=largest))
            name = f"{by}, {'large' if largest else 'small'}"
            yield name, accuracy(model, "right")


def _s2ft(base: Network, view: str, seed: int, config: methods.S2ftConfig) -> Any:
    """`base` with trained slices."""
    few = digits(view).part(FEW)
    model = methods.insert_s2ft(
        copy.deepcopy(base),
        config,
        EXAMPLE,
        calibration=[(few.x,)],
        loss=lambda logits: F.cross_entropy(logits, few.y),
    )
    return fit(model, few, seed)


def fusion(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Minus what both tasks lose on average by fusing their adapters into one model."""
    config = methods.S2ftConfig(heads=0, channels=FUSED)
    first, same = (
        methods.extract_adapter(_s2ft(base, view, seed, config))
        for view in ("right", "down")
    )
    apart = replace(config, seed=_disjoint_from(base, config, first))
    other = methods.extract_adapter(_s2ft(base, "down", seed, apart))
    yield "together", _change(base, first, same)
    yield "apart", _change(base, first, other)


def _disjoint_from(
    base: Network, config: methods.S2ftConfig, adapter: methods.S2ftAdapter
) -> int:
    """A seed whose random selection has no channel of `adapter`."""
    for seed in range(1, 100):
        model = methods.insert_s2ft(
            copy.deepcopy(base), replace(config, seed=seed), EXAMPLE
        )
        found = methods.extract_adapter(model).entries
        if not any(
            torch.isin(entry.indices, found[key].indices).any()
            for key, entry in adapter.entries.items()
        ):
            return seed
    raise AssertionError("no seed selects other channels")


def _change(
    base: Network, right: methods.S2ftAdapter, down: methods.S2ftAdapter
) -> float:
    tasks = {"right": right, "down": down}
    both = copy.deepcopy(base)
    alone = 0.0
    for view, adapter in tasks.items():
        single = copy.deepcopy(base)
        methods.fuse(single, adapter)
        alone += accuracy(single, view)
        methods.fuse(both, adapter)
    return (sum(accuracy(both, view) for view in tasks) - alone) / len(tasks)
