"""Operators that have a rule and that models use now and then."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile.zoo.instructions import Apply, Builder, op

aten = torch.ops.aten


@op()
def ranking(b: Builder) -> None:
    """What depends on the order of the elements along one dim."""
    x = b.value(lambda s: len(s) >= 2)
    dim = -1 - b.pick(len(b.shape(x)) - 1)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.gather(dim, x.argmax(dim, keepdim=True)),
        lambda x: x.gather(dim, x.argmin(dim, keepdim=True)),
        lambda x: x.gather(dim, x.argsort(dim)),
        lambda x: x.topk(1, dim)[0],
        lambda x: x.min(dim, keepdim=True)[0],
        lambda x: x.sort(dim, descending=True)[0],
        lambda x: x.argmax(dim, keepdim=True) + x,
        lambda x: x.median(dim, keepdim=True)[0],
        lambda x: x.nanmedian(dim, keepdim=True)[0],
        lambda x: x.mode(dim, keepdim=True)[0],
        lambda x: x.kthvalue(1, dim, keepdim=True)[0],
        lambda x: x.aminmax(dim=dim, keepdim=True)[1] + x,
        lambda x: x.cummax(dim)[0],
        lambda x: x.cummin(dim)[0],
    )
    b.add(Apply(b.choose(functions)), x)


@op()
def statistics(b: Builder) -> None:
    """What all elements along one dim have a part in."""
    x = b.value(lambda s: len(s) >= 2)
    dim = -1 - b.pick(len(b.shape(x)) - 1)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x.std(dim, keepdim=True),
        lambda x: torch.stack(torch.var_mean(x, dim, keepdim=True)).sum(0),
        lambda x: x.prod(dim, keepdim=True),
        lambda x: x.cumprod(dim),
        lambda x: x.logcumsumexp(dim),
        lambda x: x.amax(dim, keepdim=True),
        lambda x: aten._safe_softmax(x, dim),
        lambda x: torch.where((x > 1).any(dim, keepdim=True), x, 0.5 * x),
        lambda x: torch.where((x > -1).all(dim, keepdim=True), x, 0.5 * x),
    )
    b.add(Apply(b.choose(functions)), x)


@op()
def windows(b: Builder) -> None:
    """More places along one dim, or the same in windows."""
    x = b.value(lambda s: len(s) >= 2)
    place = b.pick(len(b.shape(x)) - 1)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: F.pad(x, [0, 0] * place + [1, 1]),
        lambda x: x.unfold(-1 - place, 1, 1).sum(-1),
    )
    b.add(Apply(b.choose(functions)), x)


@op()
def copy(b: Builder) -> None:
    """Elementwise operators under other names, in place, or without effect."""
    x = b.value(lambda s: True)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: F.relu(x.clone(), inplace=True),
        lambda x: F.silu(x.clone(), inplace=True),
        lambda x: F.alpha_dropout(x, 0.1, training=False),
        lambda x: F.feature_alpha_dropout(x, 0.1, training=False),
        lambda x: aten.feature_dropout(x, 0.1, False),
        lambda x: torch.true_divide(x, 1 + x * x),
        lambda x: torch.multiply(x, x),
        lambda x: x.masked_fill(torch.logical_and(x > 0, x < 1), 0.0),
        lambda x: x.detach().type_as(x).contiguous(),
        lambda x: aten.alias(x) + torch.tensor(0.5, dtype=x.dtype),
        lambda x: x.clone().detach_(),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x * torch.full_like(x, 0.5) + torch.ones_like(x),
        lambda x: F.prelu(x, x.new_full((1,), 0.3)),
    )
    b.add(Apply(b.choose(functions)), x)


@op(weight=2)
def batched_product(b: Builder) -> None:
    """A matrix for every row of the batch, with an addend or without."""
    x = b.value(lambda s: len(s) == 3 and s[-1] is not None)
    n, m = b.last(x), b.size()
    weight, addend = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.randn(m))
    functions: tuple[Callable[..., Tensor], ...] = (
        lambda x, weight, addend: torch.bmm(x, weight.expand(x.shape[0], -1, -1)),
        lambda x, weight, addend: torch.baddbmm(
            addend, x, weight.expand(x.shape[0], -1, -1)
        ),
        lambda x, weight, addend: torch.addbmm(
            addend, x, weight.expand(x.shape[0], -1, -1)
        ),
        lambda x, weight, addend: torch.bmm(x.transpose(1, 2), x) * 0.1,
    )
    b.add(Apply(b.choose(functions), weight=weight, addend=addend), x)


@op(weight=2)
def matrix_product(b: Builder) -> None:
    """Products of matrices and vectors, with an addend or without."""
    x = b.value(lambda s: len(s) == 2 and s[-1] is not None)
    n, m = b.last(x), b.size()
    weight, addend = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.randn(m))
    functions: tuple[Callable[..., Tensor], ...] = (
        lambda x, weight, addend: torch.mm(x, weight),
        lambda x, weight, addend: torch.addmm(addend, x, weight),
        lambda x, weight, addend: torch.mv(x, weight[:, 0]),
        lambda x, weight, addend: torch.addmv(addend[:1], x, weight[:, 0]),
        lambda x, weight, addend: x * torch.dot(addend, addend),
    )
    b.add(Apply(b.choose(functions), weight=weight, addend=addend), x)


@op()
def bilinear(b: Builder) -> None:
    """A form that is linear in two values."""
    x = b.features()
    shape = b.shape(x)[:-1]
    y = b.value(lambda s: s[:-1] == shape and s[-1:] not in ((), (None,)))
    b.add(nn.Bilinear(b.last(x), b.last(y), b.size(), bias=not b.pick(2)), x, y)


@op()
def volume(b: Builder) -> None:
    """A convolution over three dims of positions, or pooling or resampling of them."""
    x = b.value(lambda s: len(s) == 5 and s[1] is not None)
    inputs = b.shape(x)[1]
    assert inputs is not None
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: F.avg_pool3d(x, 2, ceil_mode=True),
        lambda x: F.max_pool3d(x, 2, ceil_mode=True),
        lambda x: F.adaptive_avg_pool3d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"),
    )
    if b.pick(2):
        b.add(Apply(b.choose(functions)), x)
        return
    groups = b.choose([g for g in (1, inputs) if inputs % g == 0])
    kernel = b.choose((1, 3))
    outputs = groups if groups > 1 else b.size()
    b.add(nn.Conv3d(inputs, outputs, kernel, 1, kernel // 2, groups=groups), x)


@op(weight=2)
def resampling(b: Builder) -> None:
    """Positions that are interpolated, pooled with their places, or normalised."""
    x = b.value(lambda s: len(s) in (3, 4) and s[1] is not None)
    channels, flat = b.shape(x)[1], len(b.shape(x)) == 3
    assert channels is not None
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        (
            lambda x: F.interpolate(x, scale_factor=2, mode="linear"),
            lambda x: F.max_pool1d(x, 2, return_indices=True)[0],
            lambda x: F.instance_norm(x),
            lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        )
        if flat
        else (
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
            lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True),
            lambda x: F.interpolate(x, size=(4, 4), mode="bicubic", antialias=True),
            lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
            lambda x: F.instance_norm(x),
            lambda x: F.unfold(x, 2, padding=1),
        )
    )
    if b.pick(4) == 3:
        kind = nn.InstanceNorm1d if flat else nn.InstanceNorm2d
        b.add(kind(channels, affine=True), x)
    else:
        b.add(Apply(b.choose(functions)), x)


@op(weight=2)
def rearrangement(b: Builder) -> None:
    """Dims in another order, or other places, by names that are seldom used."""
    x = b.value(lambda s: len(s) >= 3)
    rank = len(b.shape(x))
    functions: tuple[Callable[[Tensor], object], ...] = (
        lambda x: x.movedim(1, -1),
        lambda x: x.swapaxes(1, -1),
        lambda x: x.swapdims(-1, -2),
        lambda x: x.mT,
        lambda x: x.adjoint(),
        lambda x: x.tile([1] * (rank - 1) + [2]),
        lambda x: x.diagonal(dim1=-2, dim2=-1),
        lambda x: torch.unsafe_chunk(x, 2, -1),
        lambda x: torch.unsafe_split(x, 2, -1),
        lambda x: x.flatten(1).T.T,
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2),
        lambda x: F.channel_shuffle(x.repeat_interleave(2, 1), 2),
        lambda x: x.tril() + x.triu(1) * 0.5,
    )
    b.add(Apply(b.choose(functions)), x)
