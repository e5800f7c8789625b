"""What a transformers Trainer logs about gates."""

from __future__ import annotations

from typing import Any

from torch import nn

from fgcompile.gates.access import find_container
from fgcompile.gates.status import counted_cost, limits_of


def gate_numbers(model: nn.Module) -> dict[str, float]:
    """Where the gates of `model` stand, as flat numbers for any logger.

    Returns:
        `gates/open`: fraction of all units that are open. `gates/params` and
        `gates/macs`: fraction of the gated cost in open units. `gates/gap`: largest
        distance above a limit, if there is a budget. Empty without gates.
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

    They appear in `trainer.state.log_history`, in the progress bar and in whatever
    the Trainer reports to.

    Raises:
        ImportError: If transformers is not installed.
    """
    from transformers import TrainerCallback

    class GateCallback(TrainerCallback):
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
