"""Trainable switches, their penalty and their budget."""

from __future__ import annotations

from fgcompile.gates.access import (
    container_of,
    find_container,
    gate_parameters,
    gates,
    param_groups,
    penalty,
)
from fgcompile.gates.attach import attach, make_container
from fgcompile.gates.config import Budget, GateConfig
from fgcompile.gates.container import GateContainer
from fgcompile.gates.gate import Gate
from fgcompile.gates.latency import LatencyTable
from fgcompile.gates.op import gate as gate_op
from fgcompile.gates.remove import remove_gates
from fgcompile.gates.spec import GateSite, GateSpec
from fgcompile.gates.status import status
from fgcompile.gates.storage import load_gates, save_gates, saved_config
from fgcompile.gates.trainer import gate_callback, gate_numbers

__all__ = [
    "Budget",
    "Gate",
    "GateConfig",
    "GateContainer",
    "GateSite",
    "GateSpec",
    "LatencyTable",
    "attach",
    "container_of",
    "find_container",
    "gate_callback",
    "gate_numbers",
    "gate_op",
    "gate_parameters",
    "gates",
    "load_gates",
    "make_container",
    "param_groups",
    "penalty",
    "remove_gates",
    "save_gates",
    "saved_config",
    "status",
]
