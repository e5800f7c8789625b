"""The mutants as text: a line each for the terminal, a table for the docs."""

from __future__ import annotations

from collections.abc import Iterable

from tests.mutants.mutant import Mutant
from tests.mutants.run import Outcome

HEADER = """# Mutants: who checks the checks

`lower` promises that nothing wrong is written. What makes that true is verification,
and whether verification would notice is tried here: each line is one mistake made in
fgcompile on purpose, in the function named, and a model that runs into it. *Damage* is
what it does to the outputs where verification is off (relative to the largest output),
or the error in which it ends. With verification on, all of them end in the error of the
last columns before a file exists.

- *float64*: the lowered graph and the captured one, both run in float64, differ by more
  than rounding explains (`fgcompile/targets/precise.py`).
- *outputs*: they differ in the model's own type, in onnxruntime, or by the code of the
  module that is written (`fgcompile/targets/verify.py`).
- *capture*: the graph differs from the model's own code
  (`fgcompile/targets/captured.py`).
- *structure*: the rewritten graph contradicts itself, or the class of the model cannot
  run with the parameters that it would get.

Before these stands a proof: every rewritten graph is run on the names of its units, and
what does not come out where it should makes lowering keep the units concerned
(`passes/origins.py`). Mistakes that it would undo in this way, at the cost of size, are
tried with the proof off, so that there are two nets; they are marked with a star.

This page is made by `python -m tests.mutants --markdown docs/mutants.md`, and
`python -m pytest -m slow tests/mutants` runs every line of it.

| what is broken | where | model | target | damage | noticed by |
| --- | --- | --- | --- | --- | --- |
"""


def line(mutant: Mutant, outcome: Outcome) -> str:
    """One mutant, with the error that ended it."""
    verdict = f"noticed by {noticed(outcome)}" if outcome.killed else "LIVES"
    text = f"{mutant.name}: damage {outcome.damage or 'none'}, {verdict}"
    return f"{text}: {outcome.first_line}" if outcome.error is not None else text


def noticed(outcome: Outcome) -> str:
    """Which check it was, told by its words."""
    first = outcome.first_line
    if "in float64" in first:
        return "float64"
    if "captured graph" in first:
        return "capture"
    if "differs" in first or "differ by" in first or "fails where" in first:
        return "outputs"
    return "structure"


def page(results: Iterable[tuple[Mutant, Outcome]]) -> str:
    """The page `docs/mutants.md`."""
    return HEADER + "".join(f"{_row(m, outcome)}\n" for m, outcome in results)


def _row(mutant: Mutant, outcome: Outcome) -> str:
    module, _, name = mutant.place.partition(":")
    where = f"`{module.removeprefix('fgcompile.')}.{name}`"
    target = mutant.target + (" with cache" if mutant.cache else "")
    star = "" if mutant.proof else " *"
    damage = outcome.damage.partition(":")[0]
    cells = [
        mutant.name + star,
        where,
        mutant.case.__name__.replace("_", " "),
        target,
        damage,
        noticed(outcome),
    ]
    return f"| {' | '.join(cells)} |"
