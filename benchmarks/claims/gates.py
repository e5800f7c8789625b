"""Whether FineGates' gates adapt, and not only prune."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fgcompile
from benchmarks.claims.network import EXAMPLE, FEW, Network, accuracy, digits, fit
from fgcompile import GateConfig, methods


def adapt(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Accuracy on digits to the right, by method; all train the head."""
    few = digits("right").part(FEW)

    def score(model: Any, *trained: str) -> float:
        for name, parameter in model.named_parameters():
            wanted = ("head", *trained)
            parameter.requires_grad_(any(part in name for part in wanted))
        return accuracy(fit(model, few, seed), "right")

    learned = _gated(base, GateConfig.paper_finegates_glue(), seed)
    yield "learned", score(learned, "fgcompile_gates")
    gates = fgcompile.gates(learned)
    yield "removed", 1 - fgcompile.status(learned)["cost"]["params"]
    closed = {name: (~g.open).nonzero().flatten() for name, g in gates.items()}
    generator = torch.Generator().manual_seed(seed)
    orders = {
        "closed alike": closed,
        "smallest": {n: _sizes(base, n).argsort()[: len(c)] for n, c in closed.items()},
        "random": {
            name: torch.randperm(gates[name].size, generator=generator)[: len(c)]
            for name, c in closed.items()
        },
    }
    for method, units in orders.items():
        config = GateConfig(coupling="none", objective="none", gate="plain")
        model = _gated(base, config, seed)
        for name, gate in fgcompile.gates(model).items():
            gate.close(units[name])
        yield method, score(model)
    yield "head", score(copy.deepcopy(base))
    yield "bitfit", score(copy.deepcopy(base), "bias")
    low_rank = methods.insert_low_rank(copy.deepcopy(base), 1, EXAMPLE)
    yield "lora", score(low_rank, "low_rank")


def _gated(base: Network, config: GateConfig, seed: int) -> Network:
    torch.manual_seed(seed)
    return fgcompile.insert_gates(copy.deepcopy(base), EXAMPLE, config)


def _sizes(base: Network, gate: str) -> Tensor:
    """Norms of the rows or columns behind a gate such as `blocks.0.up.rows`."""
    module, _, side = gate.rpartition(".")
    weight = base.get_submodule(module).get_parameter("weight").detach()
    return weight.norm(dim=1 if side == "rows" else 0)
