"""Removes branches that add nothing, or the same to every input.

(1) `x + y` is `x` where `y` is zero: a block whose output projection is dead
    leaves only the residual.
(2) A sum of products that is zero is its bias, broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fgcompile.analysis.facts import Constants, product_is_zero
from fgcompile.analysis.known import known_facts
from fgcompile.analysis.steps import Align, Flow
from fgcompile.passes.shrinkage import call
from fgcompile.passes.weights import weight_use
from fgcompile.program import Program, arguments
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten


def eliminate_dead_branches(program: Program) -> bool:
    """No addition adds zero, and no contraction sums only zeros."""
    flow, constants = known_facts(program)
    modified = False
    for node in list(program.graph.nodes):
        modified |= _drop_zero_term(flow, constants, node)
    for step in flow.steps:
        if isinstance(step, Align) and product_is_zero(step, constants):
            modified |= _replace_by_bias(program, step)
    if modified:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return modified


def _drop_zero_term(flow: Flow, constants: Constants, node: Node) -> bool:
    """Rule (1)."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor):
        return False
    left, right = node.args[:2]
    terms = [(left, right)]
    if node.target is aten.add.Tensor and arguments(node)["alpha"] == 1:
        terms.append((right, left))
    for kept, dropped in terms:
        index = flow.value_of(dropped) if isinstance(dropped, Node) else None
        if index is None or not constants.zero[index]:
            continue
        if isinstance(kept, Node) and _same(kept, node):
            node.replace_all_uses_with(kept)
            return True
    return False


def _same(left: Node, right: Node) -> bool:
    a, b = tensor_of(left), tensor_of(right)
    if a is None or b is None or a.dtype != b.dtype:
        return False
    return list(map(str, a.shape)) == list(map(str, b.shape))


def _replace_by_bias(program: Program, step: Align) -> bool:
    """Rule (2), for contractions with a stored weight."""
    use = weight_use(step.node)
    if use is None or step.rule.kind != "contraction" or not step.node.users:
        return False
    with program.graph.inserting_before(step.node):
        sizes = _sizes(program, step.node)
        if sizes is None:
            return False
        value = tensor_of(step.node)
        assert value is not None
        source: Any = _constant(program, step.node, use.bias, sizes)
    step.node.replace_all_uses_with(source)
    return True


def _constant(
    program: Program, node: Node, bias: Node | None, sizes: list[Any]
) -> Node:
    """The bias, broadcast to `sizes`; without one, zeros."""
    value = tensor_of(node)
    assert value is not None
    graph = program.graph
    if bias is None:
        result = graph.call_function(
            aten.full.default,
            (sizes, 0.0),
            {"dtype": value.dtype, "device": value.device},
        )
    else:
        if node.target._schema.name.startswith("aten::conv"):  # type: ignore[union-attr]
            shape = [-1] + [1] * (value.dim() - 2)
            bias = call(program, aten.view.default, bias, shape)
        result = graph.call_function(aten.expand.default, (bias, sizes))
    result.meta.update(node.meta)
    return result


def _sizes(program: Program, node: Node) -> list[Any] | None:
    """The node's sizes as arguments, dynamic ones read from the program's inputs."""
    value = tensor_of(node)
    assert value is not None
    sizes: list[Any] = []
    for size in value.shape:
        found = size if isinstance(size, int) else _input_size(program, size)
        if found is None:
            for unread in sizes:
                if isinstance(unread, Node):
                    program.graph.erase_node(unread)
            return None
        sizes.append(found)
    return sizes


def _input_size(program: Program, size: torch.SymInt) -> Node | None:
    for placeholder in program.graph.find_nodes(op="placeholder"):
        tensor = tensor_of(placeholder)
        for dim, other in enumerate(tensor.shape if tensor is not None else ()):
            if not isinstance(other, int) and str(other) == str(size):
                node = program.graph.call_function(
                    aten.sym_size.int, (placeholder, dim)
                )
                node.meta["val"] = other
                return node
    return None
