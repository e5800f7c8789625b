"""A configuration that says what sizes a smaller model has.

Which entry of a configuration stands for which size is found by building the class on
the meta device, which costs no memory: an entry that equals an old size gets the new
one, and the combination is right if every parameter gets the shape that it has.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fgcompile.capture.state import silence

Shapes = Mapping[str, tuple[int, ...]]
Build = Callable[[Any], nn.Module]
Pairs = set[tuple[int, int]]

_TRIALS = 128
_VALUES = 3


def fit_config(
    config: Any, build: Build, pairs: Pairs, wanted: Shapes
) -> dict[str, int] | None:
    """Entries of `config` that give parameters the shapes in `wanted`.

    Args:
        config: Of the dense model. It is not changed.
        build: Makes a model from a configuration, on the device of the context.
        pairs: Sizes before and after, of which an entry may be one.
        wanted: Shapes of the parameters to look at, by name.

    Returns:
        New values of the fewest entries; dots lead into nested configurations. None
        if no combination was found.
    """
    dense = _shapes(build, config, {})
    options = {
        path: effective
        for path, values in _options(config, pairs).items()
        if (effective := [v for v in values if _matters(config, build, path, v, dense)])
    }
    for entries in itertools.islice(_combinations(options), _TRIALS):
        shapes = _shapes(build, config, entries)
        if shapes is not None and all(shapes.get(n) == s for n, s in wanted.items()):
            return entries
    return None


def _matters(
    config: Any, build: Build, path: str, value: int, dense: Shapes | None
) -> bool:
    """Whether any parameter has another shape with that entry."""
    shapes = _shapes(build, config, {path: value})
    return shapes is not None and shapes != dense


def with_entries(config: Any, entries: Mapping[str, Any]) -> Any:
    """A copy of `config` with other values; dots lead into nested ones."""
    result = copy.deepcopy(config)
    for path, value in entries.items():
        *parents, name = path.split(".")
        holder = result
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, name, value)
    return result


def _options(config: Any, pairs: Pairs) -> dict[str, list[int]]:
    """New values of each entry that equals an old size, or is not set."""
    news: dict[int, set[int]] = {}
    for old, new in pairs:
        if old != new:
            news.setdefault(old, set()).add(new)
    derived = set().union(*news.values())
    return {
        path: sorted(derived if value is None else news.get(value, ()))[:_VALUES]
        for path, value in _entries(config, "")
    }


def _entries(config: Any, prefix: str) -> Iterator[tuple[str, int | None]]:
    """Entries that hold a number, or None where a class may derive one."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            yield prefix + name, value
        elif hasattr(value, "to_dict") and not isinstance(value, type):
            yield from _entries(value, f"{prefix}{name}.")


def _combinations(options: dict[str, list[int]]) -> Iterator[dict[str, int]]:
    """None changed, then one, and so on."""
    for count in range(len(options) + 1):
        for names in itertools.combinations(options, count):
            for values in itertools.product(*(options[name] for name in names)):
                yield dict(zip(names, values, strict=True))


def _shapes(
    build: Build, config: Any, entries: Mapping[str, int]
) -> dict[str, tuple[int, ...]] | None:
    """Shapes of what `config` with `entries` builds; None if it builds nothing."""
    try:
        with torch.device("meta"), silence():
            model = build(with_entries(config, entries))
    except Exception:
        return None
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}
