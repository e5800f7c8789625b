"""One form for what can be written in several ways.

A program made of sub-graphs, or with ops that return their operand, computes the same
without them: a call of a sub-graph is its nodes, and such an op's users may as well
read its operand. Capture leaves neither behind; other passes and hand-made graphs do.
"""

from __future__ import annotations

from fgcompile.capture.subgraphs import inline_subgraphs
from fgcompile.capture.tidy import remove_assertions, remove_identities
from fgcompile.program import Program


def canonicalize(program: Program) -> bool:
    """No sub-graph, assertion or identity is left in `program`.

    Returns:
        Whether the program was modified.
    """
    graph_module = program.graph_module
    modified = [
        remove_assertions(graph_module),
        inline_subgraphs(graph_module),
        remove_identities(graph_module),
        program.graph.eliminate_dead_code(),
    ]
    if any(modified):
        graph_module.recompile()
    return any(modified)
