"""Identical changes of repeated layers in one row: "layers.{4-9}.mlp"."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fgcompile.report.natural import natural_key

Item = TypeVar("Item")
_LAYER = re.compile(r"(?<![^.])(\d+)(?![^.])")


@dataclass(frozen=True)
class Fold(Generic[Item]):
    """Items that differ in their layer number only, under one name."""

    name: str
    items: tuple[Item, ...]


def fold(
    items: Sequence[Item],
    name: Callable[[Item], str],
    content: Callable[[Item], Hashable],
) -> list[Fold[Item]]:
    """Items of equal content and equal names up to the first number, together.

    >>> rows = fold(["a.0.b", "a.1.b", "a.3.b", "c"], str, lambda _: 0)
    >>> [row.name for row in rows]
    ['a.{0-1,3}.b', 'c']
    """
    folds: dict[Hashable, list[Item]] = {}
    for item in items:
        template = _LAYER.sub("*", name(item), count=1)
        folds.setdefault((template, content(item)), []).append(item)
    rows = [Fold(_name([name(i) for i in row]), tuple(row)) for row in folds.values()]
    return sorted(rows, key=lambda row: natural_key(name(row.items[0])))


def _name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = sorted(
        {int(match[1]) for text in names if (match := _LAYER.search(text))}
    )
    return _LAYER.sub(f"{{{_ranges(numbers)}}}", names[0], count=1)


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs
    )
