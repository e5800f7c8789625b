"""Changes that only follow from other sizes: the 12 heads of a view became 10."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgcompile.report.changes import AttributeChange
from fgcompile.report.cost import operand_shape
from fgcompile.report.summary import ModelSummary

_WHOLE = re.compile(r"(?<![\w.])\d{1,18}(?![\w.])")


def follows_sizes(
    before: ModelSummary,
    after: ModelSummary,
    i: int,
    j: int,
    changes: Sequence[AttributeChange],
) -> bool:
    """Whether all `changes` of a pair of nodes are numbers that their shapes explain.

    A number is explained if it changed as a dim of an operand or result did: from the
    same to the same, or by the same ratio, as the bounds of a slice do.
    """
    sizes = _changed_sizes(before, after, i, j)
    return all(
        _WHOLE.sub("#", change.before) == _WHOLE.sub("#", change.after)
        and all(
            any(old * new_size == new * old_size for old_size, new_size in sizes)
            for old, new in _numbers(change)
        )
        for change in changes
    )


def _numbers(change: AttributeChange) -> list[tuple[int, int]]:
    pairs = zip(
        _WHOLE.findall(change.before), _WHOLE.findall(change.after), strict=True
    )
    return [(int(old), int(new)) for old, new in pairs if old != new]


def _changed_sizes(
    before: ModelSummary, after: ModelSummary, i: int, j: int
) -> set[tuple[int, int]]:
    """Sizes before and after of the dims that changed around a pair of nodes."""
    old, new = before.nodes[i], after.nodes[j]
    shapes = [*zip(old.sizes, new.sizes, strict=False)]
    shapes += [
        (operand_shape(one, before), operand_shape(two, after))
        for one, two in zip(old.operands, new.operands, strict=False)
    ]
    return {
        (first, second)
        for one, two in shapes
        if one is not None and two is not None and len(one) == len(two)
        for first, second in zip(one, two, strict=True)
        if first != second
    }
