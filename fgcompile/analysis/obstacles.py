"""Why units stay though they were closed: the operator that makes something of them.

A closed unit is zero, or another constant, until an operator mixes other units into
it, as a mean does that is subtracted from every unit. If anything sees the result, the
unit stays. Where nothing sees it, it stays for the shapes' sake alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch.fx import Node

from fgcompile.analysis.facts import Constants, find_constants
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.needs import Needs, propagate_needs
from fgcompile.analysis.steps import Align, Array, Flow, Slot
from fgcompile.program import Program


class Obstacles:
    """Finds, in a lowered program, what keeps units that are constant somewhere."""

    def __init__(self, program: Program) -> None:
        """Analyses `program`, which must have its weights."""
        self._flow: Flow = trace_planes(program)
        self._constants: Constants = find_constants(program, self._flow)
        self._needs: Needs = propagate_needs(self._flow, self._constants)
        self._labels = np.append(self._flow.units.classes(), -1)

    def first(self, places: Iterable[tuple[str, int, Array]]) -> Node | None:
        """The first node after which the units are no constants though they are seen.

        Args:
            places: Where the units are: parameter, dim, indices along the dim.
        """
        classes = self._classes(places)
        for step in self._flow.steps:
            if isinstance(step, Align) and self._mixes(step, classes):
                return step.node
        return None

    def _classes(self, places: Iterable[tuple[str, int, Array]]) -> Array:
        found = [
            self._labels[plane.reshape(-1)[indices]]
            for name, dim, indices in places
            if (value := self._flow.parameters.get(name)) is not None
            for plane in self._flow.values[value].planes
            if plane.shape[dim] > 1 and plane.size == plane.shape[dim]
        ]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def _mixes(self, step: Align, classes: Array) -> bool:
        # A bias is known for every unit, closed or not.
        constant = any(
            (self._among(s, classes) & np.isfinite(self._known(s))).any()
            for s in step.slots
            if self._flow.values[s.value].node.op != "get_attr"
        )
        return constant and any(
            (self._among(r, classes) & np.isnan(self._known(r)) & self._seen(r)).any()
            for r in step.results
        )

    def _among(self, slot: Slot, classes: Array) -> Array:
        ids = self._flow.values[slot.value].planes[slot.plane]
        return np.isin(self._labels[ids], classes)

    def _known(self, slot: Slot) -> Array:
        return self._constants.planes[slot.value][slot.plane]

    def _seen(self, slot: Slot) -> Array:
        return self._needs.planes[slot.value][slot.plane]
