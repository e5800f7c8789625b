"""The order in which passes make a program smaller."""

from __future__ import annotations

from fgcompile.passes.base import run_passes, run_until_stable
from fgcompile.passes.canonicalize import canonicalize
from fgcompile.passes.eliminate_dead_branches import eliminate_dead_branches
from fgcompile.passes.eliminate_dead_code import eliminate_dead_code
from fgcompile.passes.eliminate_dead_dims import eliminate_dead_dims
from fgcompile.passes.fold_constants import fold_constants
from fgcompile.passes.fold_gates import fold_gates
from fgcompile.passes.gather_live import gather_live
from fgcompile.passes.merge_low_rank import merge_low_rank
from fgcompile.passes.move_gates import move_gates
from fgcompile.passes.propagate_constants import propagate_constants
from fgcompile.program import Program

PREPARE = (
    canonicalize,
    # Before constants: a shared weight times its gate would be one.
    move_gates,
    fold_constants,
    merge_low_rank,
    eliminate_dead_code,
)
ELIMINATE = (
    # Dead branches first: what is left of a block whose every unit is dead would
    # otherwise keep one unit of each kind.
    eliminate_dead_branches,
    propagate_constants,
    eliminate_dead_dims,
    eliminate_dead_code,
)
FINISH = (fold_gates, fold_constants, eliminate_dead_code)


def eliminate(program: Program) -> Program:
    """A copy of `program` without dead dims, branches and gates."""
    lowered = program.copy()
    run_passes(lowered, PREPARE)
    run_until_stable(lowered, ELIMINATE)
    run_passes(lowered, FINISH)
    run_until_stable(lowered, ELIMINATE)
    run_passes(lowered, (gather_live,))
    lowered.cache.clear()
    return lowered
