"""What a number of open units is predicted to take, from times that were measured.

Gates know no runtime: they get a table of numbers, and this is the arithmetic on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fgcompile.errors import FormatError, GateError
from fgcompile.gates.gate import Gate, KeepsDtype


@dataclass(frozen=True)
class GroupTimes:
    """How much longer a model runs with units of a group than without any.

    Attributes:
        name: Of the group.
        kind: Of the group.
        units: Kept units, ascending, from none to all of them.
        seconds: Time of that many, from 0, none less than the one before it.
    """

    name: str
    kind: str
    units: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class SharedTime:
    """Part of the dense model's time [s] that these groups shorten together.

    What is left of it is the product of what is left of each group's own time.
    """

    groups: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class LatencyTable:
    """Times of one model in one runtime on one machine.

    Attributes:
        seconds: Of the dense model.
        groups: Of every group that is gated.
        shared: Parts of `seconds`; what is in no part is there whatever is closed.
        batch: Rows of the inputs.
        length: Tokens in a row; models that take none have it too.
        threads: Threads of the runtime.
        runtime: Name and version.
        machine: Processor.
    """

    seconds: float
    groups: tuple[GroupTimes, ...]
    shared: tuple[SharedTime, ...]
    batch: int = 1
    length: int = 128
    threads: int = 1
    runtime: str = ""
    machine: str = ""

    def predict(self, kept: Mapping[str, int]) -> float:
        """Time [s] of the model with this many units of each group.

        Args:
            kept: Units by name of their group; a group that is missing keeps all.

        Raises:
            GateError: If there is no such group.
        """
        names = [group.name for group in self.groups]
        if stray := [name for name in kept if name not in names]:
            raise GateError(
                f"the latency of group {stray[0]} was not measured\n"
                f"  Measured are {', '.join(names)}."
            )
        counts = [float(kept.get(g.name, g.units[-1])) for g in self.groups]
        return self.seconds * float(LatencyCurves(self).fraction(torch.tensor(counts)))

    def to_json(self) -> str:
        """The table as text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """The table that `to_json` wrote.

        Raises:
            FormatError: If it is none.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"the table of latencies is damaged: {error!r}"
            ) from error

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> LatencyTable:
        """The table whose `dataclasses.asdict` went through JSON."""
        groups = tuple(
            GroupTimes(g["name"], g["kind"], tuple(g["units"]), tuple(g["seconds"]))
            for g in found["groups"]
        )
        shared = tuple(
            SharedTime(tuple(part["groups"]), part["seconds"])
            for part in found["shared"]
        )
        return cls(**{**found, "groups": groups, "shared": shared})


class LatencyCurves(KeepsDtype):
    """A table as tensors, which are saved with the gates.

    Attributes:
        units: Kept units [count] at which was measured, shape `[gates knots]`.
        left: What is then left of the time of a group, in [0, 1], `[gates knots]`.
        parts: Fractions of the dense model's time, shape `[parts]`.
        within: Whether a gate shortens a part, bool, shape `[parts gates]`.
    """

    units: Tensor
    left: Tensor
    parts: Tensor
    within: Tensor

    def __init__(self, table: LatencyTable) -> None:
        """The tensors of `table`; gates are its groups, in its order."""
        super().__init__()
        knots = max(len(group.units) for group in table.groups)
        units, left = [], []
        for group in table.groups:
            # A small group has fewer knots: its last one is repeated.
            spare = knots - len(group.units)
            units.append([*group.units, *[group.units[-1]] * spare])
            whole = max(group.seconds[-1], 1e-12)
            seconds = [*group.seconds, *[whole] * spare]
            left.append([s / whole for s in seconds])
        self.register_buffer("units", torch.tensor(units, dtype=torch.float64))
        self.register_buffer("left", torch.tensor(left, dtype=torch.float64))
        fractions = [part.seconds / table.seconds for part in table.shared]
        self.register_buffer("parts", torch.tensor(fractions, dtype=torch.float64))
        within = [
            [g.name in part.groups for g in table.groups] for part in table.shared
        ]
        self.register_buffer("within", torch.tensor(within))

    def fraction(self, counts: Tensor) -> Tensor:
        """Predicted time over that of the dense model, a float64 scalar.

        Args:
            counts: Kept units of each gate, shape `[gates]`.
        """
        left = self._left(counts.to(self.units))
        rest = torch.where(self.within, left, 1.0).prod(1)
        return 1 - (self.parts * (1 - rest)).sum()

    def unit_costs(self) -> Tensor:
        """Part of the dense time that a unit of each gate is worth, shape `[gates]`."""
        return (self.within * self.parts[:, None]).sum(0) / self.units[:, -1]

    def _left(self, counts: Tensor) -> Tensor:
        counts = counts[:, None].contiguous()
        last = self.units.shape[1] - 1
        upper = torch.searchsorted(self.units, counts).clamp(1, last)
        low, high = self.units.gather(1, upper - 1), self.units.gather(1, upper)
        below, above = self.left.gather(1, upper - 1), self.left.gather(1, upper)
        share = (counts - low) / (high - low).clamp_min(1.0)
        return (below + share * (above - below))[:, 0]


def latency_curves(table: LatencyTable | None, gates: Sequence[Gate]) -> LatencyCurves:
    """The tensors of `table` for these gates.

    Raises:
        GateError: If there is no table, or it is one of other groups.
    """
    if table is None:
        raise GateError(
            "a latency budget needs times, which gates do not measure\n"
            "  Use fgcompile.insert_gates, or give Budget(measured=...) what "
            "fgcompile.measure_latency found."
        )
    measured = [(group.name, group.units[-1]) for group in table.groups]
    found = [(gate.name, gate.size) for gate in gates]
    for number, (theirs, ours) in enumerate(zip(measured, found, strict=False)):
        if theirs != ours:
            raise GateError(
                f"measured latencies do not fit: group {number} is {theirs[0]} with "
                f"{theirs[1]} units, in the model it is {ours[0]} with {ours[1]}\n"
                "  Measure this model, with the kinds that are gated."
            )
    if len(measured) != len(found):
        raise GateError(
            f"measured latencies do not fit: they are of {len(measured)} groups, the "
            f"model has {len(found)}\n"
            "  Measure this model, with the kinds that are gated."
        )
    return LatencyCurves(table)


def units_over(
    order: Tensor, gone: Tensor, meets: Callable[[Tensor], Tensor]
) -> Tensor:
    """`gone`, and the fewest of the first units in `order` with which `meets` holds.

    All units, where nothing less does.

    Args:
        order: Units in the order in which they go, shape `[n]`.
        gone: Units that are closed in any case, bool, shape `[n]`.
        meets: Whether a choice of closed units is enough, a bool scalar; closing more
            never makes it false.
    """
    place = torch.empty_like(order).scatter(
        0, order, torch.arange(len(order)).to(order)
    )
    low = torch.zeros((), dtype=order.dtype, device=order.device)
    high = low + len(order)
    # Bisection in tensors only: this runs in every training forward.
    for _ in range(len(order).bit_length()):
        middle = (low + high) // 2
        enough = meets(gone | (place < middle))
        low = torch.where(enough, low, middle + 1)
        high = torch.where(enough, middle, high)
    return gone | (place < high)
