"""Trainable gates for any PyTorch model, lowered exactly to a smaller one."""

from __future__ import annotations

from importlib.metadata import version

from fgcompile.checkpoint import load
from fgcompile.compiler import analyze, insert_gates, measure_latency
from fgcompile.gates import (
    Budget,
    Gate,
    GateConfig,
    LatencyTable,
    gates,
    load_gates,
    param_groups,
    penalty,
    remove_gates,
    save_gates,
    status,
)
from fgcompile.lowering import Lowered, lower, save
from fgcompile.report import GraphDiff, diff
from fgcompile.rules import DimRule, check_rule, dim_rule

__all__ = [
    "Budget",
    "DimRule",
    "Gate",
    "GateConfig",
    "GraphDiff",
    "LatencyTable",
    "Lowered",
    "analyze",
    "check_rule",
    "diff",
    "dim_rule",
    "gates",
    "insert_gates",
    "load",
    "load_gates",
    "lower",
    "measure_latency",
    "param_groups",
    "penalty",
    "remove_gates",
    "save",
    "save_gates",
    "status",
]

__version__ = version("fgcompile")
