"""The numbers that a module keeps in its attributes, as places to read and write."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """An int in an attribute of a module.

    Attributes:
        name: The attribute, for instance "num_heads".
        item: Position in a tuple or list that the attribute holds, for instance 0 of
            "normalized_shape".
        inside: The attribute of the module that holds the object that `name` is an
            attribute of, for instance "config"; "" for the module itself.
    """

    name: str
    item: int | None = None
    inside: str = ""

    def __str__(self) -> str:
        path = f"{self.inside}.{self.name}" if self.inside else self.name
        return path if self.item is None else f"{path}[{self.item}]"

    @classmethod
    def parse(cls, text: str) -> Slot:
        """The slot that `str` gave `text`."""
        path, _, item = text.removesuffix("]").partition("[")
        inside, _, name = path.rpartition(".")
        return cls(name, int(item) if item else None, inside)

    def read(self, module: nn.Module) -> int:
        """The number."""
        value = getattr(self._holder(module), self.name)
        return int(value if self.item is None else value[self.item])

    def write(self, module: nn.Module, number: int) -> None:
        """Sets the number; an object that other modules may share is copied first."""
        if self.read(module) == number:
            return
        if self.inside:
            setattr(module, self.inside, copy.copy(getattr(module, self.inside)))
        holder = self._holder(module)
        value: Any = number
        if self.item is not None:
            old = getattr(holder, self.name)
            value = type(old)((*old[: self.item], number, *old[self.item + 1 :]))
        try:
            setattr(holder, self.name, value)
        except AttributeError:
            # A frozen dataclass guards against sharing, and this copy is not shared.
            object.__setattr__(holder, self.name, value)

    def _holder(self, module: nn.Module) -> Any:
        return getattr(module, self.inside) if self.inside else module


def slots_of(module: nn.Module) -> Iterator[Slot]:
    """All slots of a module: of itself first, then of plain objects it refers to."""
    yield from _slots(module, "")
    for name, value in vars(module).items():
        if not name.startswith("_") and _is_plain_object(value):
            yield from _slots(value, name)


def _slots(holder: Any, inside: str) -> Iterator[Slot]:
    for name, value in vars(holder).items():
        if name.startswith("_"):
            continue
        if _is_int(value):
            yield Slot(name, None, inside)
        elif type(value) in (tuple, list) and not inside:
            for item, each in enumerate(value):
                if _is_int(each):
                    yield Slot(name, item, inside)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_plain_object(value: Any) -> bool:
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, Tensor, type))
        and not callable(value)
    )
