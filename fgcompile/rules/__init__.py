"""What operators do to dims: importing this package registers every rule."""

from __future__ import annotations

from fgcompile.rules import attention as attention
from fgcompile.rules import contraction as contraction
from fgcompile.rules import lookup as lookup
from fgcompile.rules import movement as movement
from fgcompile.rules import normalization as normalization
from fgcompile.rules import pointwise as pointwise
from fgcompile.rules import reduction as reduction
from fgcompile.rules.oracle import check_rule as check_rule
from fgcompile.rules.registry import DimRule as DimRule
from fgcompile.rules.registry import dim_rule as dim_rule
