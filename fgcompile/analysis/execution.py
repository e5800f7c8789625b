"""Runs single operators of a program on tensors that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload
from torch.fx import Node

from fgcompile.analysis.steps import Array
from fgcompile.program import Program
from fgcompile.rules.shapes import tensor_of

_SMALL = 2**16
_NOT_FILLED = ("empty", "empty_like", "empty_strided", "new_empty")


def constant_tensors(program: Program) -> dict[Node, torch.Tensor]:
    """Buffers, and small tensors that are computed of them or of nothing; real ones."""
    found: dict[Node, torch.Tensor] = {}
    for node in program.graph.nodes:
        tensor: torch.Tensor | None = None
        if node.op == "get_attr" and program.is_buffer(node):
            tensor = program.parameter(node)
        elif node.op == "call_function" and _is_small_constant(node, found):
            tensor = _result(node, found)
        if tensor is not None and tensor.is_floating_point() and not tensor.is_meta:
            found[node] = tensor.detach().cpu()
    return found


def _is_small_constant(node: Node, known: dict[Node, torch.Tensor]) -> bool:
    fake, op = tensor_of(node), node.target
    if fake is None or not isinstance(op, OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in op.tags
    if random or op._schema.name.removeprefix("aten::") in _NOT_FILLED:
        return False
    if not all(isinstance(size, int) for size in fake.shape):
        return False
    return fake.numel() <= _SMALL and all(n in known for n in node.all_input_nodes)


def run_either_way(
    node: Node, replaced: dict[Node, torch.Tensor], choices: dict[Node, torch.Tensor]
) -> Array | None:
    """What is the same whether elements of a mask that vary are set or not."""
    if not choices:
        return _run(node, replaced)
    if len(choices) > 1:
        return None
    ((mask, values),) = choices.items()
    either = [
        _run(node, replaced | {mask: values.nan_to_num(choice).bool()})
        for choice in (0.0, 1.0)
    ]
    if either[0] is None or either[1] is None:
        return None
    return np.where(either[0] == either[1], either[0], np.nan)


def _run(node: Node, replaced: dict[Node, torch.Tensor]) -> Array | None:
    result = _result(node, replaced)
    if result is None:
        return None
    if not (result.is_floating_point() or result.dtype == torch.bool):
        return None
    return result.detach().double().numpy()


def _result(node: Node, replaced: dict[Node, torch.Tensor]) -> torch.Tensor | None:
    """The node's operator on other operands; None where it cannot be run so."""
    if any(n not in replaced for n in node.all_input_nodes):
        return None
    args: Any = torch.fx.map_arg(node.args, replaced.__getitem__)
    kwargs: Any = torch.fx.map_arg(node.kwargs, replaced.__getitem__)
    try:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError):
        return None
    return result if isinstance(result, torch.Tensor) else None
