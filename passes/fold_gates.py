"""Folds gate factors that survived into the weights beside them.

After elimination only open gates are left. A factor of one is dropped; another
scales the columns of the weights that read the gated value, or the rows and bias
that made it; where neither can be scaled, it stays as a multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from fgcompile.passes.shrinkage import call, new_buffer
from fgcompile.passes.weights import WeightUse, reads, replace_tensor, weight_use
from fgcompile.program import Program, arguments
from fgcompile.rules.movement import is_movement
from fgcompile.rules.registry import operand
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten
GATE = "fgcompile::gate"
"""Qualified name of the gate operator."""


def fold_gates(program: Program) -> bool:
    """No gate is left; factors that no weight could take are multiplications."""
    gates = [n for n in program.graph.nodes if is_gate(n)]
    for gate in gates:
        for fold in (_drop, _fold_forward, _fold_back):
            if not gate.users or fold(program, gate):
                break
    for gate in gates:
        if gate.users:
            _multiply(program, gate)
    if gates:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return bool(gates)


def is_gate(node: Node) -> bool:
    """Whether a node multiplies by the factors of a gate."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name == GATE


def _factors(program: Program, gate: Node) -> Tensor | None:
    """The gate's factors, None if they are computed from inputs."""
    source = operand(gate, 1)
    return program.parameter(source).detach() if source.op == "get_attr" else None


def _drop(program: Program, gate: Node) -> bool:
    factors = _factors(program, gate)
    if factors is None or not bool((factors == 1).all()):
        return False
    gate.replace_all_uses_with(operand(gate))
    return True


def _fold_forward(program: Program, gate: Node) -> bool:
    """Scales the input columns of every weight that reads the gated value.

    A weight that is used several times is scaled once, if all its uses read the
    same factors.
    """
    uses = _readers(gate)
    factors = _factors(program, gate)
    if factors is None or uses is None:
        return False
    gates = {gate}
    for name in {str(use.weight.target) for use in uses}:
        for reader in reads(program, name):
            other = weight_use(reader)
            source = _gate_behind(other.operand) if other is not None else None
            if source is None or str(source.args[1]) != str(gate.args[1]):
                return False
            gates.add(source)
    if any(_readers(g) is None for g in gates) or not _closed(program, gates, uses):
        return False
    for use in {str(u.weight.target): u for u in uses}.values():
        _scale(program, use.weight, factors, use.inputs)
    for each in gates:
        each.replace_all_uses_with(operand(each))
    return True


def _closed(program: Program, gates: set[Node], uses: list[WeightUse]) -> bool:
    """Whether the weights behind all of `gates` are those of `uses`."""
    weights = {str(use.weight.target) for use in uses}
    others = {str(u.weight.target) for g in gates for u in _readers(g) or []}
    return others == weights


def _readers(gate: Node) -> list[WeightUse] | None:
    """Contractions that read the gated value, None if anything else does too."""
    uses: list[WeightUse] = []
    for user in gate.users:
        if _keeps_last_dim(user) and _is_last(gate):
            found = _readers_of_view(user)
            if found is None:
                return None
            uses += found
            continue
        use = weight_use(user)
        if use is None or use.operand is not gate or _dim(gate) != use.channels:
            return None
        uses.append(use)
    return uses


def _readers_of_view(view: Node) -> list[WeightUse] | None:
    uses = [weight_use(user) for user in view.users]
    if any(u is None or u.operand is not view or u.channels != -1 for u in uses):
        return None
    return [u for u in uses if u is not None]


def _gate_behind(node: Node) -> Node | None:
    if is_gate(node):
        return node
    if _keeps_last_dim(node) and isinstance(node.args[0], Node):
        return node.args[0] if is_gate(node.args[0]) else None
    return None


def _keeps_last_dim(node: Node) -> bool:
    """Whether a node is a view that leaves the last dim as it is."""
    if not is_movement(node) or not isinstance(node.args[0], Node):
        return False
    name = node.target._schema.name  # type: ignore[union-attr]
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if name not in ("aten::view", "aten::reshape", "aten::_unsafe_view"):
        return False
    return (
        before is not None and after is not None and before.shape[-1] == after.shape[-1]
    )


def _dim(gate: Node) -> int:
    tensor = tensor_of(gate)
    dim = gate.args[2]
    assert tensor is not None
    assert isinstance(dim, int)
    return dim if dim < 0 else dim - tensor.dim()


def _is_last(gate: Node) -> bool:
    return _dim(gate) == -1


def _fold_back(program: Program, gate: Node) -> bool:
    """Scales what made the gated value, if nothing else reads it."""
    factors, source = _factors(program, gate), operand(gate)
    if factors is None or len(source.users) > 1:
        return False
    if _keeps_last_dim(source) and _is_last(gate):
        source = operand(source)
        if len(source.users) > 1:
            return False
    scaled = _producer(source, gate)
    if scaled is None or any(len(reads(program, str(n.target))) > 1 for n, _ in scaled):
        return False
    for node, dim in scaled:
        _scale(program, node, factors, dim)
    gate.replace_all_uses_with(operand(gate))
    return True


def _producer(source: Node, gate: Node) -> list[tuple[Node, int]] | None:
    """Tensors to scale, and along which dim; None if the producer has none."""
    use = weight_use(source)
    if use is not None:
        if _dim(gate) != use.channels:
            return None
        bias = [(use.bias, 0)] if use.bias is not None else []
        return [(use.weight, use.outputs), *bias]
    if source.target is aten.layer_norm.default and _is_last(gate):
        a = arguments(source)
        tensors = [a["weight"], a["bias"]]
        if a["weight"] is None or len(a["normalized_shape"]) > 1:
            return None
        return [(t, 0) for t in tensors if t is not None]
    if source.target is aten.embedding.default and _is_last(gate):
        return [(operand(source), 1)]
    return None


def _scale(program: Program, node: Node, factors: Tensor, dim: int) -> None:
    old = program.parameter(node)
    shape = [1] * old.dim()
    shape[dim] = -1
    new = old.detach() * factors.to(old).reshape(shape)
    replace_tensor(program, node, nn.Parameter(new, requires_grad=old.requires_grad))


def _multiply(program: Program, gate: Node) -> None:
    factors, value = _factors(program, gate), tensor_of(gate)
    assert value is not None
    shape = [-1] + [1] * (-_dim(gate) - 1)
    with program.graph.inserting_before(gate):
        if factors is not None:
            factor = new_buffer(program, "factors", factors.reshape(shape).clone())
        else:
            factor = call(program, aten.view.default, gate.args[1], shape)
        product = call(program, aten.mul.Tensor, gate.args[0], factor)
    product.meta.update(gate.meta)
    gate.replace_all_uses_with(product)
