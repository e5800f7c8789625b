"""Where in a program the units of a coupled group are: what gets smaller with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch.fx import Node

from fgcompile.analysis.coupling import Analysis
from fgcompile.analysis.steps import Align, Flow
from fgcompile.units import BoolArray


def region_of(analysis: Analysis, name: str) -> list[Node]:
    """Calls that read or make a unit of the group `name`, in the order of the graph.

    For hidden channels: both matrices and what lies between them. A head brings along
    what it owns.
    """
    units = analysis.dead_units({name: range(analysis.by_name[name].size)})
    flow = analysis.flow
    held = {index for index in range(len(flow.values)) if _holds(flow, index, units)}
    return [
        node
        for node in analysis.program.graph.nodes
        if node.op == "call_function"
        and any(value in held for value in _values(flow, node))
    ]


def shares(analysis: Analysis, names: Sequence[str]) -> dict[tuple[str, ...], int]:
    """MACs [count] by the groups that share them, of all that one of `names` has.

    A product that several groups make smaller, such as a convolution between channels
    of two groups, costs what is left of one times what is left of the others.
    """
    steps: dict[Node, list[str]] = defaultdict(list)
    for name in names:
        for node in region_of(analysis, name):
            steps[node].append(name)
    contractions = (
        step
        for step in analysis.flow.steps
        if isinstance(step, Align) and step.rule.kind == "contraction"
    )
    found: dict[tuple[str, ...], int] = defaultdict(int)
    for step, cost in zip(contractions, analysis.costs.contractions, strict=True):
        if step.node in steps:
            found[tuple(steps[step.node])] += cost.macs
    return dict(found)


def _values(flow: Flow, node: Node) -> list[int]:
    """Indices of all values that a call reads or makes."""
    near = [node, *node.all_input_nodes]
    return [index for n in near for index in flow.of.get(n, ()) if index is not None]


def _holds(flow: Flow, index: int, units: BoolArray) -> bool:
    planes = flow.values[index].planes
    return any(bool(units[plane[plane >= 0]].any()) for plane in planes)
