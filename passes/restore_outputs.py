"""Gives outputs their original width back.

An output unit that is the same for every input (a closed hidden unit of a model that
returns its hidden states) need not be computed, but callers see it. Zeros are put in
its place at the very end, and its constant is added where it is not zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import Node

from fgcompile.passes.shrinkage import Shrinkage, new_buffer
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
    """`node` with the constants `known` put back where `mask` is not set.

    A dim that holds the batch or length as well is widened in its static part. The new
    nodes get their shapes when `node` itself has its new one.
    """
    graph, value = program.graph, node.meta["val"]
    rank, mixed = value.dim(), not isinstance(value.shape[dim], int)
    kept = int(np.count_nonzero(mask))
    wide = node
    if mixed:
        wide = graph.call_function(aten.unflatten.int, (node, dim, [-1, kept]))
        rank, dim = rank + 1, dim + 1
    source = np.where(mask, np.cumsum(mask) - 1, kept)
    before_last = [0, 0] * (rank - 1 - dim)
    padding = [*before_last, 0, 1]
    wide = graph.call_function(aten.constant_pad_nd.default, (wide, padding))
    index = new_buffer(
        program, "index", torch.from_numpy(source.astype(np.int64)), node
    )
    wide = graph.call_function(aten.index_select.default, (wide, dim, index))
    values = np.where(mask, 0.0, known)
    if values.any():
        shape = [1] * rank
        shape[dim] = -1
        constant = torch.from_numpy(values).to(value.dtype).reshape(shape)
        buffer = new_buffer(program, "values", constant, node)
        wide = graph.call_function(aten.add.Tensor, (wide, buffer))
    if mixed:
        wide = graph.call_function(aten.flatten.using_ints, (wide, dim - 1, dim))
    wide.meta["val"] = value  # what it was before it shrank
    return wide
