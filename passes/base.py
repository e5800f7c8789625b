"""Running passes: a pass is a function that rewrites a program in place.

A pass takes a `Program` and returns whether it modified it. The program is valid
before and after a pass, not during it. Pipelines are plain tuples of passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fgcompile.errors import FgcompileError, VerifyError
from fgcompile.program import Program

logger = logging.getLogger(__name__)

Pass = Callable[[Program], bool]

_ROUNDS = 16


def run_passes(program: Program, passes: tuple[Pass, ...]) -> bool:
    """`program` after each of `passes` in turn; whether any modified it.

    Raises:
        VerifyError: If a pass fails in a way that it does not expect; the message
            names the pass and those that ran before it.
    """
    modified = False
    for position, each in enumerate(passes):
        before = _count_text(program)
        try:
            changed = each(program)
        except FgcompileError:
            raise
        except Exception as error:
            ran = [p.__name__ for p in passes[:position]]
            raise VerifyError(
                f"pass {each.__name__} failed: {type(error).__name__}: {error}\n"
                f"  after {', '.join(ran) or 'no other pass'}\n"
                "  This is a bug in fgcompile: please report the model."
            ) from error
        if changed:
            logger.info(
                "%s: %s -> %s parameters",
                each.__name__,
                before,
                _count_text(program),
            )
        modified |= changed
    return modified


def run_until_stable(program: Program, passes: tuple[Pass, ...]) -> bool:
    """`program` after as many rounds of `passes` as modify it.

    Raises:
        VerifyError: If the passes do not settle.
    """
    for rounds in range(_ROUNDS):
        if not run_passes(program, passes):
            return rounds > 0
    names = ", ".join(p.__name__ for p in passes)
    raise VerifyError(
        f"passes {names} still modify the program after {_ROUNDS} rounds\n"
        "  This is a bug in fgcompile: please report the model."
    )


def _count_text(program: Program) -> str:
    """The number of parameters for the log, if there is one."""
    return f"{parameter_count(program):,}" if logger.isEnabledFor(logging.INFO) else ""


def parameter_count(program: Program) -> int:
    """Number of parameter elements that the program's graph reads [count]."""
    seen = {
        str(node.target): program.parameter(node).numel()
        for node in program.graph.nodes
        if node.op == "get_attr" and program.is_parameter(node)
    }
    return sum(seen.values())
