"""What lowering to a module makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fgcompile.capture.state import tracing_state
from fgcompile.program import Program
from fgcompile.targets.module.expressible import Kept
from fgcompile.targets.module.history import History


@dataclass
class LoweredModule:
    """A smaller model of the class that it was.

    Attributes:
        model: The module, in eval mode.
        program: What it computes, with the indices that each parameter kept now.
        kept: What its code pins, which a graph could do without.
        history: How it differs from what its class builds, now and in earlier
            lowerings.
    """

    model: nn.Module
    program: Program
    kept: Kept
    history: History

    def __call__(self, **inputs: Any) -> Any:
        """Outputs of the model for inputs by name, as capture calls it."""
        with tracing_state(self.model):
            return self.model(**inputs)
