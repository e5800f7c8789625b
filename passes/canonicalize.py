"""One form for what can be written in several ways.

A program made of sub-graphs, or with ops that return their operand, computes the same
without them: a call of a sub-graph is its nodes, and such an op's users may as well
read its operand. Capture leaves neither behind; other passes and hand-made graphs do.
An operator that takes its sizes from another tensor's shape does not depend on that
tensor's values: it names the sizes instead, so that the tensor may shrink.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from fgcompile.capture.subgraphs import inline_subgraphs
from fgcompile.capture.tidy import remove_assertions, remove_identities
from fgcompile.program import Program
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten


def canonicalize(program: Program) -> bool:
    """No sub-graph, assertion or identity is left in `program`; `expand` names sizes.

    Returns:
        Whether the program was modified.
    """
    graph_module = program.graph_module
    modified = [
        remove_assertions(graph_module),
        inline_subgraphs(graph_module),
        remove_identities(graph_module),
        _name_sizes(program),
        program.graph.eliminate_dead_code(),
    ]
    if any(modified):
        graph_module.recompile()
    return any(modified)


def _name_sizes(program: Program) -> bool:
    modified = False
    for node in program.graph.find_nodes(
        op="call_function", target=aten.expand_as.default
    ):
        sizes = _expanded_sizes(node)
        if sizes is not None:
            node.target, node.args = aten.expand.default, (node.args[0], sizes)
            modified = True
    return modified


def _expanded_sizes(node: Node) -> list[int] | None:
    """-1 where the size stays; None if one that changes is dynamic."""
    before, after = (tensor_of(n) for n in (node.args[0], node))  # type: ignore[arg-type]
    assert before is not None
    assert after is not None
    sizes = []
    for old, new in zip(reversed(before.shape), reversed(after.shape), strict=False):
        sizes.append(-1 if str(old) == str(new) else new)
    sizes = [*after.shape[: after.dim() - before.dim()], *reversed(sizes)]
    return sizes if all(isinstance(size, int) for size in sizes) else None
