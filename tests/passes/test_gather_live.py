"""Zero rows and columns beside streams that stay whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.passes.gather_live import gather_live
from tests.gates.models import bert, bert_batch
from tests.passes.check import check_pass, check_unchanged, program_of, shapes, zero

X = torch.linspace(-1, 1, 16).view(2, 8)


class Readers(nn.Module):
    """Two matrices that read one stream, which the output shows whole."""

    def __init__(self, outputs: int = 512) -> None:
        super().__init__()
        self.first = nn.Linear(8, outputs, bias=False)
        self.second = nn.Linear(8, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        return x.sum(-1, keepdim=True) + self.first(x).relu() * self.second(x)


class Writer(nn.Module):
    """A matrix that adds to a stream."""

    def __init__(self, inputs: int = 2048) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, inputs), nn.Linear(inputs, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def test_zero_columns_go_with_one_gather_for_readers_that_agree() -> None:
    model = Readers()
    for layer in (model.first, model.second):
        zero(layer.weight, 1, 4, 5, dim=1)
    program = check_pass(
        gather_live,
        program_of(model, X),
        """\
before
x: [s0 8 float64] = input
sin: [s0 8 float64] = sin(x)
sum_1: [s0 1 float64] = sum(sin, [-1], True)
linear: [s0 512 float64] = linear(sin, first.weight)
relu: [s0 512 float64] = relu(linear)
linear_1: [s0 512 float64] = linear(sin, second.weight)
mul: [s0 512 float64] = mul(relu, linear_1)
add: [s0 512 float64] = add(sum_1, mul)
return add

after
x: [s0 8 float64] = input
sin: [s0 8 float64] = sin(x)
sum_1: [s0 1 float64] = sum(sin, [-1], True)
index_select_default: [s0 5 float64] = index_select(sin, -1, live_0)
linear: [s0 512 float64] = linear(index_select_default, first.weight)
relu: [s0 512 float64] = relu(linear)
linear_1: [s0 512 float64] = linear(index_select_default, second.weight)
mul: [s0 512 float64] = mul(relu, linear_1)
add: [s0 512 float64] = add(sum_1, mul)
return add
""",
    )
    assert program.kept["first.weight"][1].tolist() == [0, 2, 3, 6, 7]


def test_readers_that_differ_gather_for_themselves() -> None:
    model = Readers(2048)
    zero(model.first.weight, 1, 4, dim=1)
    zero(model.second.weight, 0, 2, 5, dim=1)
    program = program_of(model, X)
    assert gather_live(program)
    assert shapes(program)["first.weight"] == [2048, 6]
    assert shapes(program)["second.weight"] == [2048, 5]
    select = torch.ops.aten.index_select.default
    assert len(program.graph.find_nodes(op="call_function", target=select)) == 2


def test_one_gather_for_all_may_pay_where_one_for_each_does_not() -> None:
    model = Readers(512)
    zero(model.first.weight, 1, 4, 5, 7, dim=1)
    zero(model.second.weight, 1, 4, 5, dim=1)
    program = program_of(model, X)
    assert gather_live(program)
    assert shapes(program)["first.weight"] == [512, 5]
    assert shapes(program)["second.weight"] == [512, 5]


def test_zero_rows_go_with_a_scatter() -> None:
    model = Writer()
    zero(model.down.weight, 0, 3, 4, 6)
    zero(model.down.bias, 0, 3, 4, 6)
    program = check_pass(
        gather_live,
        program_of(model, X),
        """\
before
x: [s0 8 float64] = input
linear: [s0 2048 float64] = linear(x, up.weight, up.bias)
relu: [s0 2048 float64] = relu(linear)
linear_1: [s0 8 float64] = linear(relu, down.weight, down.bias)
add: [s0 8 float64] = add(x, linear_1)
return add

after
x: [s0 8 float64] = input
linear: [s0 2048 float64] = linear(x, up.weight, up.bias)
relu: [s0 2048 float64] = relu(linear)
linear_default: [s0 4 float64] = linear(relu, down.weight, down.bias)
constant_pad_nd_default: [s0 5 float64] = constant_pad_nd(linear_default, [0, 1])
index_select_default: [s0 8 float64] = index_select(constant_pad_nd_default, -1, places_0)
add: [s0 8 float64] = add(x, index_select_default)
return add
""",  # noqa: E501
    )
    assert program.kept["down.bias"][0].tolist() == [1, 2, 5, 7]


def test_zero_rows_with_a_bias_stay() -> None:
    model = Writer()
    zero(model.down.weight, 0, 3, 4, 6)
    check_unchanged(gather_live, program_of(model, X))


def test_few_products_are_not_worth_moving_numbers() -> None:
    reader, writer = Readers(16), Writer(16)
    for layer in (reader.first, reader.second):
        zero(layer.weight, 1, 4, 5, dim=1)
    check_unchanged(gather_live, program_of(reader, X))
    zero(writer.down.weight, 0, 3)
    zero(writer.down.bias, 0, 3)
    check_unchanged(gather_live, program_of(writer, X))


def test_weight_with_two_readers_stays() -> None:
    model = Readers()
    zero(model.first.weight, 1, 4, 5, dim=1)
    model.second.weight = model.first.weight
    check_unchanged(gather_live, program_of(model, X))


def test_matrix_of_zeros_keeps_its_shape() -> None:
    model = Readers()
    zero(model.first.weight, *range(512))
    program = program_of(model, X)
    gather_live(program)
    assert shapes(program)["first.weight"] == [512, 8]


def test_uncoupled_gates_are_lowered_with_gathers_and_scatters() -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 8192, "num_attention_heads": 2}
    model: Any = bert(num_hidden_layers=1, **sizes).eval()
    insert_gates(model, config=GateConfig(coupling="none", noise=0.0))
    generator = torch.Generator().manual_seed(0)
    for gate in gates(model).values():
        order = torch.randperm(gate.size, generator=generator)
        gate.close(order[: int(0.4 * gate.size)])
    lowered = lower(model, "onnx")
    after = shapes(lowered.program)
    layer = "bert.encoder.layer.0"
    assert after[f"{layer}.intermediate.dense.weight"][1] == 96 - 38
    assert after[f"{layer}.output.dense.weight"][0] == 96 - 38
    batch = {"input_ids": bert_batch()["input_ids"]}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    expected = model(**batch).logits
    assert torch.allclose(lowered(**batch)["logits"], expected, atol=1e-5)
    assert "output.dense" in lowered.report.to_markdown()
