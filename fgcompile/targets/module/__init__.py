"""Target "module": the original class with smaller parameters.

The class's own code keeps running, so that generation with caches, trainers,
compilers, adapters and exporters keep working. What the code needs to know (sizes in
attributes) is corrected, and the result is compared with the model that was lowered.
"""

from __future__ import annotations

from fgcompile.targets.module.expressible import Kept
from fgcompile.targets.module.history import History, remember
from fgcompile.targets.module.lower import lower_to_module, shrink_module
from fgcompile.targets.module.lowered import LoweredModule
from fgcompile.targets.module.resize import resize_parameter
from fgcompile.targets.module.search import Attributes, apply_attributes

__all__ = [
    "Attributes",
    "History",
    "Kept",
    "LoweredModule",
    "apply_attributes",
    "lower_to_module",
    "remember",
    "resize_parameter",
    "shrink_module",
]
