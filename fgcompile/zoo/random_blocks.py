"""Blocks of random programs: attention in its variants, MLPs, experts, embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile.zoo.instructions import Apply, Builder, op
from fgcompile.zoo.random_ops import ACTIVATIONS, WrittenRmsNorm

LENGTH = 64
"""Rows of position tables."""


@dataclass(frozen=True)
class AttentionOptions:
    """Variants of attention: sizes, grouping, positions, and how it is written."""

    heads: int
    shared: int
    size: int
    value_size: int
    grouping: int
    positions: int
    fused: int
    norm: int
    eager: bool
    bias: bool


class Attention(nn.Module):
    """Attention over the positions of a stream `[b t c]`."""

    cos: Tensor
    sin: Tensor
    slopes: Tensor

    def __init__(self, width: int, o: AttentionOptions) -> None:
        super().__init__()
        self.o = o
        q, k, v = o.heads * o.size, o.shared * o.size, o.shared * o.value_size
        if o.fused:
            self.qkv = nn.Linear(width, q + k + v, bias=o.bias)
        else:
            self.q_proj = nn.Linear(width, q, bias=o.bias)
            self.k_proj = nn.Linear(width, k, bias=o.bias)
            self.v_proj = nn.Linear(width, v, bias=o.bias)
        self.widths = (q, k, v)
        self.o_proj = nn.Linear(o.heads * o.value_size, width, bias=o.bias)
        if o.norm:
            kinds = (nn.LayerNorm(o.size), WrittenRmsNorm(o.size, 0.0))
            self.q_norm, self.k_norm = kinds[o.norm - 1], nn.RMSNorm(o.size, eps=1e-5)
        angles = torch.arange(LENGTH)[:, None] / 10.0 ** torch.linspace(
            0, 1, max(1, o.size // 2)
        )
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("slopes", 0.5 ** torch.arange(1, o.heads + 1).float())
        if o.positions == 4:
            self.bias = nn.Parameter(torch.randn(LENGTH, o.heads))

    def forward(self, x: Tensor) -> Tensor:
        o = self.o
        q, k, v = self._projections(x)
        q = self._heads(q, o.heads, o.size)
        k = self._heads(k, o.shared, o.size)
        v = self._heads(v, o.shared, o.value_size)
        if o.norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        v = v.transpose(1, 2)
        if o.positions == 1 and o.size % 2 == 0:
            q, k = self._rotated(q), self._rotated(k)
        if not (o.grouping == 2 and not o.eager):
            k, v = self._repeated(k), self._repeated(v)
        y = self._attend(q, k, v, self._mask(x))
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.o.fused:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.o.fused == 2 and len(set(self.widths)) == 1:
            # Interleaved by heads, as GPT-NeoX does.
            parts = self.qkv(x).view(*x.shape[:2], self.o.heads, -1).chunk(3, -1)
            return tuple(p.flatten(2) for p in parts)
        return self.qkv(x).split(self.widths, dim=-1)

    def _heads(self, x: Tensor, heads: int, size: int) -> Tensor:
        return x.view(*x.shape[:2], heads, size)

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat([-other, one], -1) * sin

    def _repeated(self, x: Tensor) -> Tensor:
        repeats = self.o.heads // self.o.shared
        if repeats == 1:
            return x
        if self.o.grouping == 1:
            return x.repeat_interleave(repeats, 1)
        b, h, t, d = x.shape
        return x[:, :, None].expand(b, h, repeats, t, d).reshape(b, h * repeats, t, d)

    def _mask(self, x: Tensor) -> Tensor | None:
        t = x.shape[1]
        if self.o.positions in (0, 1):
            return None
        distance = torch.arange(t)[:, None] - torch.arange(t)[None]
        if self.o.positions == 2:
            return torch.zeros(t, t).to(x).masked_fill(distance < 0, float("-inf"))
        if self.o.positions == 4:
            return self.bias[distance.abs()].permute(2, 0, 1)[None]
        return -distance.abs().to(x)[None, None] * self.slopes[:, None, None].to(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.o.eager:
            grouped = self.o.grouping == 2
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=grouped
            )
        scores = q @ k.transpose(-1, -2) / self.o.size**0.5
        if mask is not None:
            scores = scores + mask
        return scores.softmax(-1) @ v


@op(weight=8)
def attention(b: Builder) -> None:
    """Self-attention, with a residual connection or not."""
    x = b.value(lambda s: len(s) == 3 and s[-1] is not None)
    heads = b.choose((2, 4, 1, 3))
    shared = b.choose([heads, *(n for n in (1, 2) if heads % n == 0)])
    size = b.choose((4, 2, 6, 3))
    variant = b.pick(64)
    options = AttentionOptions(
        heads=heads,
        shared=shared,
        size=size,
        value_size=size if variant % 3 else b.choose((size, 4, 2, 5)),
        grouping=variant % 2 if shared == heads else variant % 3,
        positions=b.pick(5),
        fused=b.pick(3),
        norm=b.choose((0, 0, 1, 2)),
        eager=bool(b.pick(2)),
        bias=not b.pick(2),
    )
    y = b.add(Attention(b.last(x), options), x)
    if variant & 32:
        b.add(Apply(torch.add), x, y)


class Mlp(nn.Module):
    """A plain or gated MLP; `fused` makes both halves of a gated one at once."""

    def __init__(
        self,
        width: int,
        hidden: int,
        gated: int,
        bias: bool,
        act: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.gated, self.act = gated, act
        self.up = nn.Linear(width, hidden * (2 if gated == 2 else 1), bias=bias)
        if gated == 1:
            self.gate = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.gated == 2:
            up, gate = up.chunk(2, -1)
            return self.down(self.act(gate) * up)
        return self.down(self.act(self.gate(x)) * up if self.gated else self.act(up))


@op(weight=6)
def mlp(b: Builder) -> None:
    """An MLP, with a residual connection or not."""
    x = b.features()
    act = b.choose(ACTIVATIONS[:6])
    bias, residual = not b.pick(2), b.pick(3) < 2
    y = b.add(Mlp(b.last(x), b.size(), b.pick(3), bias, act), x)
    if residual:
        b.add(Apply(torch.add), x, y)


class Experts(nn.Module):
    """A soft mixture of MLPs whose weights are stacked."""

    def __init__(self, width: int, hidden: int, experts: int, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("btc,ech->beth", x, self.up))
        if self.dense:
            each = torch.matmul(hidden, self.down)
            return (each * weights.transpose(1, 2)[..., None]).sum(1)
        each = torch.einsum("beth,ehc->betc", hidden, self.down)
        return torch.einsum("betc,bte->btc", each, weights)


@op()
def experts(b: Builder) -> None:
    """Experts in stacked weights."""
    x = b.value(lambda s: len(s) == 3 and s[-1] is not None)
    b.add(Experts(b.last(x), b.size(), b.choose((2, 3)), bool(b.pick(2))), x)


@op(weight=2)
def positions(b: Builder) -> None:
    """A learned table of positions, added."""
    x = b.value(lambda s: len(s) == 3 and s[1] is None and s[-1] is not None)
    weight = nn.Parameter(torch.randn(LENGTH, b.last(x)))
    variants: tuple[Callable[..., Tensor], ...] = (
        lambda x, weight: x + weight[: x.shape[1]],
        lambda x, weight: x + F.embedding(torch.arange(x.shape[1]), weight),
        lambda x, weight: x + weight[torch.arange(x.shape[1])][None],
        lambda x, weight: torch.cat(
            [x, weight[: x.shape[1]].expand(x.shape[0], -1, -1)], -1
        ),
    )
    b.add(Apply(b.choose(variants), weight=weight), x)


@op()
def tied_head(b: Builder) -> None:
    """Scores of all tokens by the embedding's own table."""
    tables = [
        m
        for m in b.model.children()
        if isinstance(m, nn.Embedding) and m.weight.dim() == 2
    ]
    table = b.choose(tables).weight
    x = b.value(lambda s: s[-1:] == (table.shape[1],))
    b.add(Apply(F.linear, weight=table), x)


@op()
def folded(b: Builder) -> None:
    """A linear map with batch and positions folded into one dim."""
    x = b.value(lambda s: len(s) == 3 and s[1] is None and s[-1] is not None)
    n = b.last(x)
    flat = b.add(Apply(lambda x: x.reshape(-1, n)), x)
    y = b.add(nn.Linear(n, b.size()), flat)
    y = b.add(Apply(b.choose(ACTIVATIONS)), y)
    b.add(Apply(lambda y, x: y.view(x.shape[0], x.shape[1], -1)), y, x)


class Recurrent(nn.Module):
    """A few steps of a recurrence with one weight."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.cell, self.steps = nn.Linear(width, width), steps

    def forward(self, x: Tensor) -> Tensor:
        state = x
        for _ in range(self.steps):
            state = torch.tanh(self.cell(state)) + x
        return state


@op()
def recurrent(b: Builder) -> None:
    """The same block several times, as ALBERT does."""
    x = b.features()
    b.add(Recurrent(b.last(x), b.choose((2, 3))), x)


@op()
def torch_attention(b: Builder) -> None:
    """PyTorch's own attention module."""
    x = b.value(lambda s: len(s) == 3 and s[-1] in (4, 6, 8, 12, 16))
    inner = nn.MultiheadAttention(b.last(x), 2, batch_first=True)
    b.add(SelfAttention(inner, bool(b.pick(2))), x)


class SelfAttention(nn.Module):
    """PyTorch's attention of a stream to itself."""

    def __init__(self, inner: nn.MultiheadAttention, weights: bool) -> None:
        super().__init__()
        self.inner, self.weights = inner, weights

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.weights)[0]
