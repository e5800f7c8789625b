"""Which units stayed, found by equal slices of the stored values.

A unit that stayed left its row (or column) unchanged in at least one member. Where
no member shows it, because values were trained on or merged, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from fgcompile.report.pairs import TensorPair
from fgcompile.report.summary import ModelSummary

Array = np.ndarray[Any, Any]
Members = Sequence[tuple[TensorPair, int]]


class KeptIndices:
    """Solves groups one after the other; a solved one helps the rest."""

    def __init__(self, before: ModelSummary, after: ModelSummary) -> None:
        self._before, self._after = before, after
        self._entries: dict[tuple[TensorPair, int], Array] = {}

    def solve(self, groups: Sequence[tuple[Members, int, int]]) -> None:
        """Find the kept entries of every group of (members, units before, after)."""
        waiting = list(groups)
        while waiting:
            rest = [group for group in waiting if not self._solve_one(*group)]
            if len(rest) == len(waiting):
                return
            waiting = rest

    def units(self, members: Members, size: int) -> tuple[int, ...] | None:
        """Sorted kept units of a group of `size` units; None if not known."""
        for pair, dim in members:
            entries = self._entries.get((pair, dim))
            if entries is not None and len(entries):
                per_unit = self._before.parameters[pair.before].shape[dim] // size
                return tuple(int(unit) for unit in entries[::per_unit] // per_unit)
        return None

    def _solve_one(self, members: Members, before: int, after: int) -> bool:
        if after > before:
            return False
        for pair, dim in sorted(members, key=self._cost):
            entries = self._matching_rows(pair, dim)
            units = None if entries is None else self._whole(entries, pair, dim, before)
            if units is not None:
                self._spread(members, before, units)
                return True
        return False

    def _cost(self, member: tuple[TensorPair, int]) -> int:
        return self._before.parameters[member[0].before].count

    def _matching_rows(self, pair: TensorPair, dim: int) -> Array | None:
        old = self._before.parameters[pair.before]
        new = self._after.parameters[pair.after]
        if old.read is None or new.read is None or old.dtype != new.dtype:
            return None
        other = [
            d
            for d in range(len(old.shape))
            if d != dim and old.shape[d] != new.shape[d]
        ]
        if any((pair, d) not in self._entries for d in other):
            return None
        values = np.asarray(old.read())
        if values.shape != old.shape:
            return None
        for d in other:
            values = values.take(self._entries[pair, d], axis=d)
        return _positions(_rows(values, dim), _rows(np.asarray(new.read()), dim))

    def _whole(
        self, entries: Array, pair: TensorPair, dim: int, size: int
    ) -> Array | None:
        """The units these entries make up; None if one is not whole."""
        per_unit = self._before.parameters[pair.before].shape[dim] // size
        if not per_unit or len(entries) % per_unit:
            return None
        blocks = entries.reshape(-1, per_unit)
        whole = blocks[:, :1] // per_unit * per_unit + np.arange(per_unit)
        return blocks[:, 0] // per_unit if np.array_equal(blocks, whole) else None

    def _spread(self, members: Members, size: int, units: Array) -> None:
        for pair, dim in members:
            per_unit = self._before.parameters[pair.before].shape[dim] // size
            entries = units[:, None] * per_unit + np.arange(per_unit)
            self._entries[pair, dim] = entries.reshape(-1)


def _rows(values: Array, dim: int) -> list[bytes]:
    """A digest per index of `dim`."""
    rows = np.ascontiguousarray(np.moveaxis(values, dim, 0)).reshape(
        values.shape[dim], -1
    )
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _positions(old: list[bytes], new: list[bytes]) -> Array | None:
    """Where each new row was; None if one is new, or could be from two places."""
    where: dict[bytes, int] = {}
    twice = set()
    for index, row in enumerate(old):
        if where.setdefault(row, index) != index:
            twice.add(row)
    if any(row not in where or row in twice for row in new):
        return None
    found = np.array([where[row] for row in new], dtype=np.int64)
    ordered = bool(np.all(np.diff(found) > 0))
    return found if ordered else None
