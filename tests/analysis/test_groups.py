"""Coupled groups of real models: how many there are, of which kind and size."""

from __future__ import annotations

from collections import Counter
from functools import cache

import networkx as nx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgcompile.analysis.coupling import Analysis
from fgcompile.compiler import analyze
from fgcompile.errors import CouplingError
from fgcompile.zoo.models import entry

LAYERS = 2


@cache
def analysis_of(name: str) -> Analysis:
    found = entry(name)
    return analyze(found.build(), found.example_inputs())


def free_kinds(analysis: Analysis) -> dict[tuple[str, int], int]:
    """Number of groups that may shrink, by kind and size."""
    free = [g for g in analysis.groups if not g.reasons and g.kind != "other"]
    return dict(Counter((g.kind, g.size) for g in free))


# Two layers, 32 wide, 4 heads of 8 (or 8 heads of 4, four groups), 96 or 128 hidden.
ATTENTION = {("head", 4): LAYERS, ("qk", 32): LAYERS, ("vo", 32): LAYERS}
GROUPED = {("head", 4): LAYERS, ("qk", 8): LAYERS, ("vo", 16): LAYERS}
MULTI_QUERY = {("head", 4): LAYERS, ("qk", 4): LAYERS, ("vo", 8): LAYERS}
STREAM = {("residual", 32): 1}
EXPECTED = {
    "bert": ATTENTION | STREAM | {("mlp", 96): LAYERS},
    "bert:eager": ATTENTION | STREAM | {("mlp", 96): LAYERS},
    "bert:classifier": ATTENTION | STREAM | {("mlp", 96): LAYERS, ("mlp", 32): 1},
    "gpt2": ATTENTION | STREAM | {("mlp", 128): LAYERS},
    "gpt2:eager": ATTENTION | STREAM | {("mlp", 128): LAYERS},
    "bloom": ATTENTION | STREAM | {("mlp", 128): LAYERS},
    # Half of each head is rotated: its dims are pairs, the others are single.
    "gpt_neox": {
        ("head", 4): LAYERS,
        ("qk", 8): LAYERS,
        ("qk", 16): LAYERS,
        ("vo", 32): LAYERS,
        ("mlp", 96): LAYERS,
        ("residual", 32): 1,
    },
    "llama": GROUPED | STREAM | {("mlp", 96): LAYERS},
    "llama:eager": GROUPED | STREAM | {("mlp", 96): LAYERS},
    "llama:tied": GROUPED | STREAM | {("mlp", 96): LAYERS},
    "phi3": GROUPED | STREAM | {("mlp", 96): LAYERS},
    # The norms over the dims of a head are shared: all heads lose a dim together.
    "qwen3": {
        ("head", 4): LAYERS,
        ("qk", 4): LAYERS,
        ("vo", 32): LAYERS,
        ("mlp", 96): LAYERS,
        ("residual", 32): 1,
    },
    # One head of keys and values: each query head is a unit, their dims are shared.
    "llama:multi-query": MULTI_QUERY | STREAM | {("mlp", 96): LAYERS},
    "falcon:multi-query": MULTI_QUERY | STREAM | {("mlp", 128): LAYERS},
    "gpt_bigcode": {
        ("head", 4): LAYERS,
        ("qk", 8): LAYERS,
        ("vo", 8): LAYERS,
        ("mlp", 128): LAYERS,
        ("residual", 32): 1,
    },
    "vit": ATTENTION | STREAM | {("mlp", 96): LAYERS},
    # All layers share their weights, so each group is there once.
    "albert": {
        ("residual", 16): 1,
        ("residual", 32): 1,
        ("head", 4): 1,
        ("qk", 32): 1,
        ("vo", 32): 1,
        ("mlp", 96): 1,
    },
    "xlnet": {
        ("head", 4): LAYERS,
        ("qk", 8): LAYERS,
        ("vo", 8): LAYERS,
        ("mlp", 96): LAYERS,
        ("residual", 32): 1,
    },
    "torch-encoder": ATTENTION | STREAM | {("mlp", 96): LAYERS},
    "torch-attention": {
        ("head", 4): 1,
        ("qk", 32): 1,
        ("vo", 32): 1,
        ("mlp", 96): 1,
        ("residual", 32): 1,
    },
    "plain-mixer": {
        ("residual", 32): 1,
        ("residual", 16): 1,
        ("mlp", 24): LAYERS,
        ("mlp", 96): LAYERS,
    },
    "plain-resnet": {
        ("conv", 16): 3,
        ("conv", 8): 2,
        ("conv", 32): 2,
        ("conv", 4): 1,
        ("conv", 48): 1,
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_model_has_the_expected_groups(name: str) -> None:
    assert free_kinds(analysis_of(name)) == EXPECTED[name]


def test_t5_has_heads_in_every_attention() -> None:
    found = free_kinds(analysis_of("t5"))
    assert found["head", 4] == 3 * LAYERS
    assert found["mlp", 96] == 2 * LAYERS


def test_weights_are_not_read() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=4096,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert free_kinds(analyze(model)) == {
        ("residual", 1024): 1,
        ("head", 4): 2,
        ("qk", 4 * 32): 2,
        ("vo", 4 * 64): 2,
        ("mlp", 4096): 2,
    }


def test_names_come_from_modules_and_are_unique() -> None:
    names = [g.name for g in analysis_of("bert").groups if not g.reasons]
    assert names[:5] == [
        "residual",
        "encoder.layer.0.attention.self.qk",
        "encoder.layer.0.attention.vo",
        "encoder.layer.0.attention.head",
        "encoder.layer.0.mlp",
    ]
    for model in EXPECTED:
        every = [group.name for group in analysis_of(model).groups]
        assert len(set(every)) == len(every)


def test_eager_and_fused_attention_give_the_same_groups() -> None:
    fused, eager = analysis_of("llama"), analysis_of("llama:eager")
    assert {g.name for g in fused.groups} == {g.name for g in eager.groups}
    for group in fused.groups:
        other = eager.by_name[group.name]
        for mine, theirs in zip(group.members, other.members, strict=True):
            assert (mine.parameter, mine.dim) == (theirs.parameter, theirs.dim)
            assert torch.equal(mine.index, theirs.index)


def test_key_value_head_takes_its_query_heads_along() -> None:
    group = analysis_of("llama").by_name["model.layers.0.self_attn.head"]
    rows = {m.parameter.split(".")[-2]: m.index.tolist() for m in group.members}
    # 8 query heads of 4 dims, two to each of the 4 key/value heads.
    assert rows["q_proj"] == [unit for unit in range(4) for _ in range(8)]
    assert rows["k_proj"] == [unit for unit in range(4) for _ in range(4)]
    assert rows["o_proj"] == rows["q_proj"]


def test_rotary_embedding_couples_dims_in_pairs() -> None:
    group = analysis_of("llama").by_name["model.layers.0.self_attn.qk"]
    rows = {m.parameter.split(".")[-2]: m.index.tolist() for m in group.members}
    assert rows["k_proj"][:4] == [0, 1, 0, 1]
    assert rows["q_proj"][:8] == [0, 1, 0, 1, 0, 1, 0, 1]


def test_fused_projection_is_split_between_groups() -> None:
    found = analysis_of("gpt2")
    name = "transformer.h.0.attn.c_attn.weight"
    for kind, columns in (("c_attn.qk", 64), ("vo", 32), ("head", 96)):
        group = found.by_name[f"transformer.h.0.attn.{kind}"]
        index = next(m.index for m in group.members if m.parameter == name)
        assert int((index >= 0).sum()) == columns


class Half(nn.Module):
    """Half of the hidden channels are returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = F.relu(self.up(x))
        return self.down(hidden), hidden[..., :4]


def test_partly_pinned_units_are_split_from_the_free_ones() -> None:
    found = analyze(Half(), (torch.randn(2, 6),))
    groups = [g for g in found.groups if g.kind == "mlp"]
    assert [(g.size, bool(g.reasons)) for g in groups] == [(4, True), (4, False)]
    up = groups[1].members[0]
    assert up.parameter == "up.weight"
    assert up.index.tolist() == [-1, -1, -1, -1, 0, 1, 2, 3]


class Lora(nn.Module):
    """A low-rank addition beside a weight: a sum, but no skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a = nn.Linear(6, 8), nn.Linear(6, 2)
        self.b, self.down = nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x) + self.b(self.a(x)), approximate="tanh"))


def test_sum_of_two_branches_is_not_a_residual_stream() -> None:
    found = analyze(Lora(), (torch.randn(2, 6),))
    assert free_kinds(found) == {("mlp", 8): 1, ("mlp", 2): 1}


def test_pin_names_operator_module_and_source_line() -> None:
    text = analysis_of("mixtral").explain("model.layers.0.mlp.experts.expert")
    assert "stays whole" in text
    assert "chosen by data (grouped matrix product) at %grouped_mm" in text
    assert "model.layers.0.mlp.experts, moe.py:" in text


class Odd(nn.Module):
    """An operator without a rule sees the hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.linalg.matrix_exp(self.up(x)))


def test_explanation_says_which_rule_would_free_the_units() -> None:
    text = analyze(Odd(), (torch.randn(2, 4, 4),)).explain("up.weight:0")
    assert "no dimension rule for aten.linalg_matrix_exp at %linalg_matrix_exp" in text
    assert "@dim_rule(torch.ops.aten.linalg_matrix_exp.default)" in text
    assert "test_groups.py:" in text


def test_explanation_says_what_about_a_known_operator_keeps_the_units() -> None:
    text = analysis_of("bert").explain("embeddings.word_embeddings.weight:0")
    why, hint = text.splitlines()[1:3]
    assert why.startswith("  because its index is data (embedding) at %embedding, ")
    assert hint == "    Any of its rows may be asked for."


def test_explanation_of_a_free_group_lists_cost_and_members() -> None:
    text = analysis_of("bert").explain("encoder.layer.0.mlp")
    assert text.splitlines() == [
        "encoder.layer.0.mlp: mlp, 96 units, may shrink",
        "  each unit saves 65 parameters, 8,192 MACs per example",
        "  couples encoder.layer.0.intermediate.dense.weight:0",
        "  couples encoder.layer.0.intermediate.dense.bias:0",
        "  couples encoder.layer.0.output.dense.weight:1",
    ]


def test_explanation_of_an_unknown_name_is_an_error() -> None:
    with pytest.raises(CouplingError, match="is called 'nowhere'"):
        analysis_of("bert").explain("nowhere")


def test_table_lists_every_group() -> None:
    found = analysis_of("bert")
    lines = str(found).splitlines()
    for group in found.groups:
        assert sum(line.startswith(f"{group.name} ") for line in lines) == 1
    assert lines[-1] == "28,576 parameters, 4,719,616 MACs per example"


def test_graph_connects_the_members_of_a_group() -> None:
    found = analysis_of("bert")
    group = found.by_name["encoder.layer.0.mlp"]
    nodes = {(m.parameter, m.dim) for m in group.members}
    assert nodes in list(nx.connected_components(found.graph))
    assert found.graph.nodes["encoder.layer.0.intermediate.dense.weight", 0] == {
        "size": 96,
        "groups": ["encoder.layer.0.mlp"],
    }


def test_output_pin_can_be_told_from_others() -> None:
    group = analysis_of("bert").by_name["pooler.dense.weight:0"]
    assert group.pinned is not None
    assert group.pinned.node.op == "output"
