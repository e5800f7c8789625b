"""Removes every unit that nothing can see, from every tensor of the program.

The analyses say what may go (`needs`) and what then must stay for shapes' sake
(`survivors`). The rewrites slice the parameters, recompute sizes, gather what no
unit describes and repair statistics. Then the result is *proven*: the new graph is
run on planes, and every element of every value must come from the unit that
survived at its place. Where that fails, the units concerned are revived and the
rewrite starts over; so a rewrite that this file does not foresee costs size, never
correctness.

Who wants less rewriting than that says so by a `Restraint`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from torch.fx import Node

from fgcompile.analysis.facts import find_constants
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.known import known_facts
from fgcompile.analysis.needs import Needs, propagate_needs
from fgcompile.analysis.steps import Flow
from fgcompile.analysis.survivors import Survivors, close_survivors
from fgcompile.errors import VerifyError
from fgcompile.passes.gather_operands import gather_operands
from fgcompile.passes.origins import first_difference
from fgcompile.passes.refresh_shapes import ShapeError, refresh_shapes
from fgcompile.passes.repair_norms import repair_norms
from fgcompile.passes.restore_outputs import restore_outputs
from fgcompile.passes.rewrite_sizes import rewrite_sizes
from fgcompile.passes.shrinkage import Shrinkage
from fgcompile.passes.slice_parameters import slice_parameters
from fgcompile.program import Program

logger = logging.getLogger(__name__)

_ATTEMPTS = 32


class Restraint:
    """What a target cannot follow; this one can follow everything."""

    def restrict(self, flow: Flow) -> None:
        """Pins factors of the steps of `flow`."""

    def seed(self, program: Program, flow: Flow, needs: Needs, revived: Needs) -> None:
        """Sets units of `program` in `revived` that stay, given what is needed."""

    def faults(self, before: Program, after: Program) -> Iterable[str]:
        """Nodes of `before` that `after`, its smaller copy, must not touch."""
        return ()


def eliminate_dead_dims(program: Program, restraint: Restraint | None = None) -> bool:
    """Every dim of every tensor is as small as the proof allows; outputs are equal.

    Args:
        program: It is rewritten in place.
        restraint: What must not be done; what the nodes that it finds at fault read
            and make stays whole.

    Returns:
        Whether anything was removed.

    Raises:
        VerifyError: If no consistent set of survivors was found.
    """
    if restraint is None:
        restraint = Restraint()
        flow, constants = known_facts(program)
    else:
        flow = trace_planes(program)
        restraint.restrict(flow)
        constants = find_constants(program, flow)
    needs = propagate_needs(flow, constants)
    revived = Needs([[np.zeros_like(p) for p in v] for v in needs.planes], [])
    restraint.seed(program, flow, needs, revived)
    for _ in range(_ATTEMPTS):
        survivors = close_survivors(flow, needs, revived)
        if not _shrinks_parameters(flow, survivors):
            return False
        shrinkage = Shrinkage(program.copy(), flow, survivors, constants)
        fault = _shrink(shrinkage)
        names = [] if fault is None else [fault]
        names = names or list(restraint.faults(program, shrinkage.program))
        if not names:
            program.graph_module = shrinkage.program.graph_module
            program.kept = shrinkage.program.kept
            return True
        logger.info("eliminate_dead_dims: reviving units at %s", ", ".join(names))
        _revive(flow, revived, survivors, set(names))
    raise VerifyError(
        f"eliminate_dead_dims found no consistent survivors in {_ATTEMPTS} attempts\n"
        "  This is a bug in fgcompile: please report the model."
    )


def _shrinks_parameters(flow: Flow, survivors: Survivors) -> bool:
    return any(
        not mask.all()
        for index in flow.parameters.values()
        for mask in survivors.planes[index]
    )


def _shrink(shrinkage: Shrinkage) -> str | None:
    """Rewrites; the name of the first node that does not hold, None if all do."""
    program = shrinkage.program
    before = {n: _state(n) for n in program.graph.nodes}
    slice_parameters(shrinkage)
    rewrite_sizes(shrinkage)
    unclear = gather_operands(shrinkage)
    if unclear is not None:
        return unclear
    restore_outputs(shrinkage)
    repair_norms(shrinkage)
    changed = {n for n in program.graph.nodes if before.get(n) != _state(n)}
    try:
        refresh_shapes(program, changed)
    except ShapeError as error:
        return error.node
    program.graph.lint()
    program.graph_module.recompile()
    return first_difference(shrinkage)


def _state(node: Node) -> tuple[object, ...]:
    return node.target, node.args, node.kwargs, id(node.meta.get("val"))


def _revive(flow: Flow, revived: Needs, survivors: Survivors, names: set[str]) -> None:
    """Keeps whole what the nodes called `names` read and make.

    Raises:
        VerifyError: If that was whole already.
    """
    values = set()
    for step in flow.steps:
        if step.node.name in names:
            values |= {v for v in (*step.operands, *step.outputs) if v is not None}
    grown = False
    for v in values:
        for plane, mask in zip(revived.planes[v], survivors.planes[v], strict=True):
            grown |= not mask.all()
            plane[...] = True
    if not grown:
        raise VerifyError(
            f"eliminate_dead_dims: %{', %'.join(sorted(names))} does not hold, though "
            "it lost nothing\n"
            "  This is a bug in fgcompile: please report the model."
        )
