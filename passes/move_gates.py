"""Moves gates from shared weights to what meets them.

A tied table cannot take the factors of a gate that only one of its readers has: it
would be stored twice. Columns of a weight may as well be scaled where they are read,
in the operand, and rows in the result.
"""

from __future__ import annotations

from torch.fx import Node

from fgcompile.passes.fold_gates import is_gate
from fgcompile.passes.shrinkage import call
from fgcompile.passes.weights import reads
from fgcompile.program import Program, arguments
from fgcompile.rules.registry import operand


def move_gates(program: Program) -> bool:
    """No linear map reads the gated copy of a weight that others read without it.

    Returns:
        Whether a gate was moved.
    """
    found = [n for n in program.graph.nodes if is_gate(n) and _is_shared(program, n)]
    moved = [_move(program, user, gate) for gate in found for user in list(gate.users)]
    if any(moved):
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return any(moved)


def _is_shared(program: Program, gate: Node) -> bool:
    weight = operand(gate)
    others = (n for n in reads(program, str(weight.target)) if n is not gate)
    return weight.op == "get_attr" and any(others)


def _move(program: Program, node: Node, gate: Node) -> bool:
    """Whether `node` is a linear map with the gated weight that can do without it."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name != "aten::linear":
        return False
    weight, factors, dim = gate.args
    a = arguments(node)
    columns = dim in (1, -1)
    if a["weight"] is not gate or a["input"] is gate or a["bias"] is gate:
        return False
    if not columns and a["bias"] is not None:
        return False
    bias = (a["bias"],) if a["bias"] is not None else ()
    last = a["input"].meta["val"].dim() - 1
    node.kwargs = {}
    if columns:
        with program.graph.inserting_before(node):
            value = call(program, gate.target, a["input"], factors, last)
        node.args = (value, weight, *bias)
        return True
    node.args = (a["input"], weight)
    with program.graph.inserting_after(node):
        scaled = call(program, gate.target, node, factors, last)
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    return True
