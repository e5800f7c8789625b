"""What does not depend on names or positions: equal ports, and a canonical order."""

from __future__ import annotations

from collections.abc import Sequence

from fgcompile.report.summary import ModelSummary, NodeRef, Port


def match_ports(before: Sequence[Port], after: Sequence[Port]) -> list[tuple[int, int]]:
    """Positions of equal inputs or outputs: by name, then by type in order."""
    pairs = [
        (i, j)
        for i, old in enumerate(before)
        for j, new in enumerate(after)
        if old.name == new.name
    ]
    for same in (_same_type, _same_rank):
        taken = {i for i, _ in pairs}, {j for _, j in pairs}
        free = [j for j in range(len(after)) if j not in taken[1]]
        for i in range(len(before)):
            match = next((j for j in free if same(before[i], after[j])), None)
            if i not in taken[0] and match is not None:
                pairs.append((i, match))
                free.remove(match)
    return sorted(pairs)


def _same_type(old: Port, new: Port) -> bool:
    return old.type.dtype == new.type.dtype and _same_rank(old, new)


def _same_rank(old: Port, new: Port) -> bool:
    shapes = old.type.shape, new.type.shape
    return len(shapes[0] or ()) == len(shapes[1] or ())


def canonical_order(summary: ModelSummary) -> list[int]:
    """Nodes by depth-first search from the outputs, operands in slot order.

    It depends on the wiring only, not on the order of nodes in a file. Nodes that
    no output needs come last.
    """
    order: list[int] = []
    seen: set[int] = set()
    roots = [result.node for result in summary.results if isinstance(result, NodeRef)]
    for root in [*roots, *range(len(summary.nodes))]:
        stack = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                operands = summary.nodes[node].operands
                refs = [o.node for o in operands if isinstance(o, NodeRef)]
                stack += [(ref, False) for ref in reversed(refs) if ref not in seen]
    return order
