"""Removes nodes that no output depends on, and tensors that no node reads."""

from __future__ import annotations

from torch._ops import OpOverload
from torch.fx import Node

from fgcompile.program import Program


def eliminate_dead_code(program: Program) -> bool:
    """Only what the outputs depend on is left; inputs stay, to keep the interface."""
    before = len(program.graph.nodes)
    program.graph.eliminate_dead_code(_has_effect)
    module = program.graph_module
    tensors = sum(1 for _ in module.state_dict(keep_vars=True))
    module.delete_all_unused_submodules()
    used = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    for path, owner in list(module.named_modules()):
        for store in (owner._parameters, owner._buffers):
            for leaf in list(store):
                if (f"{path}.{leaf}" if path else leaf) not in used:
                    del store[leaf]
    after = sum(1 for _ in module.state_dict(keep_vars=True))
    modified = len(program.graph.nodes) != before or after != tensors
    if modified:
        module.recompile()
    return modified


def _has_effect(node: Node) -> bool:
    # FX keeps whatever may draw random numbers, attention with its dropout of 0 too.
    # A number that nobody reads is no effect; writing to an operand is one.
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    return node.is_impure()
