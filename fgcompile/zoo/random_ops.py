"""Operators of random programs, all but whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile.zoo.instructions import SIZES, Apply, Builder, DoesNotFitError, Shape, op

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    F.gelu,
    torch.sigmoid,
    torch.tanh,
    F.silu,
    torch.cos,
    F.softplus,
    F.elu,
    torch.abs,
    torch.square,
    lambda x: x * 0.5,
    lambda x: x + 0.25,
    lambda x: 1 - x,
    lambda x: x.pow(3),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x.masked_fill(x < 0.1, 0.0),
    lambda x: x.clamp(-0.5, 0.5),
    lambda x: x.clamp(min=0.1),
    lambda x: x / (1 + x.abs()),
    lambda x: torch.rsqrt(x * x + 1),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: x.to(torch.float32).to(x.dtype),
    lambda x: x * torch.sigmoid(1.7 * x),
    lambda x: F.dropout(x, 0.1, training=False),
    lambda x: x.exp() / (1 + x.exp()),
    lambda x: F.leaky_relu(x, 0.2),
    lambda x: torch.lerp(x, x * x, 0.3),
    F.hardswish,
)


@op(weight=8)
def linear(b: Builder) -> None:
    """A linear map of the last dim."""
    x = b.features()
    b.add(nn.Linear(b.last(x), b.size(), bias=not b.pick(2)), x)


@op(weight=2)
def reuse(b: Builder) -> None:
    """A linear map that was used before, once more."""
    x = b.features()
    known = [
        s.module
        for s in reversed(b.model.steps)
        if isinstance(m := getattr(b.model, s.module), nn.Linear)
        and m.in_features == b.last(x)
    ]
    b.add(b.choose(known), x)


@op()
def transposed_reuse(b: Builder) -> None:
    """The transpose of a linear map that was used before, as in a tied autoencoder."""
    x = b.features()
    known = [
        m
        for s in reversed(b.model.steps)
        if isinstance(m := getattr(b.model, s.module), nn.Linear)
        and m.out_features == b.last(x)
    ]
    tied = b.choose(known)
    b.add(Apply(lambda x, weight: x @ weight, weight=tied.weight), x)


@op(weight=5)
def activation(b: Builder) -> None:
    """An elementwise function, with f(0) = 0 or not."""
    x = b.value(lambda s: True)
    b.add(Apply(b.choose(ACTIVATIONS)), x)


BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    torch.sub,
    torch.maximum,
    lambda x, y: x + 0.5 * y,
    lambda x, y: x / (1 + y * y),
    lambda x, y: torch.where(x > y, x, y),
    lambda x, y: torch.addcmul(x, x, y),
    lambda x, y: F.silu(x) * y,
    lambda x, y: torch.hypot(x, y + 1),
)


@op(weight=7)
def binary(b: Builder) -> None:
    """Two values of broadcastable shapes, combined elementwise."""
    x = b.features()
    shape = b.shape(x)
    y = b.value(lambda s: s != () and _broadcasts(shape, s))
    b.add(Apply(b.choose(BINARY)), x, y)


def _named(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, p: function(x, p)


def _broadcasts(one: Shape, other: Shape) -> bool:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return all(m == n or 1 in (m, n) for m, n in pairs)


@op(weight=3)
def vector(b: Builder) -> None:
    """A parameter, buffer or scalar along one dim, added or multiplied."""
    x = b.features(1)
    dim, size = b.static_dim(x)
    shape = [1] * (len(b.shape(x)) - dim)
    shape[0] = size
    if b.pick(6) == 5:
        shape = [1]
    tensor: Tensor = torch.randn(shape)
    if b.pick(4) < 3:
        tensor = nn.Parameter(tensor)
    b.add(Apply(_named(b.choose(BINARY)), p=tensor), x)


@op()
def table(b: Builder) -> None:
    """A parameter with all static dims of a value, added or multiplied."""
    x = b.features(1)
    shape = [1 if n is None else n for n in b.shape(x)]
    p = nn.Parameter(torch.randn(shape[-(1 + b.pick(len(shape))) :]))
    b.add(Apply(_named(b.choose(BINARY)), p=p), x)


@op(weight=2)
def unflatten(b: Builder) -> None:
    """A static dim as two."""
    x = b.features(1)
    dim, size = b.static_dim(x)
    factor = b.choose([f for f in (2, 3, 4, 5, 6, 1) if size % f == 0])
    sizes = [(factor, size // factor), (size // factor, factor)][b.pick(2)]
    b.add(Apply(lambda x: x.unflatten(dim, sizes)), x)


@op(weight=2)
def flatten(b: Builder) -> None:
    """Two neighbouring static dims as one."""
    x = b.value(lambda s: any(_pairs(s)))
    dim = b.choose(_pairs_of(b.shape(x)))
    if b.pick(2):
        b.add(
            Apply(lambda x: x.reshape(*x.shape[:dim], -1, *x.shape[dim + 2 :])),
            x,
        )
    else:
        b.add(Apply(lambda x: x.flatten(dim, dim + 1)), x)


def _pairs(shape: Shape) -> list[bool]:
    return [m is not None and n is not None for m, n in pairwise(shape)]


def _pairs_of(shape: Shape) -> list[int]:
    return [k for k, both in reversed(list(enumerate(_pairs(shape)))) if both]


@op()
def regroup(b: Builder) -> None:
    """Two neighbouring static dims viewed with other sizes (6, 4) -> (3, 8)."""
    x = b.value(lambda s: any(_pairs(s)))
    dim = b.choose(_pairs_of(b.shape(x)))
    shape = b.shape(x)
    m, n = shape[dim], shape[dim + 1]
    assert m is not None
    assert n is not None
    outer = b.choose([f for f in range(2, m * n) if m * n % f == 0])
    sizes = (outer, m * n // outer)
    b.add(Apply(lambda x: x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 2 :])), x)


@op(weight=3)
def permute(b: Builder) -> None:
    """Dims in another order; the batch stays in front, mostly."""
    x = b.value(lambda s: len(s) >= 3)
    rank = len(b.shape(x))
    first = 0 if b.pick(8) == 7 else 1
    one = b.choose(range(first, rank))
    other = b.choose(range(rank - 1, first, -1))
    if b.pick(2):
        order = list(range(rank))
        order.insert(other, order.pop(one))
        b.add(Apply(lambda x: x.permute(order)), x)
    else:
        b.add(Apply(lambda x: x.transpose(one, other)), x)


@op(weight=3)
def cat(b: Builder) -> None:
    """Two or three values, one after the other along a static dim."""
    x = b.features(1)
    dim, _ = b.static_dim(x)
    shape = b.shape(x)

    def fits(s: Shape) -> bool:
        rest = [k for k in range(len(s)) if k != dim]
        return len(s) == len(shape) and all(s[k] == shape[k] for k in rest)

    y = b.value(lambda s: fits(s) and s[dim] is not None)
    more = [x, y] if b.pick(3) < 2 else [y, x, y]
    b.add(Apply(lambda *v: torch.cat(v, dim)), *more)


@op()
def prepend(b: Builder) -> None:
    """A learned or constant row in front of the positions, as a class token."""
    x = b.value(lambda s: len(s) == 3 and s[-1] is not None)
    row: Tensor = torch.randn(1, 1, b.last(x))
    row = nn.Parameter(row) if b.pick(3) < 2 else row
    b.add(
        Apply(
            lambda x, row: torch.cat([row.expand(x.shape[0], -1, -1), x], 1), row=row
        ),
        x,
    )


@op()
def stack(b: Builder) -> None:
    """Two values of one shape, side by side in a new dim."""
    x = b.features(1)
    shape = b.shape(x)
    y = b.value(lambda s: s == shape)
    dim = 1 + b.pick(len(shape))
    dim = len(shape) + 1 - dim
    b.add(Apply(lambda *v: torch.stack(v, dim)), x, y)


PIECES: tuple[Callable[[int, int], Callable[[Tensor], Any]], ...] = (
    lambda dim, n: lambda x: x.chunk(2, dim),
    lambda dim, n: lambda x: x.split(max(1, n // 3), dim),
    lambda dim, n: lambda x: x.split([1, n - 1], dim),
    lambda dim, n: lambda x: x.narrow(dim, 0, max(1, n // 2)),
    lambda dim, n: lambda x: x.narrow(dim, n // 2, n - n // 2),
    lambda dim, n: lambda x: x.transpose(0, dim)[::2].transpose(0, dim),
    lambda dim, n: lambda x: x.select(dim, n // 2),
    lambda dim, n: lambda x: x.unbind(dim),
    lambda dim, n: lambda x: x.tensor_split(2, dim),
)


@op(weight=3)
def pieces(b: Builder) -> None:
    """Parts of a value along a static dim."""
    x = b.features(1)
    dim, size = b.static_dim(x)
    if size < 2:
        raise DoesNotFitError
    b.add(Apply(b.choose(PIECES)(dim, size)), x)


MOVES: tuple[Callable[[int, int], Callable[[Tensor], Tensor]], ...] = (
    lambda dim, n: lambda x: x.flip(dim),
    lambda dim, n: lambda x: x.roll(1, dim),
    lambda dim, n: lambda x: x.repeat_interleave(2, dim),
    lambda dim, n: lambda x: torch.cat([-x, x], dim),
    lambda dim, n: lambda x: x.unsqueeze(dim),
    lambda dim, n: (
        lambda x: (
            x.unsqueeze(dim)
            .expand(*x.shape[:dim], 2, *x.shape[dim:])
            .reshape(*x.shape[:dim], 2 * n, *x.shape[dim + 1 :])
        )
    ),
    lambda dim, n: lambda x: x.repeat(*[1] * dim, 2, *[1] * (x.dim() - dim - 1)),
    lambda dim, n: lambda x: F.pad(x, [0, 0] * (x.dim() - dim - 1) + [1, 2]),
    lambda dim, n: (
        lambda x: torch.cat(
            [-x.narrow(dim, n // 2, n // 2), x.narrow(dim, 0, n // 2)], dim
        )
    ),
    lambda dim, n: lambda x: F.glu(x, dim),
    lambda dim, n: lambda x: x.index_select(dim, torch.tensor([n - 1, 0, n // 2])),
    lambda dim, n: lambda x: x.squeeze(dim),
)


@op(weight=3)
def move(b: Builder) -> None:
    """Elements along a static dim, placed elsewhere or repeated."""
    x = b.features(1)
    dim, size = b.static_dim(x)
    b.add(Apply(b.choose(MOVES)(dim, size)), x)


@op()
def shuffle(b: Builder) -> None:
    """The last dim indexed by a constant permutation or selection."""
    x = b.features()
    index = torch.randperm(b.last(x))
    if b.pick(2):
        index = index[: 1 + len(index) // 2]
    b.add(Apply(lambda x, index: x[..., index], index=index), x)


REDUCTIONS: tuple[Callable[..., Tensor], ...] = (
    torch.mean,
    torch.sum,
    torch.amax,
    torch.var,
    torch.linalg.vector_norm,
    torch.logsumexp,
    torch.amin,
)


@op(weight=2)
def reduction(b: Builder) -> None:
    """A reduction of one dim other than the first."""
    x = b.value(lambda s: len(s) >= 2)
    rank = len(b.shape(x))
    dim = b.choose([rank - 2, rank - 1, 1] if rank > 2 else [1])
    keep = bool(b.pick(2))
    function = b.choose(REDUCTIONS)
    b.add(Apply(lambda x: function(x, dim, keepdim=keep)), x)


@op()
def along(b: Builder) -> None:
    """Softmax, cumulative sum, sort or normalisation along one dim."""
    x = b.value(lambda s: len(s) >= 2)
    dim = -1 - b.pick(len(b.shape(x)) - 1)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.softmax(dim),
        lambda x: F.normalize(x, dim=dim),
        lambda x: x.cumsum(dim),
        lambda x: x.sort(dim)[0],
        lambda x: x.log_softmax(dim),
        lambda x: x - x.mean(dim, keepdim=True),
        lambda x: x.max(dim, keepdim=True)[0],
    )
    b.add(Apply(b.choose(functions)), x)


class WrittenRmsNorm(nn.Module):
    """RMS norm as decoders write it; `offset` is added to the weight."""

    def __init__(self, size: int, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(size)), offset

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + 1e-6)) * (self.offset + self.weight)


class WrittenLayerNorm(nn.Module):
    """Layer norm from its definition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).square().mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


@op(weight=5)
def norm(b: Builder) -> None:
    """A normalisation of the last dim."""
    x = b.features()
    n = b.last(x)
    variants: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.LayerNorm(n),
        lambda: WrittenRmsNorm(n, 0.0),
        lambda: nn.RMSNorm(n, eps=1e-5),
        lambda: nn.LayerNorm(n, bias=False),
        lambda: nn.LayerNorm(n, elementwise_affine=False),
        lambda: WrittenRmsNorm(n, 1.0),
        lambda: WrittenLayerNorm(n),
        lambda: nn.RMSNorm(n, eps=1e-5, elementwise_affine=False),
    )
    b.add(b.choose(variants)(), x)


@op()
def wide_norm(b: Builder) -> None:
    """A layer norm of the last two dims."""
    x = b.value(lambda s: len(s) >= 3 and None not in s[-2:])
    shape = [n for n in b.shape(x)[-2:] if n is not None]
    b.add(nn.LayerNorm(shape), x)


def _channels(b: Builder, rank: int) -> int:
    return b.value(lambda s: len(s) == rank and s[1] is not None)


@op(weight=2)
def channel_norm(b: Builder) -> None:
    """Batch norm in eval mode, or group norm, over dim 1."""
    x = b.value(lambda s: 2 <= len(s) <= 4 and s[1] is not None)
    shape = b.shape(x)
    channels = shape[1]
    assert channels is not None
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 2]
    groups = b.choose([g for g in (0, 0, 2, 1, 4) if not g or channels % g == 0])
    b.add(nn.GroupNorm(groups, channels) if groups else kind(channels), x)


@op(weight=6)
def convolution(b: Builder) -> None:
    """A convolution over one or two dims of positions, grouped or not."""
    x = b.value(lambda s: len(s) in (3, 4) and s[1] is not None)
    shape = b.shape(x)
    inputs = shape[1]
    assert inputs is not None
    groups = b.choose([g for g in (1, 1, inputs, 2, 3) if inputs % g == 0])
    outputs = groups * b.choose((1, 2, 3)) if groups > 1 else b.size()
    kernel, stride = b.choose((1, 3)), b.choose((1, 1, 2))
    kind = nn.Conv1d if len(shape) == 3 else nn.Conv2d
    padding, bias = kernel // 2, not b.pick(2)
    b.add(
        kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias),
        x,
    )


@op()
def transposed_convolution(b: Builder) -> None:
    """A transposed convolution."""
    x = b.value(lambda s: len(s) in (3, 4) and s[1] is not None)
    shape = b.shape(x)
    assert shape[1] is not None
    kind = nn.ConvTranspose1d if len(shape) == 3 else nn.ConvTranspose2d
    b.add(kind(shape[1], b.size(), 2, stride=2), x)


@op(weight=2)
def pool(b: Builder) -> None:
    """Pooling or resampling of positions."""
    x = b.value(lambda s: len(s) in (3, 4) and s[1] is not None)
    flat = len(b.shape(x)) == 3
    variants: tuple[nn.Module, ...] = (
        nn.AvgPool1d(2) if flat else nn.AvgPool2d(2),
        nn.MaxPool1d(2) if flat else nn.MaxPool2d(2),
        nn.AdaptiveAvgPool1d(1) if flat else nn.AdaptiveAvgPool2d(1),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveMaxPool1d(1) if flat else nn.AdaptiveMaxPool2d(1),
        Apply(lambda x: x.mean(-1) if flat else x.mean((-2, -1))),
        Apply(lambda x: F.pixel_shuffle(x, 2)),
        Apply(lambda x: F.channel_shuffle(x, 2)),
    )
    b.add(b.choose(variants), x)


@op()
def product(b: Builder) -> None:
    """A matrix product of two values."""
    x = b.value(lambda s: len(s) >= 3)
    inner, rank = b.shape(x)[-1], len(b.shape(x))
    outer = b.shape(x)[:-2]

    def fits(s: Shape) -> bool:
        return len(s) == rank and s[-2] == inner and s[:-2] == outer

    y = b.value(fits)
    b.add(Apply(lambda x, y: (x @ y) * 0.3), x, y)


@op(weight=2)
def scores(b: Builder) -> None:
    """Products of all pairs of rows of two values, normalised or not."""
    x = b.value(lambda s: len(s) >= 3 and s[-1] is not None)
    shape = b.shape(x)
    y = b.value(lambda s: s == shape)
    variants: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda x, y: (x @ y.transpose(-1, -2)).softmax(-1) @ y,
        lambda x, y: x @ y.transpose(-1, -2) * 0.3,
        lambda x, y: x.transpose(-1, -2) @ y * 0.1,
        lambda x, y: torch.einsum("...td,...te->...de", x, y) * 0.1,
        lambda x, y: F.scaled_dot_product_attention(x, y, y),
        lambda x, y: torch.einsum("...td,...td->...t", x, y) * 0.3,
    )
    b.add(Apply(b.choose(variants)), x, y)


@op()
def matrix(b: Builder) -> None:
    """A product with a parameter that is no linear layer."""
    x = b.features()
    n = b.last(x)
    weight = nn.Parameter(torch.randn(n, b.size()))
    variants: tuple[Callable[..., Tensor], ...] = (
        lambda x, weight: x @ weight,
        lambda x, weight: F.linear(x, weight.t()),
        lambda x, weight: torch.einsum("...i,io->...o", x, weight),
        lambda x, weight: x @ (weight * torch.sigmoid(weight)),
        lambda x, weight: torch.tensordot(x, weight, dims=([-1], [0])),
    )
    b.add(Apply(b.choose(variants), weight=weight), x)


@op()
def stacked_heads(b: Builder) -> None:
    """One matrix per head, applied to a stream or head by head."""
    x = b.value(lambda s: len(s) == 3 and s[-1] is not None)
    heads, size = b.choose((2, 3)), b.choose(SIZES[:4])
    weight = nn.Parameter(torch.randn(heads, b.last(x), size))
    b.add(
        Apply(
            lambda x, weight: torch.einsum("bti,hio->bhto", x, weight), weight=weight
        ),
        x,
    )


@op()
def output(b: Builder) -> None:
    """A value that the model returns besides its last one."""
    b.marked.append(b.value(lambda s: True))
