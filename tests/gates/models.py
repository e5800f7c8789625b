"""Small models with hand-written gate specs, so that no analysis is involved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.gates import Budget, GateConfig, GateSite, GateSpec

LENGTH, BATCH = 6, 4


def site(module: str, index: Tensor, **changes: Any) -> GateSite:
    options: dict[str, Any] = {"where": "input", "name": "0", "dim": -1} | changes
    return GateSite(module, index=index, **options)


def spec(name: str, kind: str, sites: list[GateSite], cost: float = 1.0) -> GateSpec:
    size = int(max(s.index.max() for s in sites)) + 1
    costs = torch.full((size,), cost)
    return GateSpec(name, kind, size, tuple(sites), costs, costs / 2)


def mlp(width: int = 16) -> Any:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def mlp_specs(width: int = 16) -> list[GateSpec]:
    return [spec("hidden", "mlp", [site("2", torch.arange(width))], 8 + 1 + 3)]


def bert(**changes: Any) -> Any:
    """A random BERT classifier: 2 layers, 4 heads of 8, 48 hidden channels."""
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "num_labels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = transformers.BertConfig(**(options | changes))
    return transformers.BertForSequenceClassification(config)


def bert_specs() -> list[GateSpec]:
    heads = torch.arange(4).repeat_interleave(8)
    specs = []
    for number in range(2):
        layer = f"bert.encoder.layer.{number}"
        out = site(f"{layer}.attention.output.dense", heads)
        specs.append(spec(f"{layer}.attention", "head", [out], 4 * 8 * 32 + 24))
        down = site(f"{layer}.output.dense", torch.arange(48))
        specs.append(spec(f"{layer}.mlp", "mlp", [down], 65))
    return specs


def bert_batch(seed: int = 0, batch: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (batch, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": ids[:, 0] % 3}


def quiet(**changes: Any) -> GateConfig:
    """Gates without noise, so that two forwards can be compared."""
    return GateConfig(**({"noise": 0.0} | changes))


def budgeted(keep: float, steps: int = 20, **changes: Any) -> GateConfig:
    return GateConfig(budget=Budget(params=keep, steps=steps), **changes)
