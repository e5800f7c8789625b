"""Target module: the same class, smaller, with attributes that fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.errors import ExportError
from fgcompile.targets.module.slots import Slot, slots_of
from fgcompile.zoo.models import entry

MLP = GateConfig(kinds=("mlp",))
X = torch.linspace(-1, 1, 2 * 5 * 12).view(2, 5, 12)


class Attention(nn.Module):
    """Two numbers in attributes, of which the code reads both."""

    def __init__(self, heads: int = 4, dim: int = 3) -> None:
        super().__init__()
        width = heads * dim
        self.heads, self.width = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            y.view(batch, length, self.heads, -1).transpose(1, 2)
            for y in self.qkv(x).split(self.width, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, self.width))


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.down(torch.relu(self.up(x)))


def gated_block(seed: int = 0) -> nn.Module:
    """A block with gates on heads and channels."""
    torch.manual_seed(seed)
    return insert_gates(Block().eval(), (X,))


def close(model: nn.Module, units: dict[str, list[int]]) -> None:
    """Closes units of the one gate of each kind."""
    for gate in gates(model).values():
        gate.close(units[gate.kind])


def count(model: nn.Module) -> int:
    """Parameters of a model, gates not among them."""
    return sum(p.numel() for n, p in model.named_parameters() if "gates" not in n)


def test_class_stays_and_attributes_follow_the_sizes() -> None:
    model = gated_block()
    close(model, {"head": [1, 3], "mlp": [0, 1, 2, 5]})
    smaller = lower(model, "module").model
    assert type(smaller) is Block
    assert (smaller.attention.heads, smaller.attention.width) == (2, 6)
    assert (smaller.up.in_features, smaller.up.out_features) == (12, 16)
    assert (smaller.down.in_features, smaller.down.out_features) == (16, 12)
    assert smaller.attention.qkv.weight.shape == (18, 12)
    torch.testing.assert_close(smaller(X), model.eval()(X))


def test_square_layers_know_their_inputs_from_their_outputs() -> None:
    model = gated_block()
    close(model, {"head": [0, 1, 2], "mlp": []})
    out = lower(model, "module").model.attention.out
    assert (out.in_features, out.out_features) == (3, 12)


def test_the_model_that_was_lowered_is_unchanged() -> None:
    model = gated_block()
    close(model, {"head": [1], "mlp": [2]})
    before = {name: p.clone() for name, p in model.state_dict().items()}
    lower(model, "module")
    assert model.attention.heads == 4
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_branch_without_live_units_keeps_one_of_each_kind() -> None:
    model = gated_block()
    close(model, {"head": [0, 1, 2, 3], "mlp": list(range(20))})
    smaller = lower(model, "module").model
    assert (smaller.attention.heads, smaller.up.out_features) == (1, 1)
    torch.testing.assert_close(smaller(X), model.eval()(X))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "phi3", "clip"])
def test_transformers_classes_lose_what_a_graph_loses(name: str) -> None:
    model: Any = insert_gates(entry(name).build())
    torch.manual_seed(1)
    for gate in gates(model).values():
        gate.close(torch.randperm(gate.size)[: torch.randint(gate.size, ())])
    graph, module = lower(model, "fx"), lower(model, "module")
    assert type(module.model) is type(model)
    assert count(module.model) <= 1.02 * count(graph.model)
    assert module.comparison is not None
    assert module.comparison.relative < 1e-5


def test_layers_know_their_sizes_where_the_output_layer_is_tied() -> None:
    model: Any = insert_gates(entry("llama:tied").build(), config=MLP)
    for gate in gates(model).values():
        gate.close(range(gate.size // 2))
    layers = [m for m in lower(model, "module").model.modules() if type(m) is nn.Linear]
    assert any(layer.in_features == 48 for layer in layers)
    for layer in layers:
        assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_greedy_text_is_that_of_the_gated_model() -> None:
    model: Any = insert_gates(entry("llama").build())
    torch.manual_seed(1)
    for gate in gates(model).values():
        gate.close(torch.randperm(gate.size)[: gate.size // 2])
    prompt = torch.tensor([[1, 5, 9, 3]])
    options = {"max_new_tokens": 20, "do_sample": False, "use_cache": True}
    wanted = model.eval().generate(prompt, **options)
    smaller: Any = lower(model, "module").model
    assert torch.equal(smaller.generate(prompt, **options), wanted)


def test_a_lowered_module_trains_and_lowers_again() -> None:
    model = gated_block()
    close(model, {"head": [1], "mlp": [2, 3]})
    smaller = lower(model, "module").model
    smaller.train()
    smaller(X).square().mean().backward()
    assert all(p.grad is not None for p in smaller.parameters())
    again = insert_gates(smaller, (X,))
    close(again, {"head": [0], "mlp": [0]})
    last = lower(again, "module").model
    assert (last.attention.heads, last.up.out_features) == (2, 17)


class Shuffled(nn.Module):
    """Reads its channels in a fixed order, which a smaller one cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 4), nn.Linear(4, 12)
        self.order = [2, 0, 3, 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x)[..., self.order])


def test_what_the_code_cannot_follow_stays_and_the_report_says_why() -> None:
    model = insert_gates(Shuffled().eval(), (X,))
    next(iter(gates(model).values())).close([1])
    lowered = lower(model, "module")
    assert lowered.model.up.weight.shape == (4, 12)
    assert "Shuffled" in lowered.report.to_markdown()
    assert "aten.index.Tensor in the model" in lowered.report.to_markdown()
    assert lower(model, "fx").model.get_parameter("up.weight").shape == (3, 12)


def test_graph_module_has_no_class_to_keep() -> None:
    graph = lower(gated_block(), "fx").model
    with pytest.raises(ExportError, match="GraphModule has none"):
        lower(graph, "module")


class Rebuilt(Attention):
    """Computes its scale from what the checker cannot correct."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.qkv.weight.shape[0] // 3)


def test_class_that_cannot_express_it_is_refused_with_the_reason() -> None:
    torch.manual_seed(0)
    model = insert_gates(Rebuilt().eval(), (X,), GateConfig(kinds=("head",)))
    close(model, {"head": [1, 3]})
    with pytest.raises(ExportError, match=r"(?s)Rebuilt cannot .* differ by .*heads"):
        lower(model, "module")


def test_slots_are_ints_of_the_module_its_tuples_and_its_plain_objects() -> None:
    class Config:
        heads, name, _hidden = 0, "x", 3

        def __init__(self) -> None:
            self.heads, self.flag = 4, True

    module: Any = nn.LayerNorm((3, 5))
    module.config = Config()
    texts = {str(slot) for slot in slots_of(module)}
    assert texts == {"normalized_shape[0]", "normalized_shape[1]", "config.heads"}
    assert {Slot.parse(text) for text in texts} == set(slots_of(module))


def test_writing_into_a_shared_object_copies_it_first() -> None:
    class Config:
        def __init__(self) -> None:
            self.heads = 4

    first: Any = nn.Identity()
    second: Any = nn.Identity()
    config = Config()
    first.config = second.config = config
    Slot("heads", None, "config").write(first, 2)
    assert (first.config.heads, second.config.heads) == (2, 4)


@dataclass(frozen=True)
class Sizes:
    """Numbers that an attention reads, as frozen as configurations often are."""

    heads: int = 4
    width: int = 12


class Configured(nn.Module):
    """Attention that keeps its numbers in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = Sizes()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            y.view(batch, length, self.sizes.heads, -1).transpose(1, 2)
            for y in self.qkv(x).split(self.sizes.width, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, self.sizes.width))


def test_numbers_in_a_frozen_object_are_corrected_in_a_copy() -> None:
    model = insert_gates(Configured().eval(), (X,), GateConfig(kinds=("head",)))
    sizes = model.sizes
    (gate,) = gates(model).values()
    gate.close([1, 3])
    lowered = lower(model, "module")
    assert lowered.model.sizes == Sizes(heads=2, width=6)
    assert model.sizes is sizes
    assert sizes == Sizes()
    torch.testing.assert_close(lowered(X), model(X))
