"""Trainable gates for any PyTorch model, lowered exactly to a smaller one."""

from __future__ import annotations

from importlib.metadata import version

from fgcompile.compiler import analyze, insert_gates
from fgcompile.gates import (
    Budget,
    Gate,
    GateConfig,
    gates,
    param_groups,
    penalty,
    remove_gates,
)
from fgcompile.lowering import Lowered, lower

__all__ = [
    "Budget",
    "Gate",
    "GateConfig",
    "Lowered",
    "analyze",
    "gates",
    "insert_gates",
    "lower",
    "param_groups",
    "penalty",
    "remove_gates",
]

__version__ = version("fgcompile")
