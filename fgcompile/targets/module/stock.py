"""Layers that agree so that a configuration describes them, for stock loaders.

A class need not build whatever layers agree on: BERT's heads always fill its width,
Llama wants a number of heads that divides it, T5 has one size for two stacks. So the
class is asked. Where it has no configuration for a size, units are revived until it
has: the next number that divides well if an entry is about just this size, else all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fgcompile.capture.state import silence
from fgcompile.targets.module.configuration import (
    Facts,
    Fit,
    Place,
    Variants,
    fit_config,
    with_entries,
)
from fgcompile.targets.module.history import history_of
from fgcompile.targets.module.lowered import LoweredModule
from fgcompile.targets.module.uniform import Alike, joined
from fgcompile.targets.verify import outputs_of

logger = logging.getLogger(__name__)

_ATTEMPTS = 6

Even = Callable[[list[Alike]], LoweredModule]
"""Lowers with these numbers of units."""


def fit_uniform(
    model: Any, sets: list[Alike], even: Even, inputs: dict[str, Any] | None
) -> LoweredModule:
    """The smallest model of which all layers agree and that its class can build.

    If there is none, layers agree in what they have, and `kept.unfit` says why.

    Args:
        model: Of transformers.
        sets: Groups that keep equally many units, as few as they can.
        even: Makes the smaller model.
        inputs: On which the class's own model is compared; None without values.
    """
    config = history_of(model).config
    variants = Variants(type(model), model.config if config is None else config)
    touched = list(variants.touched().values())
    sets = joined(sets, touched)
    first = made = even(sets)
    for attempt in range(_ATTEMPTS):
        fit = whole_fit(made, variants)
        if fit is None:
            break
        if _builds(made, variants, fit, inputs):
            return made
        if not _raise(sets, set(fit.left), touched, attempt == _ATTEMPTS - 2):
            break
        made = even(sets)
    first.kept.unfit = _why(first, whole_fit(first, variants))
    logger.warning(first.kept.unfit)
    return first


def whole_fit(made: LoweredModule, variants: Variants) -> Fit | None:
    """What a configuration can say of the model of `made`."""
    pairs = {pair for pairs in made.history.sizes.values() for pair in pairs}
    return fit_config(variants, pairs, Facts.of(made.model))


def computes_the_same(
    model: nn.Module,
    config: Any,
    inputs: dict[str, Any],
    prepare: Callable[[nn.Module], None] = lambda stock: None,
) -> bool:
    """Whether what `config` builds gives the same outputs with the same weights.

    Args:
        model: To compare with.
        config: Of another model of its class.
        inputs: By name.
        prepare: Called with the other model before it gets the weights.
    """
    try:
        with silence():
            stock: Any = type(model)(config)
            prepare(stock)
            stock = stock.to(next(model.parameters()).dtype).eval()
            stock.load_state_dict(model.state_dict())
        want, got = (outputs_of(m, inputs) for m in (model, stock))
    except Exception:
        return False
    return len(want) == len(got) and all(
        w.shape == g.shape and torch.allclose(w, g, rtol=1e-5, atol=1e-6)
        for w, g in zip(want, got, strict=True)
    )


def _builds(
    made: LoweredModule, variants: Variants, fit: Fit, inputs: dict[str, Any] | None
) -> bool:
    if fit.left:
        return False
    config = with_entries(variants.config, fit.entries)
    return inputs is None or computes_the_same(made.model, config, inputs)


def _raise(
    sets: list[Alike], left: set[Place], touched: list[set[Place]], last: bool
) -> bool:
    """More units for the sets that `left` is of; False if no set has more.

    Where all sizes are right and the result is not, the cheapest set gets them.

    Args:
        sets: Changed in place.
        left: Sizes that no entry gives.
        touched: The parameter dims that depend on each entry.
        last: Whether there is no time for less than all.
    """
    room = [s for s in sets if s.count < s.size]
    guilty = [s for s in room if not left.isdisjoint(s.places)]
    if not left:
        guilty = sorted(room, key=lambda s: s.cost)[:1]
    for alike in guilty:
        own = any(places and places <= alike.places for places in touched)
        alike.why = f"no configuration says {alike.count} of {alike.size}"
        alike.count = alike.next_count() if own and not last else alike.size
    return bool(guilty)


def _why(made: LoweredModule, fit: Fit | None) -> str:
    name = type(made.model).__name__
    places: Iterable[Place] = () if fit is None else fit.left
    shapes = {n: list(p.shape) for n, p in made.model.named_parameters()}
    sizes = [f"{n} {shapes[n]}" for n in dict(places) if n in shapes]
    what = f"; {len(sizes)} sizes differ, first {sizes[0]}" if sizes else ""
    return (
        f"no configuration of {name} builds this model, so that other loaders cannot "
        f"read it, though its layers agree{what}"
    )
