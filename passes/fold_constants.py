"""Computes now what depends on parameters and buffers alone.

Gate values, masks of other pruning tools (`weight_orig * weight_mask`) and gathered
statistics are computations without inputs: their result is stored instead. Only
elementwise operators, reductions, movement and gathers are folded, and nothing
that would grow; a plain view of a weight stays a view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.passes.shrinkage import fake_like, new_buffer
from fgcompile.program import Program
from fgcompile.rules.movement import is_movement
from fgcompile.rules.registry import is_pointwise
from fgcompile.rules.shapes import tensor_of

_MORE = {
    *("aten::cat", "aten::stack", "aten::index_select", "aten::index", "aten::expand"),
    *("aten::sum", "aten::mean", "aten::linalg_vector_norm", "aten::norm_except_dim"),
    *("aten::ones", "aten::zeros", "aten::full", "aten::arange", "aten::where"),
    *("aten::ones_like", "aten::zeros_like", "aten::to", "aten::_to_copy"),
    *("aten::clone", "aten::detach", "aten::alias", "aten::contiguous"),
    *("aten::new_ones", "aten::new_zeros", "aten::new_full", "aten::full_like"),
    *("aten::lift_fresh_copy", "aten::_weight_norm", "fgcompile::gate"),
}


def fold_constants(program: Program) -> bool:
    """No node computes what could be stored in no more space."""
    constant: set[Node] = set()
    for node in program.graph.nodes:
        if _is_constant(node, constant):
            constant.add(node)
    frontier = [
        node
        for node in program.graph.nodes
        if node in constant
        and node.op == "call_function"
        and any(user not in constant for user in node.users)
        and _pays(program, node)
    ]
    stored: dict[str, Node] = {}
    for node in frontier:
        key = _formula(node)
        if key not in stored:
            stored[key] = _store(program, node)
        node.replace_all_uses_with(stored[key])
    if frontier:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return bool(frontier)


def _is_constant(node: Node, constant: set[Node]) -> bool:
    if node.op == "get_attr":
        return True
    tensor = tensor_of(node)
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or tensor is None:
        return False
    if any(not isinstance(size, int) for size in tensor.shape):
        return False
    known = is_pointwise(node.target) or is_movement(node) or schema.name in _MORE
    random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
    return known and not random and all(n in constant for n in node.all_input_nodes)


def _pays(program: Program, node: Node) -> bool:
    """Whether a parameter is involved, more than moved, and the result no larger."""
    leaves, calls = _ancestry(node)
    tensors = [program.parameter(leaf) for leaf in leaves]
    if not tensors or any(t.is_meta for t in tensors):
        return False
    if all(is_movement(call) and not _gathers(call) for call in calls):
        return False
    if not any(program.is_parameter(leaf) for leaf in leaves):
        return any(_gathers(call) for call in calls)
    result = tensor_of(node)
    assert result is not None
    largest = max(
        program.parameter(leaf).numel() for leaf in leaves if program.is_parameter(leaf)
    )
    return result.numel() <= largest or result.dim() == 1


def _gathers(node: Node) -> bool:
    return node.target in (
        torch.ops.aten.index_select.default,
        torch.ops.aten.index.Tensor,
    )


def _ancestry(node: Node) -> tuple[set[Node], set[Node]]:
    """Tensors that `node` is computed from, and the calls in between."""
    leaves: set[Node] = set()
    calls: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op == "get_attr":
            leaves.add(current)
        elif current not in calls:
            calls.add(current)
            stack += current.all_input_nodes
    return leaves, calls


def _formula(node: Node) -> str:
    """What the node computes, in terms of the tensors that it is computed from."""
    if node.op == "get_attr":
        return str(node.target)
    args = torch.fx.map_arg((node.args, node.kwargs), lambda n: _Text(_formula(n)))
    return f"{node.target}{args}"


class _Text(str):
    """A formula inside a formula, printed as it is."""

    def __repr__(self) -> str:
        return str(self)


def _store(program: Program, node: Node) -> Node:
    """A node that reads the result of `node`."""
    tensor = _evaluate(program, node, {})
    leaves, _ = _ancestry(node)
    parameters = sorted(
        (n for n in leaves if program.is_parameter(n)), key=lambda n: str(n.target)
    )
    with program.graph.inserting_before(node):
        if parameters and tensor.is_floating_point():
            grad = any(program.parameter(n).requires_grad for n in parameters)
            stem = str(parameters[0].target)
            stored = new_parameter(program, stem, tensor.clone(), grad)
        else:
            stored = new_buffer(program, "constant", tensor.clone())
    return stored


def _evaluate(program: Program, node: Node, known: dict[Node, Tensor]) -> Tensor:
    if node in known:
        return known[node]
    if node.op == "get_attr":
        known[node] = program.parameter(node).detach()
        return known[node]

    def value(argument: Node) -> Any:
        return _evaluate(program, argument, known)

    args = torch.fx.map_arg(node.args, value)
    kwargs = torch.fx.map_arg(node.kwargs, value)
    with torch.no_grad():
        known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def new_parameter(program: Program, stem: str, tensor: Tensor, grad: bool) -> Node:
    """A `get_attr` node of a new parameter beside the one named `stem`.

    It is placed where the caller's insertion point is.
    """
    owner, _, leaf = stem.rpartition(".")
    module = program.graph_module.get_submodule(owner)
    name = next(
        name for k in range(10**9) if not hasattr(module, name := f"{leaf}_{k}")
    )
    module.register_parameter(name, nn.Parameter(tensor, requires_grad=grad))
    node = program.graph.get_attr(f"{owner}.{name}" if owner else name)
    node.meta["val"] = fake_like(program, tensor)
    return node
