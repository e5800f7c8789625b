"""Adds low-rank updates to the weights beside them.

`x W^T + s (x A^T) B^T = x (W + s B A)^T`, if both read the same `x`: the same value, or
one that both gate by the same factors.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Node

from fgcompile.gates.low_rank import LowRank, low_rank_updates
from fgcompile.passes.weights import reads, replace_tensor, weight_use
from fgcompile.program import Program
from fgcompile.rules.registry import operand


def merge_low_rank(program: Program) -> bool:
    """No low-rank update is left beside a weight that could hold it."""
    without: dict[Node, Node] = {}
    for update in list(low_rank_updates(program.graph)):
        if _merge(program, update):
            # What it was added to may be a sum that is gone by now.
            product = without.get(update.product, update.product)
            update.total.replace_all_uses_with(product)
            without[update.total] = product
    if without:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return bool(without)


def _merge(program: Program, update: LowRank) -> bool:
    """Adds an update to its weight; False if other readers would see it too."""
    use = weight_use(update.base)
    if use is None or len(reads(program, str(use.weight.target))) > 1:
        return False
    if not _same(program, update.base_operand, update.operand):
        return False
    if not _alike(update.product, update.up):
        return False
    down, up = (program.parameter(operand(n, 1)) for n in (update.down, update.up))
    weight = program.parameter(use.weight)
    with torch.no_grad():
        added = update.scale * (up.double() @ down.double())
        merged = weight.double() + (added if use.outputs == 0 else added.T)
    tensor = nn.Parameter(merged.to(weight.dtype), weight.requires_grad)
    replace_tensor(program, use.weight, tensor)
    return True


def _alike(one: Node, other: Node) -> bool:
    """Whether two sums have the same shape, so that adding them broadcasts nothing."""
    shapes = [[str(size) for size in node.meta["val"].shape] for node in (one, other)]
    return shapes[0] == shapes[1]


def _same(program: Program, one: Node, other: Node) -> bool:
    """Whether two nodes are the same value, or the same gating of one."""
    if one is other:
        return True
    gate = torch.ops.fgcompile.gate.default
    if one.target is not gate or other.target is not gate:
        return False
    if operand(one) is not operand(other) or one.args[2] != other.args[2]:
        return False
    factors = [operand(node, 1) for node in (one, other)]
    if any(node.op != "get_attr" for node in factors):
        return factors[0] is factors[1]
    return torch.equal(*(program.parameter(node) for node in factors))
