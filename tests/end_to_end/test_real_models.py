"""Real weights, half of the units closed: smaller by exactly them, and equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, analyze, gates, insert_gates, lower
from fgcompile.analysis.coupling import Analysis
from tests.end_to_end.closing import (
    batches,
    parameter_count,
    random_half,
    worst_difference,
)

EQUAL = 1e-5
KINDS = {
    "half of the units and heads": ("mlp", "head"),
    "query and key dims": ("qk",),
    "value and output dims": ("vo",),
    "hidden stream": ("residual",),
}
INSIDE_HEADS = ("query and key dims", "value and output dims")


@dataclass
class Case:
    """A real model, gated once for each choice of kinds, and its analysis."""

    load: Callable[[], nn.Module]
    heads: int
    causal: bool
    analysis: Analysis
    gated: dict[str, nn.Module]

    def gate(self, what: str) -> nn.Module:
        """The model with all gates of `KINDS[what]` open."""
        if what not in self.gated:
            config = GateConfig(kinds=KINDS[what])
            self.gated[what] = insert_gates(self.load(), config=config)
        for gate in gates(self.gated[what]).values():
            gate.reopen()
        return self.gated[what]

    def close(self, what: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """The gated model, half closed; in every head alike, inside heads."""
        model = self.gate(what)
        heads = self.heads if what in INSIDE_HEADS else 1
        return model, random_half(model, seed, heads)

    def difference(self, model: nn.Module, lowered: Any) -> float:
        """Between a gated and a lowered model, on all shapes."""
        inputs = batches(cast(Any, model.config).vocab_size)
        return worst_difference(model, lowered, inputs, visible_only=self.causal)


def _case(load: Callable[[], nn.Module], heads: int, causal: bool) -> Case:
    return Case(load, heads, causal, analyze(load()), {})


@pytest.fixture(scope="module")
def encoder(load_minilm: Callable[[], nn.Module]) -> Case:
    """all-MiniLM-L6-v2: BERT, 12 heads."""
    return _case(load_minilm, heads=12, causal=False)


@pytest.fixture(scope="module")
def decoder(load_stories260k: Callable[[], nn.Module]) -> Case:
    """stories260K: Llama, 8 query heads on 4 key-value heads, tied embeddings."""
    return _case(load_stories260k, heads=4, causal=True)


def holds(case: Case, what: str, seed: int, target: Any) -> None:
    model, closed = case.close(what, seed)
    lowered = lower(model, target)
    assert case.difference(model, lowered) <= EQUAL
    after = parameter_count(lowered.program.graph_module)
    assert after == case.analysis.parameters_after(closed)
    assert after < case.analysis.parameters


def test_encoder_is_smaller_and_equal(encoder: Case) -> None:
    holds(encoder, "half of the units and heads", seed=0, target="fx")


@pytest.mark.parametrize("target", ["fx", "onnx"])
def test_decoder_is_smaller_and_equal(decoder: Case, target: str) -> None:
    holds(decoder, "half of the units and heads", seed=0, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("target", ["fx", "onnx"])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_every_kind_is_removed_from_real_weights(
    name: str, target: str, what: str, seed: int, request: pytest.FixtureRequest
) -> None:
    holds(request.getfixturevalue(name), what, seed, target)


def test_loss_on_stories_is_that_of_the_gated_model(
    decoder: Case, shared_data: Path
) -> None:
    text = (shared_data / "data/tinystories/stories260K_ids.json").read_text()
    stories = [torch.tensor([ids]) for ids in json.loads(text)[:60]]
    model, _ = decoder.close("half of the units and heads", seed=3)
    want, got = (mean_loss(m, stories) for m in (model, lower(model)))
    dense = mean_loss(decoder.load(), stories)
    assert dense < 1.6 < want  # the model was trained on such text, and was cut
    assert abs(got - want) <= EQUAL * want


@torch.no_grad()
def mean_loss(model: Callable[..., Any], stories: list[Tensor]) -> float:
    """Cross-entropy of the next token, averaged over tokens [nats]."""
    total, count = 0.0, 0
    for ids in stories:
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask)["logits"][0, :-1]
        loss = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        total, count = total + float(loss), count + ids.shape[1] - 1
    return total / count


@pytest.mark.parametrize("what", INSIDE_HEADS)
def test_ragged_heads_stay_as_wide_as_the_fullest(decoder: Case, what: str) -> None:
    model = decoder.gate(what)
    name, gate = next(iter(gates(model).items()))
    heads = torch.arange(gate.size).view(decoder.heads, -1)
    # Of the units in heads 0, 1, 2, 3 there go 1, 2, 3 and 3, each head others.
    gone = [heads[0, :1], heads[1, 1:3], heads[2, :3], heads[3, -3:]]
    gate.close(torch.cat(gone))
    lowered = lower(model)
    assert decoder.difference(model, lowered) <= EQUAL
    after = decoder.analysis.parameters_after({name: heads[:, 0]})
    assert parameter_count(lowered.model) == after
    assert [(n.text, n.subject, n.level) for n in lowered.report.notes] == [
        (
            "5 of 9 closed units stay: other rows of the same tensor keep as many, "
            "and tensors are rectangular",
            name,
            "warning",
        )
    ]
