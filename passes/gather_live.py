"""Computes only with rows and columns that are not zero, where tensors stay whole.

A stream that other layers need keeps its width, though one matrix may ignore some of
it, as with gates that are not coupled. Zero columns then go with a gather of the
input, zero rows with a scatter of the output: a zero is appended, and every index that
went reads it. Both move numbers instead of multiplying them, so they are done only
where enough products are saved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.passes.shrinkage import call, new_buffer
from fgcompile.passes.weights import WeightUse, reads, replace_tensor, weight_use
from fgcompile.program import Program

aten = torch.ops.aten

GATHER = 512
"""MACs saved per gathered number from which a gather clearly pays.

In onnxruntime on CPU a gather takes as long as 200 to 400 MACs for each number
(measured); in PyTorch it takes a tenth of that.
"""
SCATTER = 1024
"""The same per scattered number, which is padded as well."""


def gather_live(program: Program) -> bool:
    """No matrix has so many zero rows or columns that leaving them out pays."""
    readers: dict[Node, list[WeightUse]] = {}
    for node in program.graph.nodes:
        use = _matrix_use(program, node)
        if use is not None:
            readers.setdefault(use.operand, []).append(use)
    modified = False
    for operand, uses in readers.items():
        modified |= _gather_columns(program, operand, uses)
        for use in uses:
            modified |= _scatter_rows(program, use)
    if modified:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return modified


def _matrix_use(program: Program, node: Node) -> WeightUse | None:
    """The product with a matrix of its own that `node` is, None if it is none."""
    use = weight_use(node)
    if use is None or program.parameter(use.weight).dim() != 2:
        return None
    stored = [use.weight] if use.bias is None else [use.weight, use.bias]
    alone = all(len(reads(program, str(n.target))) == 1 for n in stored)
    return use if alone else None


def _gather_columns(program: Program, operand: Node, uses: list[WeightUse]) -> bool:
    """Gathers for each reader, or once for all of them, whichever saves more."""
    lives = [(program.parameter(u.weight) != 0).any(u.outputs) for u in uses]
    outputs = [program.parameter(u.weight).shape[u.outputs] for u in uses]
    each = [_saved(live, count) for live, count in zip(lives, outputs, strict=True)]
    union = torch.stack(lives).any(0)
    together = _saved(union, sum(outputs))
    if together > sum(each):
        lives, each = [union] * len(uses), [together] * len(uses)
    gathered: dict[bytes, Node] = {}
    for use, live, saved in zip(uses, lives, each, strict=True):
        if saved:
            index = live.nonzero().flatten()
            key = index.cpu().numpy().tobytes()
            if key not in gathered:
                gathered[key] = _gather(program, operand, use.node, index)
            use.node.replace_input_with(operand, gathered[key])
            _keep(program, use.weight, use.inputs, index)
    return any(each)


def _saved(live: Tensor, outputs: int) -> int:
    """MACs per row that a gather saves, less what it costs; 0 if it does not pay."""
    kept = int(live.sum())
    saved = (len(live) - kept) * outputs - GATHER * kept
    return saved if 0 < kept < len(live) and saved > 0 else 0


def _gather(program: Program, operand: Node, first: Node, index: Tensor) -> Node:
    with program.graph.inserting_before(first):
        buffer = new_buffer(program, "live", index)
        return call(program, aten.index_select.default, operand, -1, buffer)


def _scatter_rows(program: Program, use: WeightUse) -> bool:
    weight = program.parameter(use.weight)
    live = (weight != 0).any(use.inputs)
    if use.bias is not None:
        live |= program.parameter(use.bias) != 0
    kept, inputs = int(live.sum()), weight.shape[use.inputs]
    if (len(live) - kept) * inputs < SCATTER * len(live) or not kept:
        return False
    index = live.nonzero().flatten()
    _keep(program, use.weight, use.outputs, index)
    if use.bias is not None:
        _keep(program, use.bias, 0, index)
    # What went reads the zero that is appended.
    places = torch.full_like(live, kept, dtype=torch.int64)
    places[index] = torch.arange(kept, device=index.device)
    _restore(program, use.node, places)
    return True


def _restore(program: Program, node: Node, places: Tensor) -> None:
    """All users of `node`, whose weight has fewer rows now, see the whole output."""
    target = node.target
    assert isinstance(target, Callable)  # type: ignore[arg-type]
    with program.graph.inserting_before(node):
        short = call(program, target, *node.args)
        padded = call(program, aten.constant_pad_nd.default, short, [0, 1])
        buffer = new_buffer(program, "places", places)
        whole = call(program, aten.index_select.default, padded, -1, buffer)
    for name in ("nn_module_stack", "stack_trace"):
        if name in node.meta:
            short.meta[name] = node.meta[name]
    node.replace_all_uses_with(whole)


def _keep(program: Program, node: Node, dim: int, index: Tensor) -> None:
    old = program.parameter(node)
    new = old.detach().index_select(dim, index)
    replace_tensor(program, node, nn.Parameter(new, old.requires_grad))
    dims = program.kept.setdefault(str(node.target), {})
    dims[dim] = dims[dim][index.cpu()] if dim in dims else index.cpu()
