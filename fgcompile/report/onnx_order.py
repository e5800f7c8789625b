"""ONNX nodes with operands before users."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fgcompile.errors import FormatError

if TYPE_CHECKING:
    import onnx


def in_order(nodes: Any, known: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes with operands before users, else in the order of the file.

    Raises:
        FormatError: If the graph has a cycle.
    """
    pending = list(nodes)
    outside = {"", *known}
    maker = {name: i for i, n in enumerate(pending) for name in n.output if name}
    needs = [
        {maker[name] for name in _reads(node) - outside if name in maker}
        for node in pending
    ]
    users: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            users.setdefault(source, []).append(index)
    ready = [index for index, sources in enumerate(needs) if not sources]
    ordered: list[onnx.NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(pending[index])
        for user in users.get(index, ()):
            needs[user].discard(index)
            if not needs[user]:
                heapq.heappush(ready, user)
    if len(ordered) < len(pending):
        stuck = next(pending[i] for i, sources in enumerate(needs) if sources)
        raise FormatError(
            f"the graph has a cycle through {len(pending) - len(ordered)} nodes\n"
            f"  one of them is {stuck.op_type} {stuck.name}\n"
            "  Check the file with onnx.checker; an ONNX graph has no cycles."
        )
    return ordered


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node and its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] * attribute.HasField("g"))]:
            for inner in graph.node:
                names |= _reads(inner)
            names |= {out.name for out in graph.output}
    return names
