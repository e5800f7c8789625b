"""An ONNX graph's stored tensors as the modules they came from hold them.

Exporters transpose the weights of linear layers, and merge equal tensors. To compare
with a module or with saved weights both are undone: one tensor per use, rows first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fgcompile.report.roles import role_of, stored_operands
from fgcompile.report.summary import ModelSummary, Node, Parameter

Array = np.ndarray[Any, Any]


def as_modules_hold(summary: ModelSummary) -> ModelSummary:
    """The summary without its graph, tensors by qualified name."""
    stored: dict[str, Parameter] = {}
    used = set()
    for node in summary.nodes:
        for slot, operand in stored_operands(node):
            parameter = summary.parameters[operand.key]
            label = operand.label or operand.key
            used.add(operand.key)
            if _is_transposed(node, slot, parameter):
                parameter = _transposed(parameter)
            stored.setdefault(label, replace(parameter, name=label))
    for key, parameter in summary.parameters.items():
        if key not in used:
            stored.setdefault(parameter.name, parameter)
    return replace(summary, nodes=(), results=(), parameters=stored)


def _is_transposed(node: Node, slot: int, parameter: Parameter) -> bool:
    """A matrix of a linear layer; other layers hold theirs as ONNX does."""
    role = role_of(node, slot, len(parameter.shape))
    return role == "io" and node.origin in ("", "aten.linear")


def _transposed(parameter: Parameter) -> Parameter:
    read = parameter.read
    return replace(
        parameter,
        shape=parameter.shape[::-1],
        read=None if read is None else partial(_read_transposed, read),
    )


def _read_transposed(read: Callable[[], Array]) -> Array:
    return np.asarray(read()).T
