"""Every elementwise operator of ATen has a rule, or is one that calls such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload

from fgcompile.rules.movement import movement_names
from fgcompile.rules.registry import is_pointwise, rule_for

EXCUSED = {
    "they hold complex numbers, which capture writes in real ones": (
        *("aten::complex", "aten::polar"),
    ),
    "their operands need not be of their size": (
        *("aten::masked_scatter", "aten::resize_as", "aten::slice_inverse"),
    ),
    "views that copy: torch makes them, not models": (
        *("aten::alias_copy", "aten::detach_copy", "aten::slice_copy"),
        *("aten::squeeze_copy",),
    ),
    "quantised tensors": ("aten::dequantize",),
}
"""Operators that look elementwise and have no rule, by the reason."""


def overloads() -> Iterator[OpOverload]:
    """What users can call that takes a tensor, returns one, and writes to none."""
    special = {f"special_{name}" for name in dir(torch.special)}
    dispatched = set(torch._C._dispatch_get_all_op_names())
    names = {*dir(torch), *dir(Tensor), *dir(torch.nn.functional), *special}
    for name in sorted(name for name in names if not name.startswith("_")):
        packet = getattr(torch.ops.aten, name, None)
        for overload in getattr(packet, "overloads", list)():
            op = getattr(packet, overload)
            kinds = [str(a.type) for a in op._schema.arguments[:1]]
            results = [str(r.type) for r in op._schema.returns]
            writes = op._schema.is_mutable or "out" in overload
            tensors = kinds == results == ["Tensor"]
            if tensors and not writes and op.name() in dispatched:
                yield op


def calls() -> Iterator[tuple[Any, ...]]:
    """Arguments of which an elementwise operator takes some."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(3, 4, generator=generator).double() + 0.1 for _ in range(2))
    for first in (x - 0.5, x, x > 0.5, torch.arange(12).view(3, 4)):
        yield from ((first,), (first, 0.5), (first, -0.5, 0.5), (first, 0.1, 0.2, 0.3))
        for other in (y, y > 0.5):
            yield from ((first, other), (first, other, 0.5), (first, other, other))


def is_elementwise(op: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether a change of one element changes that element of the result alone."""
    try:
        before, again = op(*args), op(*args)
        changed = args[0].clone()
        changed[1, 2] = ~changed[1, 2] if changed.dtype == torch.bool else 0.9
        after = op(changed, *args[1:])
        same = before.shape == (3, 4) and torch.equal(before, again)
        return same and (before != after).nonzero().tolist() == [[1, 2]]
    except Exception:  # it does not take these arguments, or makes no plain tensor
        return False


def has_rule(op: OpOverload) -> bool:
    known = rule_for(op) is not None or is_pointwise(op)
    return known or op._schema.name in movement_names()


def is_composite(op: OpOverload) -> bool:
    return op.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def test_every_elementwise_operator_has_a_rule() -> None:
    arguments = list(calls())
    without = [op for op in overloads() if not has_rule(op)]
    found = [op for op in without if any(is_elementwise(op, a) for a in arguments)]
    unknown = {op._schema.name for op in found if not is_composite(op)}
    assert unknown == {name for names in EXCUSED.values() for name in names}


def test_what_is_elementwise_is_found_by_numbers() -> None:
    aten, arguments = torch.ops.aten, list(calls())
    found = {
        op: any(is_elementwise(op, args) for args in arguments)
        for op in (aten.hardswish.default, aten.rsub.Tensor, aten.cumsum.default)
    }
    assert list(found.values()) == [True, True, False]
