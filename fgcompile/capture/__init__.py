"""nn.Module -> Program."""

from __future__ import annotations

from fgcompile.capture.inputs import default_inputs
from fgcompile.capture.others import other_inputs
from fgcompile.capture.trace import capture

__all__ = ["capture", "default_inputs", "other_inputs"]
