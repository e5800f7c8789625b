"""Gives outputs their original width back.

An output unit that is the same for every input (a closed hidden unit of a model that
returns its hidden states) need not be computed, but callers see it. Zeros are put in
its place at the very end, and its constant is added where it is not zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import Node

from fgcompile.passes.shrinkage import Shrinkage, call, new_buffer
from fgcompile.program import Program

aten = torch.ops.aten


def restore_outputs(shrinkage: Shrinkage) -> None:
    """Every output has the sizes that it had."""
    output = shrinkage.program.graph.output_node()
    with shrinkage.program.graph.inserting_before(output):
        restored = {n: _restore(shrinkage, n) for n in output.all_input_nodes}
    output.args = torch.fx.map_arg(output.args, lambda n: restored[n])


def _restore(shrinkage: Shrinkage, node: Node) -> Node:
    index = shrinkage.index(node)
    if index is None or not shrinkage.shrinks(index):
        return node
    for plane, ids in enumerate(shrinkage.flow.values[index].planes):
        mask = shrinkage.survivors.planes[index][plane]
        if not mask.all():
            dim = max(range(ids.ndim), key=lambda k: ids.shape[k])
            known = shrinkage.constants.planes[index][plane].reshape(-1)
            node = _widen(shrinkage.program, node, dim, mask.reshape(-1), known)
    return node


def _widen(
    program: Program, node: Node, dim: int, mask: np.ndarray, known: np.ndarray
) -> Node:
    """`node` with the constants `known` put back where `mask` is not set."""
    rank = len(node.meta["val"].shape)
    kept = int(np.count_nonzero(mask))
    source = np.where(mask, np.cumsum(mask) - 1, kept)
    before_last = [0, 0] * (rank - 1 - dim)
    padded = call(program, aten.constant_pad_nd.default, node, [*before_last, 0, 1])
    index = new_buffer(
        program, "index", torch.from_numpy(source.astype(np.int64)), node
    )
    wide = call(program, aten.index_select.default, padded, dim, index)
    values = np.where(mask, 0.0, known)
    if not values.any():
        return wide
    shape = [1] * rank
    shape[dim] = -1
    dtype = node.meta["val"].dtype
    constant = torch.from_numpy(values).to(dtype).reshape(shape)
    return call(
        program, aten.add.Tensor, wide, new_buffer(program, "values", constant, node)
    )
