"""Gates land where they must: a closed unit's rows and columns no longer matter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile import GateConfig, analyze, gates, insert_gates
from fgcompile.analysis.coupling import Analysis
from fgcompile.capture import capture
from fgcompile.errors import GateError
from fgcompile.gates import attach, container_of
from fgcompile.gates.placement import gate_specs
from fgcompile.zoo.models import entry


def tensors(outputs: Any) -> list[Tensor]:
    """Floating-point tensors of a model's output."""
    values = dict(outputs) if isinstance(outputs, Mapping) else outputs
    leaves = pytree.tree_leaves(values)
    found = [x.detach() for x in leaves if isinstance(x, Tensor)]
    return [x for x in found if x.is_floating_point()]


def close_some(model: nn.Module) -> None:
    """Close a third of the units of every gate, at least one of several."""
    for gate in gates(model).values():
        count = 0 if gate.size == 1 else max(1, gate.size // 3)
        gate.close(torch.randperm(gate.size)[:count])


@torch.no_grad()
def scramble(model: nn.Module, analysis: Analysis) -> int:
    """Overwrite every row and column of the closed units; returns how many."""
    parameters = dict(model.named_parameters())
    count = 0
    for name, gate in gates(model).items():
        for member in analysis.by_name[name].members:
            held = member.index >= 0
            dead = held & ~gate.open[member.index.clamp(min=0)]
            parameter = parameters[member.parameter]
            rows = parameter.transpose(0, member.dim)
            rows[dead] = 3 * torch.randn_like(rows[dead])
            count += int(dead.sum())
    return count


# Kinds of group that each model has.
CASES = {
    "bert": ("mlp", "head", "vo", "qk", "residual"),
    "bert:classifier": ("mlp", "head", "vo", "qk", "residual"),
    "llama": ("mlp", "head", "vo", "qk", "residual"),
    "llama:tied": ("mlp", "head", "residual"),
    "gpt2": ("mlp", "head", "vo", "qk", "residual"),
    "bloom": ("mlp", "head", "qk", "residual"),
    "gpt_neox": ("mlp", "head", "vo", "qk", "residual"),
    "phi3": ("mlp", "head", "vo", "qk", "residual"),
    "qwen3": ("mlp", "head", "qk"),
    "gemma2": ("head", "residual"),
    "olmo2": ("head", "vo", "qk"),
    "cohere": ("mlp", "residual"),
    "siglip": ("head", "residual"),
    "deberta-v2:classifier": ("mlp", "vo", "residual"),
    "whisper": ("mlp", "head"),
    # Heads and their dims are separate dims of its parameters.
    "xlnet": ("mlp", "head", "vo", "qk", "residual"),
    "swin": ("mlp", "head", "residual"),
    "t5": ("mlp", "head", "vo", "qk"),
    "vit": ("mlp", "head", "vo", "qk"),
    "albert": ("mlp", "head", "vo", "qk", "residual"),
    "torch-attention": ("mlp", "head", "vo", "qk"),
    "torch-encoder": ("mlp", "head", "vo", "qk"),
    "plain-resnet": ("conv",),
    "plain-mixer": ("mlp",),
}


@cache
def analysis_of(name: str) -> Analysis:
    found = entry(name)
    return analyze(found.build(), found.example_inputs())


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in CASES.items() for kind in kinds]
)
def test_rows_and_columns_of_closed_units_do_not_matter(name: str, kind: str) -> None:
    model, analysis = entry(name).build(), analysis_of(name)
    inputs = analysis.program.inputs
    plain = tensors(model(**inputs))
    attach(model, gate_specs(analysis, (kind,), model))
    wanted = [g.name for g in analysis.groups if g.kind == kind and not g.reasons]
    assert list(gates(model)) == wanted
    for one, before in zip(tensors(model(**inputs)), plain, strict=True):
        torch.testing.assert_close(one, before)
    close_some(model)
    expected = tensors(model(**inputs))
    differences = [x - y for x, y in zip(expected, plain, strict=True)]
    assert max(float(x.abs().max()) for x in differences) > 1e-3
    assert scramble(model, analysis) > 0
    for after, before in zip(tensors(model(**inputs)), expected, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def gated(name: str, kind: str) -> list[list[str]]:
    model, analysis = entry(name).build(), analysis_of(name)
    specs = gate_specs(analysis, (kind,), model)
    return [[str(site) for site in spec.sites] for spec in specs]


def test_one_site_suffices_where_units_are_only_contracted() -> None:
    layer = "transformer.h.0"
    assert gated("gpt2", "mlp")[0] == [f"input 0 of {layer}.mlp.c_proj, dim -1"]
    assert gated("gpt2", "head")[0] == [f"input 0 of {layer}.attn.c_proj, dim -1"]
    assert gated("gpt2", "qk")[0] == [f"output 0 of {layer}.attn.c_attn, dim -1"]


def test_fused_projection_is_gated_at_its_queries_alone() -> None:
    analysis = analysis_of("gpt2")
    spec = gate_specs(analysis, ("qk",), entry("gpt2").build())[0]
    index = spec.sites[0].index
    assert index[:32].tolist() == list(range(32))
    assert index[32:].tolist() == [-1] * 64


def test_norm_over_query_dims_needs_the_keys_gated_too() -> None:
    path = "model.layers.0.self_attn"
    assert gated("llama", "qk")[0] == [f"output 0 of {path}.q_proj, dim -1"]
    both = [f"output 0 of {path}.{name}_proj, dim -1" for name in "qk"]
    assert gated("qwen3", "qk")[0] == both


def test_functional_projection_is_gated_at_its_parameters() -> None:
    path = "layers.0.self_attn"
    assert gated("torch-encoder", "head")[0] == [
        f"parameter out_proj.weight of {path}, dim 1"
    ]
    assert gated("torch-encoder", "qk")[0] == [
        f"parameter in_proj_weight of {path}, dim 0",
        f"parameter in_proj_bias of {path}, dim 0",
    ]


def test_layers_that_share_weights_share_a_site() -> None:
    sites = [site for one in gated("albert", "mlp") for site in one]
    assert sites == [
        "input 0 of encoder.albert_layer_groups.0.albert_layers.0.ffn_output, dim -1"
    ]


def test_stream_is_gated_at_everything_that_writes_it() -> None:
    (sites,) = gated("llama", "residual")
    layers = [f"model.layers.{k}.{w}" for k in (0, 1) for w in WRITERS]
    modules = ["model.embed_tokens", *layers]
    assert sites == [f"output 0 of {module}, dim -1" for module in modules]


WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def test_gates_act_without_gradients_too() -> None:
    """Torch's fused inference kernels of encoder layers must not bypass the hooks."""
    found = entry("torch-encoder")
    model, inputs = found.build(), found.example_inputs()
    assert inputs is not None
    insert_gates(model, inputs)
    close_some(model)
    expected = model(**inputs)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs), expected)


def test_gate_costs_are_those_of_the_group() -> None:
    model = entry("bert").build()
    analysis = analyze(model)
    insert_gates(model)
    for name, gate in gates(model).items():
        assert torch.equal(gate.params, analysis.by_name[name].parameters)
        assert torch.equal(gate.macs, analysis.by_name[name].macs)


def test_graph_module_computes_what_the_gated_module_does() -> None:
    model = entry("llama").build()
    program = capture(model)
    insert_gates(model)
    graph_module = insert_gates(program.graph_module)
    container_of(graph_module).eval()
    for name, gate in gates(model).items():
        chosen = torch.randperm(gate.size)[: gate.size // 2]
        gate.close(chosen)
        gates(graph_module)[name].close(chosen)
    expected = tensors(model(**program.inputs))
    got = tensors(graph_module(**program.inputs))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["bert", "torch-encoder"])
def test_gated_model_has_the_groups_of_the_plain_one(name: str) -> None:
    found = entry(name)
    gated_model = insert_gates(found.build(), found.example_inputs())
    gated_groups = analyze(gated_model, found.example_inputs()).groups
    for one, other in zip(gated_groups, analysis_of(name).groups, strict=True):
        assert (one.name, one.kind, one.size) == (other.name, other.kind, other.size)
        assert torch.equal(one.parameters, other.parameters)
        assert torch.equal(one.macs, other.macs)


def test_inserting_returns_the_same_object_and_class() -> None:
    model = entry("bert").build()
    kind = type(model)
    assert insert_gates(model) is model
    assert type(model) is kind


def test_inserting_twice_is_an_error() -> None:
    model = insert_gates(entry("bert").build())
    with pytest.raises(GateError, match="BertModel has gates already"):
        insert_gates(model)


def test_not_a_module_is_an_error() -> None:
    with pytest.raises(GateError, match="cannot gate an object of type int"):
        insert_gates(3)  # type: ignore[type-var]


def test_missing_kind_is_an_error_that_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 2))
    modules = list(model.modules())
    with pytest.raises(GateError) as caught:
        insert_gates(model, (torch.randn(2, 4),), GateConfig(kinds=("mlp",)))
    assert str(caught.value) == (
        "0 mlp groups found that can be gated\n"
        "  mlp, 8 units: softmax reads it as a whole (softmax in 1)\n"
        "  Kinds of group that may shrink: other. Choose them with "
        "GateConfig(kinds=...); fgcompile.analyze(model) lists all groups."
    )
    assert list(model.modules()) == modules


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_heads_that_were_asked_for_must_exist() -> None:
    config = GateConfig(kinds=("mlp", "head"))
    with pytest.raises(GateError, match="0 head groups found"):
        insert_gates(plain_mlp(), (torch.randn(2, 4),), config)


def test_by_default_a_model_is_gated_as_far_as_it_has_mlp_or_heads() -> None:
    model = insert_gates(plain_mlp(), (torch.randn(2, 4),))
    assert {name: gate.size for name, gate in gates(model).items()} == {"mlp": 8}


def test_by_default_channels_are_gated_in_a_model_of_convolutions() -> None:
    found = entry("plain-resnet")
    model = insert_gates(found.build(), found.example_inputs())
    assert {gate.kind for gate in gates(model).values()} == {"conv"}


def test_unknown_operator_that_may_hide_heads_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.middle, self.down = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mixed = torch.linalg.matrix_exp(self.up(x))
            return self.down(torch.relu(self.middle(mixed)))

    model = insert_gates(Odd(), (torch.randn(2, 4, 4),))
    assert {gate.kind for gate in gates(model).values()} == {"mlp"}
    (text,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "0 head groups found that can be gated" in text
    assert "aten.linalg_matrix_exp, which may hide them" in text
