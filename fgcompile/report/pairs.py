"""Which stored tensor of one model is which of the other, and what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from fgcompile.report.changes import ParameterChange
from fgcompile.report.matching import Matching
from fgcompile.report.natural import natural_key
from fgcompile.report.ports import canonical_order
from fgcompile.report.roles import stored_operands
from fgcompile.report.summary import ModelSummary, Parameter

_PIECE = 1 << 22


@dataclass(frozen=True)
class TensorPair:
    """One use of the same stored tensor in both models.

    Args:
        before: Its key in the model before.
        after: Its key in the model after.
        old_label: What the model before calls it.
        new_label: What the model after calls it.
    """

    before: str
    after: str
    old_label: str
    new_label: str

    @property
    def label(self) -> str:
        """What the report calls it: exporters and quantisers only add suffixes."""
        old, new = self.old_label, self.new_label
        in_place = old.rpartition(".")[0] == new.rpartition(".")[0]
        return old if in_place or "." not in new else new


@dataclass(frozen=True)
class Pairs:
    """All pairs, and the keys that have no partner, in canonical order."""

    pairs: tuple[TensorPair, ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]


def pair_tensors(
    before: ModelSummary, after: ModelSummary, matching: Matching
) -> Pairs:
    """Pair stored tensors by the nodes that read them, else by qualified name.

    One tensor may be in several pairs: exporters merge equal values.
    """
    found: dict[tuple[str, str, str], str] = {}
    for i, j in sorted(matching.after_of.items()):
        theirs = dict(stored_operands(after.nodes[j]))
        for slot, operand in stored_operands(before.nodes[i]):
            if (other := theirs.get(slot)) is not None:
                use = (operand.key, other.key, other.label or other.key)
                found.setdefault(use, operand.label or operand.key)
    labels = label_tensors(before), label_tensors(after)
    left, right = _left(before, after, found)
    named = {labels[1][key]: key for key in right}
    for key in left:
        if (name := labels[0][key]) in named:
            found[key, named[name], name] = name
    left, right = _left(before, after, found)
    for key, other_key in _same_place(before, after, left, right):
        found[key, other_key, labels[1][other_key]] = labels[0][key]
    left, right = _left(before, after, found)
    pairs = [
        TensorPair(old, new, old_label, new_label)
        for (old, new, new_label), old_label in found.items()
    ]
    pairs.sort(key=lambda pair: (natural_key(pair.label), pair.before, pair.after))
    return Pairs(tuple(pairs), tuple(left), tuple(right))


def label_tensors(summary: ModelSummary) -> dict[str, str]:
    """What the first reader of each stored tensor calls it, in canonical order."""
    labels: dict[str, str] = {}
    for index in canonical_order(summary):
        for _, operand in stored_operands(summary.nodes[index]):
            labels.setdefault(operand.key, operand.label or operand.key)
    unread = summary.parameters.keys() - labels.keys()
    return labels | {key: summary.parameters[key].name for key in sorted(unread)}


def _left(
    before: ModelSummary, after: ModelSummary, found: Iterable[tuple[str, str, str]]
) -> tuple[list[str], list[str]]:
    old, new = {keys[0] for keys in found}, {keys[1] for keys in found}
    return (
        [key for key in label_tensors(before) if key not in old],
        [key for key in label_tensors(after) if key not in new],
    )


def _same_place(
    before: ModelSummary, after: ModelSummary, left: list[str], right: list[str]
) -> list[tuple[str, str]]:
    """Matrices of equal shape in the same sequence: a quantised weight."""
    old = [key for key in left if len(before.parameters[key].shape) > 1]
    new = [key for key in right if len(after.parameters[key].shape) > 1]
    matcher = SequenceMatcher(
        None,
        [before.parameters[key].shape for key in old],
        [after.parameters[key].shape for key in new],
        autojunk=False,
    )
    return [
        (old[block.a + step], new[block.b + step])
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    ]


def parameter_changes(
    before: ModelSummary, after: ModelSummary, pairs: Pairs
) -> tuple[ParameterChange, ...]:
    """Stored tensors that came, went, or hold something else."""
    labels = label_tensors(before), label_tensors(after)
    changes = []
    for key in pairs.removed:
        old = before.parameters[key]
        changes.append(
            ParameterChange(
                "removed", labels[0][key], old.shape, None, dtype_before=old.dtype
            )
        )
    for key in pairs.added:
        new = after.parameters[key]
        changes.append(
            ParameterChange(
                "added", labels[1][key], None, new.shape, dtype_after=new.dtype
            )
        )
    for pair in pairs.pairs:
        change = _compared(
            pair, before.parameters[pair.before], after.parameters[pair.after]
        )
        if change is not None:
            changes.append(change)
    return tuple(sorted(changes, key=lambda c: (natural_key(c.name), c.action)))


def _compared(
    pair: TensorPair, old: Parameter, new: Parameter
) -> ParameterChange | None:
    same_type = old.shape == new.shape and old.dtype == new.dtype
    values_changed = same_type and not equal_values(old, new)
    if same_type and not values_changed:
        return None
    return ParameterChange(
        "changed",
        pair.label,
        old.shape,
        new.shape,
        old.dtype,
        new.dtype,
        values_changed,
    )


def equal_values(old: Parameter, new: Parameter) -> bool:
    """Whether two tensors of equal type hold the same bits.

    Values that cannot be read, such as on the meta device, count as equal.
    """
    if old.read is None or new.read is None:
        return True
    first, second = (_bytes(parameter) for parameter in (old, new))
    return first.size == second.size and all(
        np.array_equal(first[start : start + _PIECE], second[start : start + _PIECE])
        for start in range(0, first.size, _PIECE)
    )


def _bytes(parameter: Parameter) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    assert parameter.read is not None
    return np.ascontiguousarray(parameter.read()).reshape(-1).view(np.uint8)
