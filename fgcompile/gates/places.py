"""Where in a graph a gate must act so that a closed unit is gone.

A place is an operand of a node, or the output of a node. Two strategies:

- *Readers*: gate the operand of every contraction with a weight that sums over the
  units. Right where nothing else sees them; one place per group, mostly.
- *Writers*: gate every value in which the units would not be zero by themselves, so
  that they are zero everywhere. Needed where a statistic or an output sees them, and
  for the dims that queries and keys share, of which the query side is enough.
"""

from __future__ import annotations

from fgcompile.gates.layout import Target
from fgcompile.gates.readers import Place, only_contracted, readers
from fgcompile.gates.writers import Writers


def places_of(target: Target) -> list[Place]:
    """The places of a gate for `target`, in the order of the graph."""
    if target.group.kind != "qk" and only_contracted(target):
        return readers(target)
    return Writers(target).places
