"""Shapes of a captured graph, symbolic for the interface, concrete for MACs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fgcompile.analysis.cost import BATCH, LENGTH
from fgcompile.program import Program
from fgcompile.report.summary import TensorType


def tensor_type(value: Any) -> TensorType:
    """Type of a traced value; symbolic sizes keep their names."""
    if not isinstance(value, torch.Tensor):
        return TensorType(type(value).__name__ if value is not None else "")
    dims = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorType(str(value.dtype).removeprefix("torch."), dims)


class Sizes:
    """Replaces the symbols of a program's shapes by numbers."""

    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._numbers: dict[Any, int] = {}
        self._known: dict[Any, int | None] = {}
        # What the user states comes first: two inputs may share a symbol.
        for stated in (True, False):
            for name, node in zip(
                program.input_names, program.placeholders, strict=True
            ):
                value = node.meta.get("val")
                if (name in shapes) == stated and isinstance(value, torch.Tensor):
                    self._bind(value, shapes.get(name, ()))

    def of(self, value: Any) -> tuple[int, ...] | None:
        """Concrete shape of a traced value; None if it has none."""
        if not isinstance(value, torch.Tensor):
            return None
        sizes = [self._size(size) for size in value.shape]
        return None if None in sizes else tuple(sizes)  # type: ignore[arg-type]

    def _bind(self, value: torch.Tensor, shape: tuple[int, ...]) -> None:
        for position, size in enumerate(value.shape):
            if isinstance(size, int):
                continue
            stated = position < len(shape)
            number = shape[position] if stated else LENGTH if position else BATCH
            self._numbers.setdefault(size.node.expr, number)

    def _size(self, size: Any) -> int | None:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self._known:
            value = expression.subs(self._numbers)
            self._known[expression] = int(value) if value.is_Integer else None
        return self._known[expression]
