"""What concatenation couples, and what it leaves apart."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile import GateConfig, analyze, gates, insert_gates
from fgcompile.lowering import lower
from fgcompile.passes.base import parameter_count

X = torch.linspace(-1, 1, 2 * 5 * 8).view(2, 5, 8)


def free(model: nn.Module) -> dict[tuple[str, int], int]:
    analysis = analyze(model.eval(), (X,))
    kinds = [(g.kind, g.size) for g in analysis.groups if not g.reasons]
    return dict(Counter(kinds))


def closed(model: nn.Module, kind: str, units: list[int]) -> tuple[int, int]:
    """Parameters of the lowered model with these units closed, and as predicted."""
    analysis = analyze(model.eval(), (X,))
    insert_gates(model, (X,), GateConfig(kinds=(kind,), gate="plain"))
    (gate,) = gates(model).values()
    gate.close(units)
    lowered = lower(model, example_inputs=(X,))
    assert lowered.comparison is not None
    assert lowered.comparison.relative < 1e-5
    after = analysis.parameters_after({gate.name: units})
    return parameter_count(lowered.program), after


class Attention(nn.Module):
    """Four heads of two dims over a stream of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, -1)).transpose(1, 2)

    def merged(self, x: Tensor) -> Tensor:
        return self.o(x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        return self.merged(F.scaled_dot_product_attention(q, k, v))


class SharedDims(Attention):
    """Some dims of the keys are the same in all heads, as DeepSeek rotates them."""

    def __init__(self, assigned: bool = False) -> None:
        super().__init__()
        self.q, self.r, self.assigned = nn.Linear(8, 20), nn.Linear(8, 3), assigned

    def forward(self, x: Tensor) -> Tensor:
        q, own, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        shared = self.r(x)[:, None].expand(-1, 4, -1, -1)
        k = torch.cat([own, shared], -1)
        if self.assigned:
            k = own.new_empty(*own.shape[:-1], 5)
            k[..., :2], k[..., 2:] = own, shared
        return self.merged(F.scaled_dot_product_attention(q, k, v))


def test_head_goes_where_other_heads_share_some_of_its_dims() -> None:
    groups = free(SharedDims())
    assert groups["head", 4] == 1
    assert groups["qk", 3] == 1  # a shared dim, and a row of each head's queries
    assert closed(SharedDims(), "head", [1, 2]) == closed(SharedDims(), "head", [0, 3])
    got, predicted = closed(SharedDims(), "head", [1, 2])
    assert got == predicted


def test_slices_that_fill_a_new_tensor_are_a_concatenation() -> None:
    assert free(SharedDims(assigned=True)) == free(SharedDims())
    got, predicted = closed(SharedDims(assigned=True), "head", [1])
    assert got == predicted


class Tokens(Attention):
    """Three tokens of its own come before the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(8, 8)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, -1)).transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        own, rest = x[:, :, :3], x[:, :, 3:]
        low, high = rest.chunk(2, -1)
        return torch.cat([own, rest * 0.6 + torch.cat([-high, low], -1) * 0.8], 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.tokens.expand(len(x), -1, -1), self.up(x)], 1)
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return self.merged(mixed)[:, 3:].mean(1)


def test_tokens_beside_a_sequence_stay() -> None:
    model = Tokens()
    (group,) = (g for g in analyze(model.eval(), (X,)).groups if g.name == "tokens:1")
    assert group.pinned is not None
    assert group.pinned.text == "cat mixes its positions"


def test_tokens_are_joined_along_positions_alone() -> None:
    groups = free(Tokens())
    assert groups["head", 2] == 1
    assert groups["qk", 4] == 1  # two pairs of rotated dims in each head
    assert groups["vo", 8] == 1
    for kind, units in (("head", [0]), ("qk", [0, 2])):
        got, predicted = closed(Tokens(), kind, units)
        assert got == predicted


class PartlyRotated(Attention):
    """The dims that are not rotated are none, as in Phi-3."""

    def rotated(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :2] * 0.7, x[..., 2:]], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = self.rotated(q), self.rotated(k)
        return self.merged(F.scaled_dot_product_attention(q, k, v))


def test_a_part_without_elements_changes_nothing() -> None:
    assert free(PartlyRotated()) == free(Attention())
    for kind, units in (("qk", [0, 2, 4, 6]), ("head", [1])):
        got, predicted = closed(PartlyRotated(), kind, units)
        assert got == predicted


class Sinks(Attention):
    """Every head may attend to nothing, at a price of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2)
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], -1)
        weights = torch.cat([scores, sinks], -1).softmax(-1)
        return self.merged(weights[..., :-1] @ v)


def test_scores_beside_a_sink_are_scores() -> None:
    groups = free(Sinks())
    assert groups["head", 4] == groups["qk", 8] == groups["vo", 8] == 1
    got, predicted = closed(Sinks(), "head", [3])
    assert got == predicted


class Stacked(nn.Module):
    """Two projections stacked, and added up again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.one(x), self.two(x)], 1).sum(1).relu())


def test_what_is_stacked_is_not_coupled_by_it() -> None:
    analysis = analyze(Stacked().eval(), (X,))
    (group,) = (g for g in analysis.groups if g.kind == "mlp")
    assert group.size == 6
    assert {m.parameter for m in group.members} >= {"one.weight", "two.weight"}


class Sized(nn.Module):
    """Reads sizes of a hidden value, never its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        floor = y.new_zeros(y.shape[0], y.shape[1], 1)
        return self.down(torch.maximum(y, floor)) / y.shape[1]


def test_sizes_are_no_data() -> None:
    assert free(Sized())["mlp", 6] == 1
    got, predicted = closed(Sized(), "mlp", [0, 4])
    assert got == predicted
