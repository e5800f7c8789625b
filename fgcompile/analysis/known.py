"""Flow and constants of a program, found once for as long as it stays as it is.

Several passes in a row ask for them, and most passes change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

from fgcompile.analysis.facts import Constants, find_constants
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.steps import Flow
from fgcompile.program import Program

_KEY = "facts"


@dataclass(frozen=True)
class _Known:
    state: list[tuple[Any, ...]]
    values: list[Any]  # kept alive, or their ids could come to mean others
    flow: Flow
    constants: Constants


def known_facts(program: Program) -> tuple[Flow, Constants]:
    """What `trace_planes` and `find_constants` say of `program`; not to be changed."""
    state = list(_state(program))
    known = program.cache.get(_KEY)
    if known is None or known.state != state:
        flow = trace_planes(program)
        values = [node.meta.get("val") for node in program.graph.nodes]
        known = _Known(state, values, flow, find_constants(program, flow))
        program.cache[_KEY] = known
    return known.flow, known.constants


def _state(program: Program) -> Iterator[tuple[Any, ...]]:
    """All that facts follow from: the graph, its shapes, and its tensors' values.

    Tensors are held weakly, or those that a pass replaced would stay in memory.
    """
    for node in program.graph.nodes:
        stored: tuple[Any, ...] = ()
        if node.op == "get_attr":
            tensor = program.parameter(node)
            stored = id(tensor), ref(tensor), tensor._version
        value = id(node.meta.get("val"))
        yield node, node.target, node.args, node.kwargs, value, stored
