"""What is compared: each tool with the settings that it is run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LIMIT = 900.0
"""When a run is given up [s]."""

HANG = 120.0
"""The same for what is known to never end; what ends at all did so in a tenth [s]."""


@dataclass(frozen=True)
class Row:
    """A tool with its settings.

    Attributes:
        name: What the tables call it.
        peer: Its environment and, with `with_` before it, its module.
        options: Of the module's function `prune`.
        models: Those that it is run on; all if there are none.
        hangs: Models on which it never ended, so that it is given up early.
        small: It is a part of smoke tests: there is nothing to install.
    """

    name: str
    peer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    hangs: tuple[str, ...] = ()
    small: bool = False

    @property
    def module(self) -> str:
        """Of `benchmarks.peers`."""
        return f"with_{self.peer.replace('-', '_').replace('.', '_')}"

    @property
    def ours(self) -> bool:
        """It is what this benchmark is about: its failure is none of a peer."""
        return self.peer == "fgcompile"

    def limit(self, model: str) -> float:
        """When it is given up [s]."""
        return HANG if model in self.hangs else LIMIT


OURS, UNVERIFIED = "fgcompile", "fgcompile, not verified"

ROWS = (
    Row(OURS, "fgcompile", small=True),
    Row(UNVERIFIED, "fgcompile", {"verify": False}, small=True),
    Row("torch-pruning", "torch-pruning", hangs=("llama",)),
    Row(
        "torch-pruning, channels only",
        "torch-pruning",
        {"heads": False},
        models=("llama",),
    ),
    Row("onnxsim", "onnxsim"),
    Row("torch.ao", "torch.ao", small=True),
    Row("script", "script", small=True),
)


def rows_for(model: str, small: bool) -> list[Row]:
    """The rows that are run on `model`, or on a tiny one of its kind."""
    found = [row for row in ROWS if not row.models or model in row.models]
    return [row for row in found if row.small or not small]
