"""What callers of a model see, and what of it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fgcompile.report.changes import InterfaceChange
from fgcompile.report.ports import match_ports
from fgcompile.report.summary import Dim, ModelSummary, Port

Side = Literal["input", "output"]


def interface_changes(
    before: ModelSummary, after: ModelSummary
) -> tuple[InterfaceChange, ...]:
    """Changes of inputs, outputs and operator sets; the breaking ones first.

    The names of dynamic dims mean nothing to a caller and are not compared; that a
    dim became fixed or dynamic is.
    """
    if "parameters" in (before.dialect, after.dialect):
        return ()
    changes = _side("input", before.inputs, after.inputs)
    changes += _side("output", before.outputs, after.outputs)
    changes += _opsets(before, after)
    return tuple(sorted(changes, key=lambda change: not change.breaking))


def _side(
    side: Side, before: Sequence[Port], after: Sequence[Port]
) -> list[InterfaceChange]:
    pairs = match_ports(before, after)
    old, new = {i for i, _ in pairs}, {j for _, j in pairs}
    changes = [
        InterfaceChange(side, port.name, "removed", str(port.type), "", True)
        for index, port in enumerate(before)
        if index not in old
    ]
    for i, j in pairs:
        changes += _port(side, before[i], after[j])
    changes += [
        InterfaceChange(side, port.name, "added", "", str(port.type), side == "input")
        for index, port in enumerate(after)
        if index not in new
    ]
    order = [j for _, j in pairs]
    if order != sorted(order):
        names = (_names(before), _names(after))
        changes.append(InterfaceChange(side, f"{side}s", "order", *names, True))
    return changes


def _port(side: Side, old: Port, new: Port) -> list[InterfaceChange]:
    changes = []
    if old.name != new.name:
        changes.append(
            InterfaceChange(side, old.name, "renamed", old.name, new.name, True)
        )
    if old.type.dtype != new.type.dtype:
        types = old.type.dtype, new.type.dtype
        changes.append(InterfaceChange(side, new.name, "dtype", *types, True))
    shapes = old.type.shape, new.type.shape
    if None not in shapes and _kinds(shapes[0]) != _kinds(shapes[1]):
        texts = _shape(shapes[0]), _shape(shapes[1])
        breaking = not _accepts(shapes[0], shapes[1])
        changes.append(InterfaceChange(side, new.name, "shape", *texts, breaking))
    return changes


def _names(ports: Sequence[Port]) -> str:
    return ", ".join(port.name for port in ports)


def _kinds(shape: Sequence[Dim] | None) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape or ()]


def _accepts(old: Sequence[Dim] | None, new: Sequence[Dim] | None) -> bool:
    """Every size that was allowed still is: dims only became dynamic."""
    sizes = _kinds(old), _kinds(new)
    return len(sizes[0]) == len(sizes[1]) and all(
        wide is None or wide == narrow for narrow, wide in zip(*sizes, strict=True)
    )


def _shape(shape: Sequence[Dim] | None) -> str:
    return f"[{', '.join(str(size) for size in shape or ())}]"


def _opsets(before: ModelSummary, after: ModelSummary) -> list[InterfaceChange]:
    if before.dialect != after.dialect:
        names = before.dialect, after.dialect
        return [InterfaceChange("model", "operators", "opset", *names, False)]
    old, new = dict(before.opsets), dict(after.opsets)
    return [
        InterfaceChange(
            "model",
            domain or "ai.onnx",
            "opset",
            str(old.get(domain, "")),
            str(new.get(domain, "")),
            False,
        )
        for domain in sorted(old.keys() | new.keys())
        if old.get(domain) != new.get(domain)
    ]
