"""What a transformers Trainer logs about gates."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from fgcompile.gates.access import find_container, gate_parameters
from fgcompile.gates.status import counted_cost, limits_of

logger = logging.getLogger("fgcompile")


def gate_numbers(model: nn.Module) -> dict[str, float]:
    """Where the gates of `model` stand, as flat numbers for any logger.

    Returns:
        `gates/open`: fraction of all units that are open. `gates/params` and
        `gates/macs`: fraction of the gated cost in open units; with a limit on latency
        also `gates/latency`, predicted for them, over the dense model's. `gates/gap`:
        largest distance above a limit, if there is a budget. Empty without gates.
    """
    container = find_container(model)
    if container is None:
        return {}
    container.settle()
    each = container.each()
    cost, goal = counted_cost(container), limits_of(container)[1]
    numbers = {
        "gates/open": sum(int(g.open.sum()) for g in each) / sum(g.size for g in each),
        **{f"gates/{what}": fraction for what, fraction in cost.items()},
    }
    if goal:
        numbers["gates/gap"] = max(cost[what] - limit for what, limit in goal.items())
    return numbers


def gate_callback() -> Any:
    """A `TrainerCallback` that adds `gate_numbers` to everything the Trainer logs.

    It warns as training begins if the optimizer's weight decay would move the gates:
    `rate=None`, as in the papers' presets, leaves their steps to the optimizer.

    The numbers appear in `trainer.state.log_history`, in the progress bar and in
    whatever the Trainer reports to.

    Raises:
        ImportError: If transformers is not installed.
    """
    from transformers import TrainerCallback

    class GateCallback(TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, **more: Any
        ) -> None:
            _warn_of_decay(more.get("model"), more.get("optimizer"))

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any
        ) -> None:
            if logs is None or "model" not in more:
                return
            numbers = gate_numbers(more["model"])
            logs.update(numbers)
            # The history was written before callbacks are asked.
            if state.log_history:
                state.log_history[-1].update(numbers)

    return GateCallback()


def _warn_of_decay(model: nn.Module | None, optimizer: Any) -> None:
    container = None if model is None else find_container(model)
    if model is None or container is None or container.config.resolved_rate:
        return
    own = {id(parameter) for parameter in gate_parameters(model)}
    for group in getattr(optimizer, "param_groups", []):
        decay = group.get("weight_decay", 0.0)
        if decay and any(id(parameter) in own for parameter in group["params"]):
            logger.warning(
                "weight decay %g moves the gates: hand the Trainer an optimizer with "
                "fgcompile.param_groups(model, lr), which keeps it away from them",
                decay,
            )
