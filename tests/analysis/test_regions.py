"""Which calls a group's units run through, and which of them it shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fgcompile
from fgcompile.analysis.regions import region_of, shares
from fgcompile.printer import op_name
from fgcompile.zoo.models import entry


def names(analysis: Any, group: str) -> list[str]:
    return [op_name(node) for node in region_of(analysis, group)]


def test_region_of_hidden_channels_ends_where_they_are_contracted() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)
    )
    analysis = fgcompile.analyze(model.eval(), (torch.zeros(2, 4),))
    (group,) = [g.name for g in analysis.groups if g.kind == "mlp"][:1]
    assert names(analysis, group) == ["linear", "gelu", "linear"]


def test_region_of_heads_is_attention_with_its_projections() -> None:
    analysis = fgcompile.analyze(entry("llama").build())
    heads = [g.name for g in analysis.groups if g.kind == "head"]
    calls = names(analysis, heads[0])
    assert calls.count("linear") == 4
    assert "scaled_dot_product_attention" in calls
    assert "rms_norm" not in calls
    assert not set(region_of(analysis, heads[0])) & set(region_of(analysis, heads[1]))


def test_a_convolution_between_two_groups_is_shared_by_them() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU()),
        *(nn.Conv2d(6, 2, 1), nn.Flatten(), nn.Linear(32, 3)),
    )
    analysis = fgcompile.analyze(model.eval(), (torch.zeros(2, 3, 4, 4),))
    first, second = [g.name for g in analysis.groups if g.kind == "conv"][:2]
    assert [analysis.by_name[name].size for name in (first, second)] == [4, 6]
    assert shares(analysis, [first, second]) == {
        (first,): 3 * 4 * 16,
        (first, second): 4 * 6 * 16,
        (second,): 6 * 2 * 16,
    }
