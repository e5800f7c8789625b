"""What the gates have done so far, for logs and for the checks before lowering."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from fgcompile.errors import GateError
from fgcompile.gates.access import container_of
from fgcompile.gates.container import GateContainer
from fgcompile.gates.gate import Gate
from fgcompile.gates.independent import paired
from fgcompile.gates.objective import BudgetObjective

logger = logging.getLogger("fgcompile")

TOLERANCE = 0.01
"""Largest distance from a limit that still counts as met, as a fraction of the cost."""


def status(model: nn.Module) -> dict[str, Any]:
    """Where the gates of `model` stand.

    Returns:
        A dict with these entries.

        - `open`: fraction of open units by kind.
        - `cost`: fraction of the gated cost in open units, by `params` and `macs`,
          counted in eval; with a limit on latency also the `latency` predicted for
          them, over the dense model's.
        - `target`, `goal` and `gap` (cost minus goal): of every limit, in the same
          unit; empty without a budget.
        - `steps`: optimizer steps that moved a gate.
        - `forwards`: training forwards.
        - `penalties`: how often the sparsity term was computed in training.
        - `met`: whether the cost is below every limit, or within 0.01 of it.
        - `problems`: sentences about what went wrong, or would be wrong if training
          ended here. They are logged too: as warnings, but for a budget that is not
          met yet and on its way.

    Raises:
        GateError: If `model` has no gates.
    """
    container = container_of(model)
    container.settle()
    found: dict[str, Any] = {
        "open": _open_by_kind(container),
        **_progress(container),
        "forwards": int(container.forwards),
        "penalties": int(container.penalties),
    }
    wrong, missed = _problems(container, found), _missed(found)
    found["met"] = not missed
    found["problems"] = [*wrong, *missed.values()]
    for problem in wrong:
        logger.warning(problem)
    for what, problem in missed.items():
        logger.log(_level(found, what), problem)
    return found


def warn_of_missed_budget(container: GateContainer) -> None:
    """Logs a warning for every limit that is not met, on its way or not."""
    for problem in _missed(_progress(container)).values():
        logger.warning(problem)


def _progress(container: GateContainer) -> dict[str, Any]:
    """Cost, limits and their distance after so many steps."""
    cost = counted_cost(container)
    target, goal = limits_of(container)
    gap = {what: cost[what] - limit for what, limit in goal.items()}
    steps = int(container.updates)
    return {"cost": cost, "target": target, "goal": goal, "gap": gap, "steps": steps}


def _level(found: dict[str, Any], what: str) -> int:
    """How loud it is said that a limit is not met: softly while its schedule runs."""
    runs = found["target"][what] > found["goal"][what]
    kept = found["cost"][what] <= found["target"][what] + TOLERANCE
    return logging.INFO if runs and kept else logging.WARNING


def counted_cost(container: GateContainer) -> dict[str, float]:
    """Fraction of the gated cost in units whose eval factor is not 0.

    Of a matrix whose outputs and inputs have gates of their own, what is left is the
    product of both: as in FineGates, `removed = numel - rows * columns`. With a limit
    on latency, also the fraction of it that is predicted.
    """
    pairs = paired(container)
    if pairs:
        return _counted_pairs(pairs)
    fractions = {}
    for what, total in container.gated_cost().items():
        kept = sum(
            float((getattr(gate, what).double() * gate.open).sum())
            for gate in container.each()
        )
        fractions[what] = kept / total if total else 1.0
    return fractions | _predicted_latency(container)


def _predicted_latency(container: GateContainer) -> dict[str, float]:
    """The latency over that of the dense model, where it is limited."""
    curves = getattr(container.objective, "curves", None)
    if curves is None:
        return {}
    counts = torch.stack([gate.open.sum() for gate in container.each()])
    return {"latency": float(curves.fraction(counts))}


def _counted_pairs(pairs: list[tuple[Gate, Gate]]) -> dict[str, float]:
    entries = sum(rows.size * columns.size for rows, columns in pairs)
    kept = sum(
        int(rows.open.sum()) * int(columns.open.sum()) for rows, columns in pairs
    )
    return {"params": kept / entries, "macs": kept / entries}


def _open_by_kind(container: GateContainer) -> dict[str, float]:
    open_: dict[str, int] = {}
    size: dict[str, int] = {}
    for gate in container.each():
        open_[gate.kind] = open_.get(gate.kind, 0) + int(gate.open.sum())
        size[gate.kind] = size.get(gate.kind, 0) + gate.size
    return {kind: open_[kind] / size[kind] for kind in size}


def limits_of(container: GateContainer) -> tuple[dict[str, float], dict[str, float]]:
    """What every limit allows now, and in the end; empty without a budget."""
    objective = container.objective
    if not isinstance(objective, BudgetObjective):
        return {}, {}
    target = dict(zip(objective.costs, objective.target.tolist(), strict=True))
    return target, dict(zip(objective.costs, objective.goal, strict=True))


def check_ran(container: GateContainer) -> None:
    """Raises where gates were trained in vain, and nothing else closed any.

    Raises:
        GateError: If there were training forwards, but the penalty never ran, no
            optimizer step moved a gate, or training ended before the objective
            started, and the user closed no unit.
    """
    forwards = int(container.forwards)
    trains = container.config.resolved_objective != "none"
    closed = any(bool(gate.closed.any()) for gate in container.each())
    if not trains or not forwards or closed:
        return
    what = _never_ran(container)
    if what:
        raise GateError(
            f"{what[0]}\n  Train again; or close units by hand; or, to lower the dense "
            "model, take the gates off with fgcompile.remove_gates(model)."
        )


def _never_ran(container: GateContainer) -> list[str]:
    forwards, steps = int(container.forwards), int(container.updates)
    budget = container.config.budget
    begin = container.config.begin if budget is None else budget.begin
    problems = []
    if not int(container.penalties):
        problems.append(
            f"the sparsity penalty never ran in {forwards} training forwards: the "
            "model returns no loss; add fgcompile.penalty(model) to yours"
        )
    if not steps:
        problems.append(
            f"no gate moved in {forwards} training forwards: create the optimizer "
            "after insert_gates, from all parameters of the model"
        )
    elif steps <= begin:
        problems.append(
            f"the objective starts after {begin} optimizer steps, of which there were "
            f"{steps}: choose a smaller begin, or train longer"
        )
    return problems


def _problems(container: GateContainer, found: dict[str, Any]) -> list[str]:
    forwards, problems = found["forwards"], []
    trains = container.config.resolved_objective != "none"
    if trains and forwards:
        problems += _never_ran(container)
    if trains and forwards and found["penalties"] >= 2 * forwards:
        problems.append(
            f"the sparsity penalty ran {found['penalties']} times in {forwards} "
            "training forwards: the loss of the model has it already, so do not add "
            "fgcompile.penalty(model) to it"
        )
    return problems


def _missed(found: dict[str, Any]) -> dict[str, str]:
    """A sentence for every limit that is not met."""
    gaps = found["gap"].items()
    return {what: _sentence(what, found) for what, gap in gaps if gap > TOLERANCE}


def _sentence(what: str, found: dict[str, Any]) -> str:
    stays = f"of the gated {what} are open"
    if what == "latency":
        stays = "of the dense latency are predicted"
    return (
        f"the budget is not met: {found['cost'][what]:.1%} {stays}, "
        f"the limit is {found['goal'][what]:.1%}, and step {found['steps']} "
        f"allows {found['target'][what]:.1%}; train longer, or set Budget(steps=...)"
    )
