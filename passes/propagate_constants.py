"""Moves constants that enter a contraction into its bias.

A hidden unit whose incoming weights are zero still computes `act(bias)`. Its
contribution to the next layer, `W[:, i] * act(bias)`, is the same for every input:
it is added to that layer's bias and the column becomes zero, so that nothing needs
the unit any more.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fgcompile.analysis.facts import Constants
from fgcompile.analysis.known import known_facts
from fgcompile.analysis.steps import Align, Array, Flow
from fgcompile.passes.fold_constants import new_parameter
from fgcompile.passes.weights import WeightUse, reads, replace_tensor, weight_use
from fgcompile.program import Program, arguments


def propagate_constants(program: Program, new_biases: bool = True) -> bool:
    """No contraction with a weight of its own sums a constant other than zero.

    Args:
        program: It is rewritten in place.
        new_biases: Whether a contraction without a bias may get one.

    Returns:
        Whether anything was folded.
    """
    flow, constants = known_facts(program)
    modified = False
    for step in flow.steps:
        use = weight_use(step.node) if isinstance(step, Align) else None
        if use is None or len(reads(program, str(use.weight.target))) > 1:
            continue
        if use.bias is None and not new_biases:
            continue
        if use.bias is not None and len(reads(program, str(use.bias.target))) > 1:
            continue
        values = _constant_inputs(flow, constants, use)
        if values is not None and _unpadded(use):
            modified |= _fold(program, use, values)
    if modified:
        program.graph_module.recompile()
    return modified


def _constant_inputs(flow: Flow, constants: Constants, use: WeightUse) -> Array | None:
    """Constant of each contracted index; 0 where it varies or is zero."""
    index = flow.value_of(use.operand)
    if index is None:
        return None
    size = int(use.weight.meta["val"].shape[use.inputs])
    for plane in constants.planes[index]:
        along = plane.size == plane.shape[use.channels] == size
        if along and np.isfinite(plane).any():
            values = np.nan_to_num(plane.reshape(-1), nan=0.0)
            return values if values.any() else None
    return None


def _unpadded(use: WeightUse) -> bool:
    """Zero padding would see the constant in some places and not in others."""
    padding = arguments(use.node).get("padding", 0)
    return padding == "valid" or (padding != "same" and not np.any(padding))


def _fold(program: Program, use: WeightUse, values: Array) -> bool:
    weight = program.parameter(use.weight)
    constant = torch.from_numpy(values).to(weight)
    hit = constant != 0
    columns = weight.detach().movedim((use.inputs, use.outputs), (1, 0))
    if not columns[:, hit].any():
        return False
    sums = columns.reshape(*columns.shape[:2], -1).sum(-1)
    added = (sums[:, hit].double() @ constant[hit].double()).to(weight.dtype)
    _add_to_bias(program, use, added)
    shape = [1] * weight.dim()
    shape[use.inputs] = -1
    kept = weight.detach() * (~hit).to(weight.dtype).reshape(shape)
    replace_tensor(
        program, use.weight, nn.Parameter(kept, requires_grad=weight.requires_grad)
    )
    return True


def _add_to_bias(program: Program, use: WeightUse, added: torch.Tensor) -> None:
    if use.bias is not None:
        old = program.parameter(use.bias)
        bias = nn.Parameter(old.detach() + added, requires_grad=old.requires_grad)
        replace_tensor(program, use.bias, bias)
        return
    grad = program.parameter(use.weight).requires_grad
    stem = str(use.weight.target).rpartition(".")[0]
    with program.graph.inserting_before(use.node):
        stem = f"{stem}.bias" if stem else "bias"
        node = new_parameter(program, stem, added, grad)
    args = list(use.node.args)
    args[use.where :] = [node, *args[use.where + 1 :]]
    kwargs = {k: v for k, v in use.node.kwargs.items() if k != "bias"}
    use.node.args, use.node.kwargs = tuple(args), kwargs
