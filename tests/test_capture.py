"""Capture: any module becomes a flat program that computes the same."""

from __future__ import annotations

import functools
import logging
import operator
import re
from typing import Any, NamedTuple

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fgcompile.capture import capture, default_inputs, other_inputs
from fgcompile.capture.state import tracing_state
from fgcompile.errors import CaptureError
from fgcompile.printer import show
from fgcompile.program import Program
from fgcompile.zoo.models import entry


def run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with tracing_state(model):
        return model(**inputs)


def assert_same(program: Program, model: nn.Module, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        got = pytree.tree_leaves(program(**inputs))
        expected = pytree.tree_leaves(run(model, inputs))
    assert len(got) == len(expected) == len(program.output_names)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


# What is shared, kept and restored


def test_weights_are_shared_and_flags_restored() -> None:
    model = Mlp().train()
    model.up.eval()
    program = capture(model, (torch.randn(2, 4),))
    assert program.user_model is model
    assert program.graph_module.up.weight is model.up.weight
    assert (model.training, model.up.training, model.down.training) == (
        True,
        False,
        True,
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_capture_does_not_touch_global_random_state() -> None:
    before = torch.get_rng_state()
    capture(entry("bert").build())
    assert torch.equal(before, torch.get_rng_state())


def test_cache_setting_is_restored_and_caches_are_no_outputs() -> None:
    model = entry("gpt2").build()
    assert model.config.use_cache
    assert capture(model).output_names == ["logits"]
    assert model.config.use_cache


def test_flags_are_restored_when_capture_fails() -> None:
    model = entry("gpt2").build().train()
    with pytest.raises(CaptureError):
        capture(model, {"input_ids": torch.zeros(2, 3, 4, 5)})
    assert model.training
    assert model.config.use_cache
    assert logging.root.manager.disable == logging.NOTSET


def test_capture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    capture(entry("llama").build())
    assert capfd.readouterr() == ("", "")


def test_weights_on_the_meta_device_are_enough() -> None:
    with torch.device("meta"):
        model = Mlp()
    program = capture(model, (torch.randn(2, 4, device="meta"),))
    assert [n.op for n in program.graph.nodes].count("get_attr") == 4
    assert all(p.is_meta for p in program.graph_module.parameters())


# Form of the graph


def test_graph_is_flat_where_the_model_switches_gradients_off() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                features = self.mlp(x)
                with torch.no_grad():
                    scale, shift = features.mean(), features.std()
            return self.head(features) * scale + shift

    model = Frozen()
    program = capture(model, (torch.randn(2, 4),))
    assert {n.op for n in program.graph.nodes} == {
        "get_attr",
        "placeholder",
        "call_function",
        "output",
    }
    assert not any("wrap_with" in str(n.target) for n in program.graph.nodes)
    assert not list(program.graph_module.named_children())[2:]
    assert_same(program, model, {"x": torch.randn(5, 4)})


def test_buffer_that_is_set_to_itself_is_no_state() -> None:
    class Moves(nn.Module):
        """As CTRL, which sees to it that its table is on the inputs' device."""

        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            self.table = self.table.to(x.device)
            return x + self.table

    model = Moves()
    program = capture(model, (torch.randn(2, 4),))
    assert_same(program, model, {"x": torch.randn(5, 4)})


def test_vmap_is_captured_as_what_it_computes() -> None:
    class Masks(nn.Module):
        """As transformers makes masks from functions of two positions."""

        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp()

        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(x.shape[1])
            later = torch.vmap(lambda i, j: i >= j, (None, 0))
            mask = torch.vmap(later, (0, None))(positions, positions)
            return mask.float() @ self.mlp(x)

    model = Masks()
    program = capture(model, (torch.randn(2, 5, 4),))
    assert_same(program, model, {"x": torch.randn(3, 7, 4)})


def test_parts_whose_sizes_depend_on_values_are_joined_again() -> None:
    class Experts(nn.Module):
        """As JetMoE: each expert has as many rows as chose it."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([Mlp(), Mlp()])

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x[:, 0] > 0).long()
            counts = torch.stack([(chosen == k).sum() for k in range(2)]).tolist()
            parts = x[chosen.argsort()].split(counts)
            pairs = zip(self.experts, parts, strict=True)
            return torch.cat([expert(part) for expert, part in pairs])

    model = Experts()
    program = capture(model, (torch.randn(6, 4),))
    assert_same(program, model, {"x": torch.randn(9, 4)})


def test_disabled_autocast_is_inlined_and_enabled_one_refused() -> None:
    class Cast(nn.Module):
        def __init__(self, enabled: bool) -> None:
            super().__init__()
            self.linear, self.enabled = nn.Linear(4, 4), enabled

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
                return self.linear(x.float())

    x = torch.randn(2, 4)
    assert_expected_inline(
        show(capture(Cast(False), (x,))),
        """\
x: [s0 4] = input
linear_1: [s0 4] = linear(x, linear.weight, linear.bias)
return linear_1""",
    )
    with pytest.raises(CaptureError) as error:
        capture(Cast(True), (x,))
    assert_expected_inline(
        str(error.value),
        """\
cannot inline an enabled autocast region at %linear
  Capture the model outside of autocast, in the dtype it shall run in.""",
    )


def test_every_node_has_a_value_and_a_module() -> None:
    for node in capture(entry("t5").build()).graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta
            assert "nn_module_stack" in node.meta
            assert "stack_trace" in node.meta


def test_in_place_ops_become_functional() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y += 1
            torch.relu_(y)
            return y + x

    program = capture(InPlace(), (torch.randn(2, 4),))
    assert_expected_inline(
        show(program),
        """\
x: [s0 s1] = input
mul: [s0 s1] = mul(x, 2)
add_1: [s0 s1] = add(mul, 1)
relu: [s0 s1] = relu(add_1)
add: [s0 s1] = add(relu, x)
return add""",
    )
    assert_same(program, InPlace(), {"x": torch.randn(3, 4)})


def test_writes_through_views_become_functional() -> None:
    class Through(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            first = y[:, :2]
            first += 1
            y[:, 3] = 0
            return y @ y.t() + first.sum()

    program = capture(Through(), (torch.randn(2, 4),))
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert not any(
        t._schema.is_mutable for t in targets if isinstance(t, torch._ops.OpOverload)
    )
    assert_same(program, Through(), {"x": torch.randn(3, 4)})


def test_an_operand_read_again_after_the_write_sees_it() -> None:
    class Again(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            view = y.view(-1)
            y.mul_(3)
            return view.sum() + y

    assert_same(
        capture(Again(), (torch.randn(2, 4),)), Again(), {"x": torch.randn(3, 4)}
    )


def test_casts_that_change_nothing_disappear_and_others_stay() -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.float32).detach().to(torch.float64)[:, :].contiguous()

    assert_expected_inline(
        show(capture(Casts(), (torch.randn(2, 4),))),
        """\
x: [s0 s1] = input
to_1: [s0 s1 float64] = to(x, float64)
return to_1""",
    )


def test_tied_weights_are_one_tensor_with_aliases() -> None:
    program = capture(entry("llama:tied").build())
    assert program.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    targets = [n.target for n in program.graph.nodes if n.op == "get_attr"]
    assert len(targets) == len(set(targets))
    assert "lm_head.weight" not in targets
    assert "lm_head.weight" not in program.graph_module.state_dict()


def test_a_module_called_twice_reads_its_weights_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.same = self.layer

        def forward(self, x: Tensor) -> Tensor:
            return self.same(torch.relu(self.layer(x)))

    model = Twice()
    program = capture(model, (torch.randn(2, 4),))
    assert_expected_inline(
        show(program),
        """\
x: [s0 4] = input
linear: [s0 4] = linear(x, layer.weight, layer.bias)
relu: [s0 4] = relu(linear)
linear_1: [s0 4] = linear(relu, layer.weight, layer.bias)
return linear_1""",
    )
    assert program.aliases == {"same.weight": "layer.weight", "same.bias": "layer.bias"}
    assert_same(program, model, {"x": torch.randn(3, 4)})


# Names


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, -x), ["output", "output_1"]),
        (lambda x: [x, (x, -x)], ["output", "output_1_0", "output_1_1"]),
        (lambda x: {"a": x, "b": [x, -x]}, ["a", "b_0", "b_1"]),
        (lambda x: Pair(x, -x), ["first", "second"]),
        (lambda x: {"a_0": x, "a": [-x]}, ["a_0", "a_0_1"]),
    ],
)
def test_outputs_are_named_by_their_place(make: Any, names: list[str]) -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x + 1)

    program = capture(Returns(), (torch.randn(2, 4),))
    assert program.output_names == names
    assert_same(program, Returns(), {"x": torch.randn(3, 4)})


def test_nested_inputs_are_kept_and_named() -> None:
    class Nested(nn.Module):
        def forward(self, parts: dict[str, Tensor], more: list[Tensor]) -> Tensor:
            return parts["a"] * more[0] + parts["b"] * more[1]

    inputs = {
        "parts": {"a": torch.randn(2, 4), "b": torch.randn(2, 4)},
        "more": [torch.randn(2, 4), torch.randn(2, 4)],
    }
    program = capture(Nested(), inputs)
    assert program.input_names == ["parts_a", "parts_b", "more_0", "more_1"]
    assert_same(program, Nested(), other_inputs(program, batch=5))


# Dynamic sizes


def test_batch_and_sequence_of_equal_size_stay_different() -> None:
    program = capture(Mlp(), (torch.randn(4, 4, 4),))
    batch, length, width = program.placeholders[0].meta["val"].shape
    assert width == 4
    assert isinstance(batch, torch.SymInt)
    assert isinstance(length, torch.SymInt)
    assert batch.node.expr != length.node.expr
    assert_same(program, original(program), {"x": torch.randn(3, 9, 4)})


def original(program: Program) -> nn.Module:
    assert program.user_model is not None
    return program.user_model


def test_a_batch_of_one_is_still_dynamic() -> None:
    model = Mlp()
    program = capture(model, (torch.randn(1, 4),))
    assert_same(program, model, {"x": torch.randn(5, 4)})
    assert_same(program, model, {"x": torch.randn(1, 4)})


def test_sizes_that_the_model_fixes_fall_back_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._check(x.shape[1] < 8)
            table = torch.arange(x.shape[1] * 4, dtype=x.dtype).view(7, 4)
            return x + table

    program = capture(Fixed(), (torch.randn(2, 7, 4),))
    batch, length, _ = program.placeholders[0].meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert length == 7
    assert_same(program, Fixed(), {"x": torch.randn(5, 7, 4)})


def test_a_position_table_of_one_length_fixes_the_sequence() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv1d(4, 4, 3, stride=3)
            self.table = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.patches(x.transpose(1, 2)).transpose(1, 2) + self.table

    model = Positions()
    program = capture(model, (torch.randn(2, 16, 4),))
    batch, length, _ = program.placeholders[0].meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert length == 16
    assert_same(program, model, other_inputs(program, batch=5, length=7))


def test_other_inputs_change_what_may_change_and_keep_the_rest() -> None:
    program = capture(entry("bart").build())
    inputs = other_inputs(program, batch=4, length=9, padded=True)
    shapes = {name: list(value.shape) for name, value in inputs.items()}
    assert shapes == {
        "input_ids": [4, 9],
        "attention_mask": [4, 9],
        "decoder_input_ids": [4, 8],
    }
    assert inputs["attention_mask"].sum(1).tolist() == [9, 8, 7, 6]
    assert inputs["attention_mask"][1].tolist() == [1] * 8 + [0]
    assert inputs["attention_mask"][2].tolist() == [0] * 2 + [1] * 7
    assert_same(program, original(program), {**inputs})


def test_other_inputs_stay_in_the_range_that_was_seen() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    program = capture(Lookup(), (torch.tensor([[3, 5, 4], [5, 3, 3]]),))
    ids = other_inputs(program, batch=8, length=50)["ids"]
    assert ids.shape == (8, 50)
    assert ids.unique().tolist() == [3, 4, 5]


def test_default_inputs_have_the_asked_size_and_are_deterministic() -> None:
    model = entry("bert").build()
    inputs = default_inputs(model, batch=3, length=5)
    assert {name: value.shape for name, value in inputs.items()} == {
        "input_ids": (3, 5),
        "attention_mask": (3, 5),
        "token_type_ids": (3, 5),
    }
    assert torch.equal(inputs["input_ids"], default_inputs(model, 3, 5)["input_ids"])


# Graphs as input


def test_a_captured_graph_is_captured_as_it_is() -> None:
    program = capture(entry("bert").build())
    again = capture(program.graph_module)
    assert show(again) == show(program)
    assert again.output_names == program.output_names
    assert again.graph is not program.graph


def test_an_exported_graph_is_captured_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.randn(6, 4)
    graph_module = torch.export.export(model, (x,)).module()
    assert isinstance(graph_module, GraphModule)
    nodes = list(graph_module.graph.nodes)
    program = capture(graph_module)
    assert list(graph_module.graph.nodes) == nodes
    assert_same(program, model.eval(), {"input": x})


def test_a_traced_graph_of_modules_is_exported_first() -> None:
    model = Mlp()
    traced = torch.fx.symbolic_trace(model)
    program = capture(traced, (torch.randn(2, 4),))
    assert all(
        isinstance(n.target, torch._ops.OpOverload)
        for n in program.graph.nodes
        if n.op == "call_function" and n.target is not operator.getitem
    )
    assert_same(program, model, {"x": torch.randn(3, 4)})


# Refusals


def refusal(model: Any, inputs: Any = None) -> str:
    with pytest.raises(CaptureError) as error:
        capture(model, inputs)
    return str(error.value)


def test_refuses_what_is_not_a_module() -> None:
    assert_expected_inline(
        refusal(len),
        """\
cannot capture an object of type builtin_function_or_method
  Pass a torch.nn.Module or a torch.fx.GraphModule.""",
    )


def test_input_that_forward_requires_goes_before_a_name_it_does_not_take() -> None:
    model: Any = entry("vit").build()
    model.main_input_name = "input_ids"
    model.forward = lambda pixel_values: type(model).forward(model, pixel_values)
    assert list(default_inputs(model)) == ["pixel_values"]


def test_refuses_a_plain_model_without_inputs() -> None:
    assert_expected_inline(
        refusal(Mlp()),
        """\
no example inputs for Mlp.forward(x)
  Only transformers models are captured without.
  Pass example_inputs=(x,) or {"x": x}.""",
    )


def test_refuses_inputs_that_do_not_fit_the_signature() -> None:
    x = torch.randn(2, 4)
    assert_expected_inline(
        refusal(Mlp(), (x, x)),
        """\
example inputs do not fit Mlp.forward(x: 'Tensor') -> 'Tensor'
  too many positional arguments
  Pass a tuple of positional or a dict of keyword inputs.""",
    )


def without_line_numbers(message: str) -> str:
    assert "test_capture.py:" in message
    return re.sub(r"(test_capture\.py):\d+", r"\1:LINE", message)


def test_refuses_shapes_that_the_model_cannot_run() -> None:
    message = without_line_numbers(refusal(Mlp(), (torch.randn(2, 5),)))
    assert_expected_inline(
        message,
        """\
cannot run Mlp on the example inputs
  RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x8)
  at test_capture.py:LINE: return self.down(torch.relu(self.up(x)))
  x[2 5 float32]
  Pass example inputs that the model's forward accepts.""",
    )


def test_refuses_control_flow_on_values_with_its_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    message = without_line_numbers(refusal(Branch(), (torch.randn(2, 4),)))
    assert_expected_inline(
        message,
        """\
cannot trace Branch: its control flow depends on tensor values
  at test_capture.py:LINE: if x.sum() > 0:
  Choose with torch.where or torch.cond, and let no size depend on values.""",
    )


def test_refuses_open_positional_arguments() -> None:
    class Open(nn.Module):
        def forward(self, *xs: Tensor) -> Tensor:
            return sum(xs, start=torch.zeros(()))

    assert_expected_inline(
        refusal(Open(), (torch.randn(2, 4),)),
        """\
cannot name the inputs of forward(*xs: 'Tensor') -> 'Tensor': *xs takes any
  Give forward named arguments, in a small wrapper module if need be.""",
    )


def test_refuses_a_transformers_model_with_unknown_inputs() -> None:
    model: Any = entry("bert").build()
    type(model).main_input_name, old = "bbox", type(model).main_input_name
    try:
        assert_expected_inline(
            refusal(model),
            """\
cannot make up inputs ['bbox'] for BertModel
  Pass example_inputs, as a dict of what its forward takes.""",
        )
    finally:
        type(model).main_input_name = old


@functools.lru_cache
def remembered(length: int) -> Tensor:
    return torch.arange(length).float()


class Remembering(nn.Module):
    """A table that is made once for each length."""

    def forward(self, x: Tensor) -> Tensor:
        return x * remembered(3)


def test_model_that_remembers_tensors_runs_after_capture() -> None:
    model, x = Remembering(), torch.ones(2, 3)
    capture(model, (x,))
    assert torch.equal(model(x), torch.tensor([[0.0, 1.0, 2.0]] * 2))


class Caching(nn.Module):
    """Keeps what it computed of its parameter, as LeViT does in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.tables: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.tables:
            self.tables["scale"] = self.scale * 2
        self.last = self.tables["scale"]
        return x * self.last


def test_model_that_keeps_tensors_has_none_of_a_trace() -> None:
    model, x = Caching(), torch.ones(2, 3)
    tables = model.tables
    with tracing_state(model), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))
    assert model.tables is tables
    assert (model.tables, hasattr(model, "last")) == ({}, False)
    assert torch.equal(model(x)[0], torch.tensor([2.0, 4.0, 6.0]))


def test_token_types_are_an_input_that_may_be_left_out() -> None:
    model: Any = entry("bert").build()
    program = capture(model)
    assert program.input_names == ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.tensor([[5, 6, 7, 8], [9, 9, 1, 2]])
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for kwargs in ({}, {"token_type_ids": types}):
            want = model(ids, mask, **kwargs).last_hidden_state
            got = program(ids, mask, **kwargs).last_hidden_state
            torch.testing.assert_close(got, want)


def test_model_of_one_token_type_does_not_ask_for_it() -> None:
    model: Any = entry("bert").build()
    model.config.type_vocab_size = 1
    assert "token_type_ids" not in default_inputs(model)
