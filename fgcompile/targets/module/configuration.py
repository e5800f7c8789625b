"""A configuration that says what sizes a smaller model has.

Which entry of a configuration stands for which size is found by building the class on
the meta device, which costs no memory: an entry that equals an old size gets a new
one, and a combination is right if every parameter gets the shape that it has. Shapes
alone may be made in several ways (fewer heads, or smaller ones); then the numbers in
the attributes of the modules say which way is the model's.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fgcompile.capture.state import silence
from fgcompile.targets.module.slots import slots_of

Shapes = Mapping[str, tuple[int, ...]]
Pairs = set[tuple[int, int]]
Place = tuple[str, int]
"""A parameter and a dim of it."""

_TRIALS = 128
_VALUES = 3


@dataclass(frozen=True)
class Facts:
    """Shapes of the parameters of a model, and numbers in its modules, by name."""

    shapes: Shapes
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, prefix: str = "") -> Facts:
        """Of all that is called `prefix...`."""
        shapes = {
            name: tuple(p.shape)
            for name, p in model.named_parameters(remove_duplicate=False)
            if name.startswith(prefix)
        }
        numbers = {
            f"{path}.{slot}": slot.read(module)
            for path, module in model.named_modules()
            if f"{path}.".startswith(prefix)
            for slot in slots_of(module)
            if not slot.inside
        }
        return cls(shapes, numbers)

    def without(self, prefixes: list[str]) -> Facts:
        """Of all that is not called so."""
        starts = tuple(prefixes)
        shapes = {n: s for n, s in self.shapes.items() if not n.startswith(starts)}
        numbers = {n: k for n, k in self.numbers.items() if not n.startswith(starts)}
        return Facts(shapes, numbers)


@dataclass
class Variants:
    """What a class builds from a configuration with other entries.

    Attributes:
        cls: Of transformers.
        config: Of the dense model. It is not changed.
    """

    cls: Any
    config: Any
    _known: dict[Any, Facts | None] = field(default_factory=dict)

    def __call__(self, entries: Mapping[str, int], read: bool = True) -> Facts | None:
        """Facts of the model with these entries; None if nothing can be built.

        Args:
            entries: Dots lead into nested configurations.
            read: Whether the configuration comes from a file, where classes check
                what their entries have to do with each other.
        """
        key = frozenset(entries.items()), read
        if key not in self._known:
            self._known[key] = self._build(entries, read)
        return self._known[key]

    def _build(self, entries: Mapping[str, int], read: bool) -> Facts | None:
        try:
            with torch.device("meta"), silence():
                config = with_entries(self.config, entries)
                if read:
                    config = type(config).from_dict(config.to_dict())
                return Facts.of(self.cls(config))
        except Exception:
            return None

    def touched(self) -> dict[str, set[Place]]:
        """Parameter dims that depend on each entry, by entry."""
        found = {}
        for path, value in _entries(self.config, ""):
            tries = () if value is None else (value - 1, value // 2, 2 * value)
            places = (self._places(path, new) for new in tries if new > 0)
            if first := next(filter(None, places), None):
                found[path] = first
        return found

    def _places(self, path: str, value: int) -> set[Place]:
        dense, other = (self(e, read=False) for e in ({}, {path: value}))
        if dense is None or other is None:
            return set()
        return set(_different(dense.shapes, other.shapes))


@dataclass(frozen=True)
class Fit:
    """Entries that say as much as a configuration can of a model.

    Attributes:
        entries: New values; dots lead into nested configurations.
        left: Parameter dims of which they do not give the size.
    """

    entries: dict[str, int]
    left: tuple[Place, ...]


def fit_config(
    variants: Variants, pairs: Pairs, wanted: Facts, read: bool = True
) -> Fit | None:
    """The fewest entries that give most parameters the shapes that they have.

    No entry is among them that gives a parameter, or a number in a module, a value
    that is neither its old nor its new one.

    Args:
        variants: Of the dense model's configuration.
        pairs: Sizes before and after, of which an entry may be one.
        wanted: Of the smaller model, or of a part of it.
        read: Whether all entries together must be such as the class reads.

    Returns:
        None if the class builds nothing from the configuration itself.
    """
    dense = variants({}, read)
    if dense is None:
        return None
    best = Fit({}, tuple(_different(wanted.shapes, dense.shapes)))
    options = dict(_options(variants, pairs, wanted, dense))
    for entries in itertools.islice(_combinations(options), _TRIALS):
        if not best.left:
            break
        built = variants(entries, read)
        if built is not None and not _contradicts(built, wanted, dense):
            left = tuple(_different(wanted.shapes, built.shapes))
            if len(left) < len(best.left):
                best = Fit(entries, left)
    return best


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


def explains(built: Facts, wanted: Facts) -> bool:
    """Whether all shapes in `wanted` are those of `built`."""
    return not any(_different(wanted.shapes, built.shapes))


def _contradicts(built: Facts, wanted: Facts, dense: Facts) -> bool:
    """Whether something changed to what it should not be."""
    changed = set(_different(dense.shapes, built.shapes))
    return not changed.isdisjoint(_different(wanted.shapes, built.shapes)) or any(
        number not in (dense.numbers.get(name, number), wanted.numbers[name])
        for name, number in built.numbers.items()
        if name in wanted.numbers
    )


def _different(first: Shapes, second: Shapes) -> Iterator[Place]:
    """Dims of `first` that have another size in `second`."""
    for name, shape in first.items():
        other = second.get(name, ())
        for dim, size in enumerate(shape):
            if len(other) != len(shape) or other[dim] != size:
                yield name, dim


def _options(
    variants: Variants, pairs: Pairs, wanted: Facts, dense: Facts
) -> Iterator[tuple[str, list[int]]]:
    """Values of each entry that equals an old size, or is not set, which help."""
    news: dict[int, set[int]] = {}
    for old, new in pairs:
        if old != new:
            news.setdefault(old, set()).add(new)
    derived: set[int] = set().union(*news.values())
    missing = set(_different(wanted.shapes, dense.shapes))
    for path, value in _entries(variants.config, ""):
        values = derived if value is None else news.get(value, set())
        good = [
            new
            for new in sorted(values)
            if _helps(variants({path: new}, read=False), wanted, missing)
        ]
        if good:
            yield path, good[:_VALUES]


def _helps(built: Facts | None, wanted: Facts, missing: set[Place]) -> bool:
    """Whether any of the missing sizes is right."""
    if built is None:
        return False
    return bool(missing - set(_different(wanted.shapes, built.shapes)))


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
