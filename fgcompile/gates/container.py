"""All gates of one model, their sites and the state they share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.config import GateConfig
from fgcompile.gates.flat import flatten
from fgcompile.gates.gate import Gate, KeepsDtype
from fgcompile.gates.latency import latency_curves
from fgcompile.gates.objective import (
    BudgetObjective,
    FineGatesObjective,
    Objective,
    Progress,
)
from fgcompile.gates.op import gate as gate_op
from fgcompile.gates.processes import average_after_backward
from fgcompile.gates.spec import GateSite, GateSpec, check_spec

ATTRIBUTE = "fgcompile_gates"
"""Name under which a model holds its container."""


class Site(nn.Module):
    """One place where a gate acts; its index follows the model between devices."""

    index: Tensor | None

    def __init__(self, gate: Gate, site: GateSite) -> None:
        """The place `site` of `gate`."""
        super().__init__()
        self.size, self.dim, self.label = len(site.index), site.dim, str(site)
        # A tuple hides the gate from nn.Module: it is registered elsewhere, once.
        self._gate = (gate,)
        self.register_buffer("index", _expansion(gate, site.index), persistent=False)
        self.partial = bool((site.index < 0).any())

    @property
    def gate(self) -> Gate:
        """The gate that acts here."""
        return self._gate[0]

    def factors(self) -> Tensor:
        """The factor of every index of the dim, shape `[size of the dim]`."""
        return self.expand(self.gate.value())

    def expand(self, value: Tensor) -> Tensor:
        """`value` of the gate, repeated for every index of the dim."""
        if self.partial:
            value = torch.cat([value, value.new_ones(1)])
        return value if self.index is None else value.index_select(0, self.index)

    def apply_to(self, x: Any) -> Tensor:
        """The gated value `x`.

        Raises:
            GateError: If `x` is not a tensor whose dim has the expected size.
        """
        if not isinstance(x, Tensor) or x.size(self.dim) != self.size:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise GateError(
                f"gate {self.gate.name} expects size {self.size} at {self.label}, "
                f"got {found}"
            )
        factors = self.factors()
        if factors.device != x.device:  # a model that is spread over devices
            factors = factors.to(x.device)
        if x.is_nested:
            # nn.TransformerEncoder packs padded batches so in eval; no product is
            # defined between them and a vector.
            parts = [gate_op(part, factors, self.dim) for part in x.unbind()]
            return torch.nested.as_nested_tensor(parts)
        return gate_op(x, factors, self.dim)


def _expansion(gate: Gate, index: Tensor) -> Tensor | None:
    if torch.equal(index.cpu(), torch.arange(gate.size)):
        return None
    # The factor 1 of an index without a unit is appended behind the gate's own.
    return torch.where(index < 0, gate.size, index)


class GateContainer(KeepsDtype):
    """The gates of one model, in the order of their specs.

    Attributes:
        specs: What the gates were made from.
        config: How they are trained.
        totals: Cost of the whole model, by `params` and `macs`.
        gates: The gates, by a name that is a valid attribute.
        sites: One module per site, in the order of `specs` and their sites.
        objective: The sparsity term.
        forwards: Training forwards so far, int64 scalar.
        penalties: Training forwards whose loss got the sparsity term.
        updates: Optimizer steps that moved a gate.
        stride: Largest step of the optimizer so far, over all logits.
        awaiting: Whether the next change of the logits will be an optimizer's, as
            there was a training forward; else it is the user's, and taken as it is.
    """

    objective: Objective
    forwards: Tensor
    penalties: Tensor
    updates: Tensor
    stride: Tensor
    awaiting: Tensor

    def __init__(
        self,
        specs: Sequence[GateSpec],
        config: GateConfig,
        totals: dict[str, float],
    ) -> None:
        """Open gates for `specs`.

        Raises:
            GateError: If there are no specs, they contradict themselves, or the
                budget cannot be met by closing units.
        """
        super().__init__()
        _check_names(specs)
        self.specs, self.config, self.totals = tuple(specs), config, dict(totals)
        self.gates = _gates_of(specs, config)
        by_spec = zip(specs, self.each(), strict=True)
        self.sites = nn.ModuleList(
            Site(gate, site) for spec, gate in by_spec for site in spec.sites
        )
        self.objective = self._objective()
        for counter in ("forwards", "penalties", "updates"):
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))
        self.register_buffer("stride", torch.zeros(()))
        self.register_buffer("awaiting", torch.zeros((), dtype=torch.bool))
        # A hint that spares eval forwards the question, which would wait for a GPU.
        self.unsettled = True

    def forward(self, x: Any = None) -> Any:
        """`x` itself: an `nn.Sequential` that owns gates calls them last."""
        return x

    def each(self) -> list[Gate]:
        """The gates in order."""
        return cast("list[Gate]", list(self.gates.children()))

    def gated_cost(self) -> dict[str, float]:
        """What all units of all gates are worth, by `params` and `macs`."""
        return {
            what: sum(float(getattr(gate, what).double().sum()) for gate in self.each())
            for what in ("params", "macs")
        }

    def begin_forward(self) -> None:
        """Takes up what the optimizer did, and draws this forward's noise."""
        if self.training:
            with torch.no_grad():
                self.forwards += 1
                self.settle()
                self.awaiting.fill_(True)
            self.unsettled = True
            for gate in self.each():
                gate.sample_noise()
        elif self.unsettled:
            self.settle()
            self.unsettled = False

    @torch.no_grad()
    def settle(self) -> None:
        """Makes factors, target and pruned units those after the last optimizer step.

        Changes nothing if no logit moved since the last call.
        """
        gates = self.each()
        logits = torch.cat([gate.position for gate in gates])
        step = logits - torch.cat([gate.seen for gate in gates])
        largest = step.abs().max()
        moved = self.awaiting & (largest > 0)
        self.stride.copy_(torch.maximum(self.stride, largest * moved))
        self._advance(step, moved)
        if self.config.budget is not None:
            self._judge(moved)
        self.updates += moved
        self.awaiting &= ~moved
        units = flatten(gates)
        closing = -step.masked_fill(units.pruned, math.nan).nanmedian() / largest
        progress = Progress(self.updates, moved, closing)
        self._scatter("pruned", self.objective.update(units, progress))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.unsettled = True

    def penalty(self) -> Tensor:
        """The sparsity term."""
        term = self.objective.penalty(flatten(self.each()), self.updates)
        if self.training:
            self.penalties += 1
            if self.config.budget is not None:
                average_after_backward(term, self._slopes)
        return term

    def _slopes(self) -> list[Tensor]:
        return [gate.slope for gate in self.each()]

    def _advance(self, step: Tensor, moved: Tensor) -> None:
        """Moves every gate: as far as the logits did, or at its own pace."""
        gates = self.each()
        bound = gates[0].parametrization.bound
        rate = self.config.resolved_rate
        if rate is None:
            if math.isfinite(bound):
                logits = torch.cat([gate.position for gate in gates])
                self._scatter("logits", logits.clamp(-bound, bound))
        else:
            anchor = torch.cat(
                [gate.anchor for gate in gates if gate.anchor is not None]
            )
            pace = rate * gates[0].parametrization.span / self.stride
            anchor += step * torch.where(moved, pace, 1.0)
            self._scatter("anchor", anchor.clamp(-bound, bound))
        self._scatter("seen", torch.cat([gate.position for gate in gates]))

    def _judge(self, moved: Tensor) -> None:
        memory = torch.where(moved, MEMORY, 1.0)
        for gate in self.each():
            gate.importance.mul_(memory).add_((1 - memory) * gate.slope.square())
            gate.slope.mul_(~moved)

    def _scatter(self, name: str, values: Tensor) -> None:
        sizes = [gate.size for gate in self.each()]
        for gate, part in zip(self.each(), values.split(sizes), strict=True):
            getattr(gate, name).copy_(part)

    def _objective(self) -> Objective:
        config = self.config
        if config.resolved_objective == "budget":
            budget = config.budget
            assert budget is not None  # GateConfig checks it
            limited = budget.latency is not None
            curves = latency_curves(budget.measured, self.each()) if limited else None
            return BudgetObjective(budget, self.totals, self.gated_cost(), curves)
        if config.resolved_objective == "finegates":
            return FineGatesObjective(
                config.target_sparsity, config.weight, config.begin, config.weighting
            )
        return Objective()


def _check_names(specs: Sequence[GateSpec]) -> None:
    if not specs:
        raise GateError(
            "no coupled group of a requested kind was found, so there is nothing to "
            "gate\n  Look at fgcompile.analyze(model) for the groups there are."
        )
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise GateError(f"gate {twice[0]} is specified twice")
    for spec in specs:
        check_spec(spec)


def _gates_of(specs: Iterable[GateSpec], config: GateConfig) -> nn.Module:
    holder = nn.Module()
    generator = torch.Generator().manual_seed(config.seed)
    for spec in specs:
        gate = Gate(
            spec.name,
            spec.kind,
            spec.size,
            config.parametrization(),
            generator=generator,
            paced=config.resolved_rate is not None,
            straight_through=config.straight_through,
            judged=config.budget is not None,
            floor=FLOOR if config.budget is not None else 0.0,
        )
        gate.params.copy_(spec.parameters)
        gate.macs.copy_(spec.macs)
        holder.add_module(_attribute(spec.name, holder), gate)
    return holder


MEMORY = 0.98
"""Share of a unit's importance that stays at an optimizer step."""

FLOOR = 0.01
"""Smallest factor of a unit that the budget keeps: open, so that counts are exact."""


def _attribute(name: str, holder: nn.Module) -> str:
    """`name` as an attribute that `holder` does not have yet."""
    base = re.sub(r"\W", "_", name) or "gate"
    base = base if not base[0].isdigit() else f"g{base}"
    free, number = base, 1
    while hasattr(holder, free):
        free, number = f"{base}_{number}", number + 1
    return free
