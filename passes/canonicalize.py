"""One form for what can be written in several ways.

A program made of sub-graphs, or with ops that return their operand, computes the same
without them: a call of a sub-graph is its nodes, and such an op's users may as well
read its operand. Capture leaves neither behind; other passes and hand-made graphs do.
An operator that takes its sizes from another tensor's shape does not depend on that
tensor's values: it names the sizes instead, so that the tensor may shrink.
"""

from __future__ import annotations

from fgcompile.capture.simplify import simplify
from fgcompile.capture.subgraphs import inline_subgraphs
from fgcompile.capture.tidy import remove_assertions, remove_identities
from fgcompile.program import Program


def canonicalize(program: Program) -> bool:
    """No sub-graph, assertion or identity is left in `program`; sizes are named.

    Returns:
        Whether the program was modified.
    """
    graph_module = program.graph_module
    modified = [
        remove_assertions(graph_module),
        inline_subgraphs(graph_module),
        remove_identities(graph_module),
        simplify(graph_module),
        program.graph.eliminate_dead_code(),
    ]
    if any(modified):
        graph_module.recompile()
    return any(modified)
