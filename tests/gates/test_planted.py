"""Gates on input features find those that matter: stochastic gates (STG).

Source: Yamada et al., ICML 2020, section 5: features are selected while the model is
trained. Gates start half open, with as much noise as the openness assumes, and the term
is the mean openness: a target that cannot be overshot makes FineGates' term just that.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgcompile.gates import GateConfig, attach, gates, penalty
from tests.gates.models import site, spec

FEATURES, PLANTED = 20, (2, 7, 11)


def planted_rows(count: int) -> tuple[Tensor, Tensor]:
    """Rows whose answer depends on three of twenty features, one of them squared."""
    x = torch.randn(count, FEATURES)
    first, second, third = (x[:, index] for index in PLANTED)
    return x, (2 * first - 1.5 * second + third.square()).unsqueeze(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_support_is_recovered(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 1))
    config = GateConfig(
        target_sparsity=0.841,
        weight=4.0,
        init_mean=0.0,
        init_std=0.01,
        noise=0.5,
        rate=None,
        straight_through=False,
        seed=seed,
    )
    attach(
        model, [spec("features", "mlp", [site("0", torch.arange(FEATURES))])], config
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(600):
        x, y = planted_rows(64)
        loss = (model.train()(x) - y).square().mean() + penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    factors = gates(model)["features"].eval_value().detach()
    assert sorted(factors.argsort(descending=True)[:3].tolist()) == list(PLANTED)
    others = factors[[index for index in range(FEATURES) if index not in PLANTED]]
    assert factors[list(PLANTED)].min() > 0.9
    assert others.max() < 0.2
