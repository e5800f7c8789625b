"""Coupled groups, read off pairs of models: to the unit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fgcompile.report import diff
from tests.report.models import HIDDEN, Encoder, scrambled

KEPT_HEADS = {0: [0, 1, 3], 2: [1, 2]}
KEPT_CHANNELS = {0: [1, 2, 5, 20], 1: range(3, 24)}


@pytest.fixture
def pruned() -> onnx.ModelProto:
    return Encoder(heads=KEPT_HEADS, channels=KEPT_CHANNELS).build()


def test_each_pruned_group_is_one_row_with_its_kept_units(pruned):
    groups = diff(Encoder().build(), pruned).groups
    assert [(g.name, g.kind, g.before, g.after, g.kept) for g in groups] == [
        ("encoder.layer.0.attention.head", "head", 4, 3, (0, 1, 3)),
        ("encoder.layer.0.mlp", "mlp", 24, 4, (1, 2, 5, 20)),
        ("encoder.layer.1.mlp", "mlp", 24, 21, tuple(range(3, 24))),
        ("encoder.layer.2.attention.head", "head", 4, 2, (1, 2)),
    ]


def test_a_group_knows_its_members_and_what_a_unit_costs(pruned):
    group = diff(Encoder().build(), pruned).groups[1]
    assert [(m.parameter, m.dim, m.before, m.after) for m in group.members] == [
        ("encoder.layer.0.down.weight", 0, 24, 4),
        ("encoder.layer.0.up.bias", 0, 24, 4),
        ("encoder.layer.0.up.weight", 1, 24, 4),
    ]
    assert group.unit_parameters == 2 * HIDDEN + 1


def test_groups_explain_the_whole_change_of_parameters(pruned):
    report = diff(Encoder().build(), pruned)
    gone = sum((g.unit_parameters or 0) * (g.before - g.after) for g in report.groups)
    assert report.verdict.parameters.delta == -gone


def test_without_provenance_sizes_and_kept_units_are_the_same(pruned):
    plain = Encoder(heads=KEPT_HEADS, channels=KEPT_CHANNELS, provenance=False).build()
    named = diff(Encoder().build(), pruned).groups
    groups = diff(Encoder(provenance=False).build(), scrambled(plain)).groups
    assert sorted((g.kind, g.before, g.after, g.kept) for g in groups) == sorted(
        (g.kind, g.before, g.after, g.kept) for g in named
    )


def test_pruning_and_an_insertion_at_once_are_told_apart(pruned):
    after = Encoder(
        heads=KEPT_HEADS, channels=KEPT_CHANNELS, insert_after_gelu=[0, 1]
    ).build()
    report = diff(Encoder().build(), scrambled(after))
    assert report.groups == diff(Encoder().build(), pruned).groups
    assert [c.op for c in report.nodes if c.action == "added"] == ["Clip", "Clip"]


def test_kept_units_are_not_claimed_where_values_were_trained_on(pruned):
    after = onnx.ModelProto()
    after.CopyFrom(pruned)
    for tensor in after.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim:
            tensor.CopyFrom(numpy_helper.from_array(values * 1.5, tensor.name))
    groups = diff(Encoder().build(), after).groups
    assert [(g.before, g.after) for g in groups] == [(4, 3), (24, 4), (24, 21), (4, 2)]
    assert [g.kept for g in groups] == [None] * 4


def test_kept_units_are_not_claimed_where_equal_ones_went():
    def model(kept: Sequence[int]) -> Residual:
        module = Residual(range(8), range(12))
        for layer in (module.up, module.down):
            nn.init.ones_(layer.weight)
        nn.init.zeros_(module.up.bias)
        module.up.weight.data = module.up.weight.data[list(kept)]
        module.up.bias.data = module.up.bias.data[list(kept)]
        module.down.weight.data = module.down.weight.data[:, list(kept)]
        return module

    ids = {"ids": torch.zeros(2, 5, dtype=torch.long)}
    (group,) = diff(model(range(12)), model([3, 4]), example_inputs=ids).groups
    assert (group.before, group.after, group.kept) == (12, 2, None)


class Fused(nn.Module):
    """Gate and up projection in one matrix, written as `x @ weight.T`."""

    def __init__(self, keep: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        both = torch.randn(2, 6, 4, generator=generator)[:, list(keep)]
        self.both = nn.Parameter(both.reshape(-1, 4))
        down = torch.randn(4, 6, generator=generator)[:, list(keep)]
        self.down = nn.Parameter(down.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (x @ self.both.T).chunk(2, dim=-1)
        return (torch.relu(gate) * up) @ self.down.T


def test_a_fused_matrix_counts_the_units_of_the_smallest_member():
    before, after = Fused(range(6)), Fused([0, 2, 5])
    (group,) = diff(before, after, example_inputs=(torch.zeros(2, 3, 4),)).groups
    assert (group.before, group.after, group.kept) == (6, 3, (0, 2, 5))
    assert [(m.parameter, m.before, m.after) for m in group.members] == [
        ("both", 12, 6),
        ("down", 6, 3),
    ]


def test_a_shrunk_embedding_row_count_is_its_own_group():
    before, after = Encoder().build(), Encoder().build()
    table = after.graph.initializer[0]
    values = numpy_helper.to_array(table)[5:]
    table.CopyFrom(numpy_helper.from_array(values.copy(), table.name))
    (group,) = diff(before, after).groups
    assert (group.before, group.after, group.kept) == (32, 27, tuple(range(5, 32)))
    assert [m.dim for m in group.members] == [0]


class Residual(nn.Module):
    """Two layers on one stream; all of `keep` is kept of it."""

    def __init__(self, keep: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        stream, inner = list(keep), list(hidden)
        self.table = nn.Embedding.from_pretrained(weight(9, 8)[:, stream])
        self.norm = nn.LayerNorm(len(stream))
        self.up = nn.Linear(len(stream), len(inner))
        self.down = nn.Linear(len(inner), len(stream))
        self.up.weight.data = weight(12, 8)[inner][:, stream]
        self.up.bias.data = weight(12)[inner]
        self.down.weight.data = weight(8, 12)[stream][:, inner]
        self.down.bias.data = weight(8)[stream]
        self.norm.weight.data = weight(8)[stream]
        self.head = nn.Linear(len(stream), 2)
        self.head.weight.data = weight(2, 8)[:, stream]

    def forward(self, ids: Tensor) -> Tensor:
        value = self.table(ids)
        value = value + self.down(torch.relu(self.up(self.norm(value))))
        return self.head(value)


def test_the_residual_stream_and_what_it_crosses_are_two_groups():
    ids = {"ids": torch.zeros(2, 5, dtype=torch.long)}
    before = Residual(range(8), range(12))
    after = Residual([0, 2, 3, 7], [1, 4, 9])
    groups = diff(before, after, example_inputs=ids).groups
    assert [(g.kind, g.before, g.after, g.kept) for g in groups] == [
        ("mlp", 12, 3, (1, 4, 9)),
        ("residual", 8, 4, (0, 2, 3, 7)),
    ]


class Convolutions(nn.Module):
    def __init__(self, keep: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(3, len(keep), 3)
        self.norm = nn.BatchNorm2d(len(keep))
        self.second = nn.Conv2d(len(keep), 5, 1)
        rows = list(keep)
        values = torch.randn(6, 3, 3, 3, generator=generator)
        self.first.weight.data = values[rows]
        self.second.weight.data = torch.randn(5, 6, 1, 1, generator=generator)[:, rows]

    def forward(self, image: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(image))))


def test_channels_couple_convolutions_and_the_norm_between():
    inputs = (torch.zeros(2, 3, 8, 8),)
    before, after = Convolutions(range(6)).eval(), Convolutions([0, 4]).eval()
    (group,) = diff(before, after, example_inputs=inputs).groups
    assert (group.kind, group.before, group.after) == ("conv", 6, 2)
    assert group.kept == (0, 4)
    assert {m.parameter.split(".")[0] for m in group.members} == {
        "first",
        "norm",
        "second",
    }


class GroupedAttention(nn.Module):
    """Four query heads on two key-value heads of size 4."""

    def __init__(self, pairs: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def rows(heads: Sequence[int], count: int) -> Tensor:
            values = torch.randn(count * 4, 8, generator=generator)
            return values.view(count, 4, 8)[list(heads)].reshape(-1, 8)

        queries = [2 * pair + side for pair in pairs for side in (0, 1)]
        self.query = nn.Parameter(rows(queries, 4))
        self.key = nn.Parameter(rows(pairs, 2))
        self.value = nn.Parameter(rows(pairs, 2))
        self.out = nn.Parameter(rows(queries, 4).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(weight: Tensor) -> Tensor:
            flat = nn.functional.linear(x, weight)
            return flat.view(batch, length, -1, 4).transpose(1, 2)

        def repeat(t: Tensor) -> Tensor:
            wide = t[:, :, None].expand(batch, t.shape[1], 2, length, 4)
            return wide.reshape(batch, -1, length, 4)

        mixed = nn.functional.scaled_dot_product_attention(
            split(self.query), repeat(split(self.key)), repeat(split(self.value))
        )
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        return nn.functional.linear(mixed, self.out)


def test_a_key_value_head_goes_with_its_query_heads():
    inputs = (torch.zeros(2, 6, 8),)
    before, after = GroupedAttention([0, 1]), GroupedAttention([1])
    (group,) = diff(before, after, example_inputs=inputs).groups
    assert (group.kind, group.before, group.after, group.kept) == ("head", 2, 1, (1,))
    sizes = {m.parameter: (m.before, m.after) for m in group.members}
    assert sizes["query"] == (16, 8)
    assert sizes["key"] == (8, 4)


def inner_attention(queries: Sequence[int], values: Sequence[int]) -> onnx.ModelProto:
    """Two heads of size 4; `queries` and `values` stay inside of each."""
    random = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def store(name: str, array: Any) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def columns(kept: Sequence[int]) -> list[int]:
        return [4 * head + entry for head in (0, 1) for entry in kept]

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        result = f"{op}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [result], **attributes))
        return result

    def project(name: str, kept: Sequence[int]) -> str:
        weight = random.standard_normal((6, 8)).astype(np.float32)[:, columns(kept)]
        flat = add("MatMul", ["x", store(name, weight)])
        shape = store(f"{name}_shape", np.array([2, 3, 2, len(kept)]))
        return add("Transpose", [add("Reshape", [flat, shape])], perm=[0, 2, 1, 3])

    query, key = project("query", queries), project("key", queries)
    value = project("value", values)
    scores = add("MatMul", [query, add("Transpose", [key], perm=[0, 1, 3, 2])])
    mixed = add("MatMul", [add("Softmax", [scores]), value])
    flat = store("flat", np.array([2, 3, 2 * len(values)]))
    mixed = add("Reshape", [add("Transpose", [mixed], perm=[0, 2, 1, 3]), flat])
    weight = random.standard_normal((8, 5)).astype(np.float32)[columns(values)]
    nodes.append(helper.make_node("MatMul", [mixed, store("out", weight)], ["y"]))
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 6]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 5]),
    ]
    return helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    )


def test_dims_inside_heads_are_two_groups_of_entries():
    before = inner_attention(range(4), range(4))
    groups = diff(before, inner_attention([0, 2], [0, 1, 3])).groups
    assert sorted((g.kind, g.before, g.after) for g in groups) == [
        ("qk", 8, 4),
        ("vo", 8, 6),
    ]


def test_a_grown_model_is_reported_too():
    (group, *_) = diff(Encoder(channels={0: [1, 2]}).build(), Encoder().build()).groups
    assert (group.before, group.after, group.kept) == (2, 24, None)


def test_the_diff_of_a_copy_is_empty(pruned):
    assert diff(pruned, copy.deepcopy(pruned)).same
