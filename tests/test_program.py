"""Programs: what they read, how they are called, copied and printed."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fgcompile.capture import capture
from fgcompile.errors import CaptureError
from fgcompile.passes.canonicalize import canonicalize
from fgcompile.printer import show
from fgcompile.program import Program, module_path, source_line


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.drop(torch.relu(self.up(x)))
        y = self.down(hidden) * self.scale
        if mask is not None:
            y = y * mask.unsqueeze(-1)
        return {"logits": y, "hidden": hidden}


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture
def program(net: nn.Module) -> Program:
    return capture(net, (torch.randn(2, 3, 4),))


def test_program_prints_one_line_per_value(program: Program) -> None:
    assert_expected_inline(
        show(program),
        """\
x: [s0 s1 4] = input
linear: [s0 s1 8] = linear(x, up.weight, up.bias)
relu: [s0 s1 8] = relu(linear)
linear_1: [s0 s1 4] = linear(relu, down.weight, down.bias)
mul: [s0 s1 4] = mul(linear_1, scale)
return mul, relu""",
    )


def test_masks_and_computed_sizes_are_printed(net: nn.Module) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
            return (*torch.cat([x, x], dim=1).split([3, 1], dim=2), ids > 2)

    inputs = (torch.randn(2, 3, 4), torch.ones(2, 5, dtype=torch.long))
    assert_expected_inline(
        show(capture(Doubled(), inputs)),
        """\
x: [s0 s1 4] = input
ids: [s2 s3 int64] = input
cat: [s0 2*s1 4] = cat([x, x], 1)
split_with_sizes: ([s0 2*s1 3], [s0 2*s1 1]) = split_with_sizes(cat, [3, 1], 2)
getitem: [s0 2*s1 3] = getitem(split_with_sizes, 0)
getitem_1: [s0 2*s1 1] = getitem(split_with_sizes, 1)
gt: [s2 s3 bool] = gt(ids, 2)
return getitem, getitem_1, gt""",
    )


def test_call_takes_positional_and_keyword_inputs_in_any_order(net: nn.Module) -> None:
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]])
    program = capture(net, {"mask": mask, "x": x})
    expected = net(x, mask)
    for got in (program(x, mask), program(mask=mask, x=x), program(x, mask=mask)):
        assert isinstance(got, dict)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_call_ignores_inputs_that_are_none(program: Program, net: nn.Module) -> None:
    x = torch.randn(5, 7, 4)
    assert torch.equal(program(x, mask=None)["logits"], net(x)["logits"])


def test_call_refuses_missing_and_unknown_inputs(program: Program) -> None:
    with pytest.raises(CaptureError) as error:
        program(y=torch.randn(2, 3, 4))
    assert_expected_inline(
        str(error.value),
        """\
program takes inputs ['x'], got 0 positional and ['y']
  Capture again with the inputs that you want to call it with.""",
    )


def test_call_refuses_a_size_that_was_fixed(program: Program) -> None:
    with pytest.raises(CaptureError) as error:
        program(torch.randn(2, 3, 5))
    assert_expected_inline(
        str(error.value),
        """\
input x has shape [2 3 5], but the program was captured for [* * 4]
  Capture again with example inputs of that shape.""",
    )


def test_call_refuses_another_value_of_a_constant_input() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return x * factor

    program = capture(Scaled(), (torch.ones(2, 3), 2.0))
    assert torch.equal(program(torch.ones(4, 3)), 2 * torch.ones(4, 3))
    with pytest.raises(CaptureError) as error:
        program(torch.ones(4, 3), 3.0)
    assert_expected_inline(
        str(error.value),
        """\
input factor is 3.0, but the program was captured for 2.0
  Capture again with that value: it is a part of the program.""",
    )


def test_inputs_and_outputs_have_names(program: Program) -> None:
    assert program.input_names == ["x"]
    assert program.output_names == ["logits", "hidden"]


def test_get_attr_nodes_are_parameters_or_buffers(
    program: Program, net: nn.Module
) -> None:
    found = {n.target: n for n in program.graph.nodes if n.op == "get_attr"}
    assert set(found) == {name for name, _ in net.named_parameters()} | {"scale"}
    assert program.parameter(found["up.weight"]) is net.get_parameter("up.weight")
    assert program.is_parameter(found["up.weight"])
    assert not program.is_buffer(found["up.weight"])
    assert program.is_buffer(found["scale"])
    assert not program.is_parameter(program.placeholders[0])


def test_copy_has_its_own_graph_and_the_same_tensors(program: Program) -> None:
    copy = program.copy()
    assert show(copy) == show(program)
    names = [node.name for node in program.graph.nodes]
    assert [node.name for node in copy.graph.nodes] == names
    for old, new in zip(program.graph.nodes, copy.graph.nodes, strict=True):
        assert old is not new
        assert old.meta == new.meta
        if old.op == "get_attr":
            assert program.parameter(old) is copy.parameter(new)
    relu = next(n for n in copy.graph.nodes if n.name == "relu")
    relu.target = torch.ops.aten.tanh.default
    copy.graph_module.recompile()
    x = torch.randn(2, 3, 4)
    assert not torch.equal(copy(x)["logits"], program(x)["logits"])
    assert "tanh" not in show(program)


def test_replacing_a_tensor_of_a_copy_leaves_the_original(program: Program) -> None:
    copy = program.copy()
    weight = next(n for n in copy.graph.nodes if n.target == "up.weight")
    owner = copy.graph_module.get_submodule("up")
    owner.weight = nn.Parameter(torch.zeros(8, 4))
    assert copy.parameter(weight).abs().sum() == 0
    original = next(n for n in program.graph.nodes if n.target == "up.weight")
    assert program.parameter(original).abs().sum() > 0


def test_nodes_know_their_module_and_source_line(program: Program) -> None:
    nodes = {node.name: node for node in program.graph.nodes}
    assert module_path(nodes["linear_1"]) == "down"
    assert module_path(nodes["relu"]) == ""
    assert module_path(nodes["x"]) == ""
    assert source_line(nodes["relu"]).startswith("test_program.py:")
    assert source_line(nodes["linear"]) == source_line(nodes["relu"])
    assert source_line(nodes["x"]) == ""


def test_canonicalize_removes_identities_and_then_has_nothing_to_do(
    program: Program,
) -> None:
    before = show(program)
    assert not canonicalize(program)
    linear = next(n for n in program.graph.nodes if n.name == "linear")
    with program.graph.inserting_after(linear):
        alias = program.graph.call_function(torch.ops.aten.alias.default, (linear,))
    linear.replace_all_uses_with(alias, delete_user_cb=lambda user: user is not alias)
    program.graph_module.recompile()
    assert canonicalize(program)
    assert show(program) == before
    assert not canonicalize(program)
