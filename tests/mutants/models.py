"""Tiny models with dead units, each of which exercises some rewrites.

Every function returns a model in eval mode, float32 as users have it, and its inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgcompile import GateConfig, gates, insert_gates
from fgcompile.zoo.plain import AttentionBlock
from fgcompile.zoo.programs import Fractional
from tests.passes.check import zero

Case = tuple[nn.Module, dict[str, Tensor]]


def _seeded(build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _tokens(width: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(2, 5, width, generator=generator)}


def _image(channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(2, channels, 8, 8, generator=generator)}


def _gated(
    model: nn.Module, inputs: dict[str, Tensor], kind: str, factor: float | None = None
) -> Case:
    """Every other unit of that kind closed; open gates at `factor`, if it is given."""
    insert_gates(model, inputs, GateConfig(kinds=(kind,), gate="plain", rate=None))
    for gate in gates(model).values():
        gate.close(list(range(1, gate.size, 2)))
        if factor is not None:
            steps = torch.linspace(factor, 1.0, gate.size)
            with torch.no_grad():
                gate.logits.copy_(steps)
            gate.parametrization = Fractional()
    return model, inputs


class Mlp(nn.Module):
    """Two linear maps around an activation, a residual beside them, and a head."""

    def __init__(self, act: Any = F.gelu, width: int = 8, hidden: int = 8) -> None:
        super().__init__()
        self.into = nn.Linear(4, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head, self.act = nn.Linear(width, 3), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.head(x + self.down(self.act(self.up(x))))


def mlp() -> Case:
    return _gated(_seeded(Mlp), _tokens(), "mlp")


def mlp_fractional() -> Case:
    return _gated(_seeded(Mlp), _tokens(), "mlp", 0.3)


def residual() -> Case:
    """Dead units in the stream that all maps share."""
    return _gated(_seeded(Mlp), _tokens(), "residual")


def constants() -> Case:
    """Dead rows with a bias: hidden units that are the same for every input."""
    model = _seeded(lambda: Mlp(torch.sigmoid))
    zero(model.up.weight, 1, 4)
    return model, _tokens()


def choices() -> Case:
    """Dead rows, of which each input makes one number or another."""
    model = _seeded(lambda: Mlp(lambda h: torch.where(h.mean(-1, True) > 0, h, h + 1)))
    zero(model.up.weight, 1, 4)
    zero(model.up.bias, 1, 4)
    return model, _tokens()


def no_bias() -> Case:
    """Constants that a map without a bias reads."""
    model, inputs = constants()
    weight = model.get_parameter("down.weight")
    model.down = nn.Linear(8, 8, bias=False)
    model.down.weight = weight
    return model, inputs


def dead_branch() -> Case:
    """The last map of the block is zero but for its bias."""
    model = _seeded(Mlp)
    zero(model.down.weight, *range(8))
    return model, _tokens()


class Stacked(nn.Module):
    """A norm, mean or other reduction of units of which some are zero."""

    def __init__(self, norm: Any, width: int = 8) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, width), norm, nn.Linear(width, 3)
        for parameter in norm.parameters() if isinstance(norm, nn.Module) else ():
            nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


def _stacked(norm: Any, *dead: int) -> Case:
    model = _seeded(lambda: Stacked(norm()))
    for tensor in (model.up.weight, model.up.bias) if dead else ():
        zero(tensor, *dead)
    return model, _tokens()


def _unread(norm: Any, *dead: int) -> Case:
    """Units that the map behind `norm` does not read."""
    model, inputs = _stacked(norm)
    zero(model.down.weight, *dead, dim=1)
    return model, inputs


def layer_norm() -> Case:
    return _stacked(lambda: nn.LayerNorm(8), 1, 4, 6)


def layer_norm_shift() -> Case:
    """A norm whose scale is zero in places, its shift not."""
    model, inputs = _stacked(lambda: nn.LayerNorm(8))
    zero(model.norm.weight, 2, 5)
    return model, inputs


def layer_norm_constants() -> Case:
    """The same, where what goes into the norm is zero as well."""
    model, inputs = _stacked(lambda: nn.LayerNorm(8), 2, 5)
    zero(model.norm.weight, 2, 5)
    return model, inputs


def layer_norm_unread() -> Case:
    """Units that are zero before the norm and not read behind it."""
    model, inputs = _stacked(lambda: nn.LayerNorm(8), 1, 4, 6)
    zero(model.down.weight, 1, 4, 6, dim=1)
    return model, inputs


def rms_norm() -> Case:
    return _stacked(lambda: nn.RMSNorm(8, eps=1e-6), 1, 4, 6)


def mean() -> Case:
    return _stacked(lambda: lambda y: y * y.mean(-1, keepdim=True), 1, 4, 6)


def padded_rows() -> Case:
    """Rows of zeros are padded to units, some of which are one half elsewhere."""
    return _stacked(lambda: lambda y: F.pad(y.sigmoid(), (0, 0, 1, 1)), 1, 4)


def maximum() -> Case:
    """A maximum counts zeros."""
    return _stacked(lambda: lambda y: y * (-y.abs()).amax(-1, keepdim=True).exp(), 1, 4)


def softmax() -> Case:
    return _unread(lambda: lambda y: y.softmax(-1), 1, 4)


class ChannelNorm(nn.Module):
    """A group norm of units that are last."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GroupNorm(2, 8)

    def forward(self, y: Tensor) -> Tensor:
        return self.inner(y.transpose(1, 2)).transpose(1, 2)


def group_norm() -> Case:
    return _unread(ChannelNorm, 1, 4)


def added_mean() -> Case:
    """Zero units that a sum makes different from zero."""
    return _stacked(lambda: lambda y: y + y.mean(-1, keepdim=True), 1, 4)


class Returns(nn.Module):
    """Returns a hidden state, some of whose units are the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.sigmoid(self.up(x))
        return self.down(hidden), hidden


def outputs() -> Case:
    model = _seeded(Returns)
    zero(model.up.weight, 1, 4)
    return model, _tokens()


class Square(nn.Module):
    """Square matrices, where a wrong dim has the right size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.third, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.third(torch.tanh(self.second(x)))))


def square() -> Case:
    return _gated(_seeded(Square), _tokens(), "mlp")


def square_fractional() -> Case:
    return _gated(_seeded(Square), _tokens(), "mlp", 0.3)


class GatedUp(nn.Module):
    """Fused gate and up projections, split in two."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def fused() -> Case:
    return _gated(_seeded(GatedUp), _tokens(), "mlp")


class Sliced(nn.Module):
    """Every map reads its own part of a wider one, one of them turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.index = nn.Linear(4, 12), torch.tensor([3, 1, 2, 0, 2])
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)
        self.three = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        turned = self.two(y[..., 6:].flip(-1))
        return self.one(y[..., 1:7]) + turned + self.three(y[..., self.index])


def sliced() -> Case:
    model = _seeded(Sliced)
    for tensor in (model.up.weight, model.up.bias):
        zero(tensor, 2, 8)
    return model, _tokens()


class Padded(nn.Module):
    """Ones are padded beside units that are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.pad(self.up(x), (2, 0), value=1.0))


def padded() -> Case:
    model = _seeded(Padded)
    zero(model.up.weight, *range(6))
    zero(model.up.bias, *range(6))
    return model, _tokens()


class PaddedZeros(Padded):
    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(torch.tanh(self.up(x)), (2, 0))
        return self.down(y)


def padded_zeros() -> Case:
    """Zeros are padded in front of units, some of which are dead."""
    model = _seeded(PaddedZeros)
    zero(model.up.weight, 1, 4)
    zero(model.up.bias, 1, 4)
    return model, _tokens()


class Chosen(nn.Module):
    """A scaled map beside a function of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.scale = nn.Linear(4, 6), nn.Parameter(torch.ones(6))
        self.down = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.cat([self.one(x) * self.scale, torch.sin(x)], -1))


def joined() -> Case:
    """Zeros beside a map that is not dead."""
    model = _seeded(Chosen)
    zero(model.scale, *range(6))
    return model, _tokens()


class Lookup(nn.Module):
    """A table of tokens that the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(13, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        return self.head(y + torch.tanh(self.inner(y)))


def tied() -> Case:
    """A stream that starts and ends in one tensor."""
    model = _seeded(Lookup)
    inputs = {"x": torch.arange(10).reshape(2, 5) + 3}
    return _gated(model, inputs, "residual")


def table() -> Case:
    """A row of the table is zero: its token may come."""
    model = _seeded(Lookup)
    model.head = nn.Linear(8, 3)
    zero(model.table.weight, 4, 6)
    return model, {"x": torch.arange(10).reshape(2, 5) + 3}


class Convolutions(nn.Module):
    """Two convolutions as large as each other, with a batch norm between."""

    def __init__(self, padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=padding, bias=bias)
        self.head = nn.Linear(8, 3)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def convolutions() -> Case:
    return _gated(_seeded(Convolutions), _image(), "conv")


def convolutions_fractional() -> Case:
    return _gated(_seeded(Convolutions), _image(), "conv", 0.3)


def convolution_constants() -> Case:
    """Channels that are constant, but for the border that zeros are padded to."""
    model = _seeded(lambda: Convolutions(padding=1))
    with torch.no_grad():
        model.norm.bias[3] = 0.5
        model.norm.running_mean[3] = 0.0
    for tensor in (model.first.weight, model.first.bias):
        zero(tensor, 3, 5)
    return model, _image()


def convolution_constants_unpadded() -> Case:
    model = _seeded(Convolutions)
    with torch.no_grad():
        model.norm.bias[3] = 0.5
        model.norm.running_mean[3] = 0.0
    for tensor in (model.first.weight, model.first.bias):
        zero(tensor, 3, 5)
    return model, _image()


def heads() -> Case:
    return _gated(_seeded(lambda: AttentionBlock(16, 4, 12)), _tokens(16), "head")


class Split(nn.Module):
    """Heads that are made by a view and used one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix = nn.Linear(4, 12), nn.Parameter(torch.randn(3, 4))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x)).unflatten(-1, (3, 4))
        return self.head((y * self.mix).sum(-1))


def split() -> Case:
    """Of each head another part is dead."""
    model = _seeded(Split)
    dead = (0, 2, 5, 6, 8, 11)
    for tensor in (model.up.weight, model.up.bias):
        zero(tensor, *dead)
    return model, _tokens()


class Rotary(nn.Module):
    """Scores of queries and keys that are rotated by their positions."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.head = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(4, 3)
        frequencies = 1.0 / 3.0 ** torch.arange(4)
        self.register_buffer("frequencies", frequencies.repeat(2))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1]).to(x)[:, None] * self.frequencies
        q, k = (self._rotated(m(x), positions) for m in (self.q, self.k))
        return self.head((q @ k.transpose(-1, -2)).softmax(-1).sum(1) @ x)

    def _rotated(self, y: Tensor, positions: Tensor) -> Tensor:
        y = y.unflatten(-1, (2, 8)).transpose(1, 2)
        one, two = y.chunk(2, dim=-1)
        turned = torch.cat([-two, one], -1)
        return y * positions.cos() + turned * positions.sin()


def rotary() -> Case:
    return _gated(_seeded(Rotary), _tokens(), "qk")


def gpt2() -> Case:
    """A decoder of two layers that counts its positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=17, n_embd=16, n_layer=2, n_head=4, n_inner=12, n_positions=64
    )
    model = _seeded(lambda: GPT2LMHeadModel(config))
    with torch.no_grad():  # values as a trained model has them
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return _gated(model, {"input_ids": torch.arange(22).reshape(2, 11) % 17}, "head")


def left_padded() -> Case:
    """The same decoder, and rows that begin with padding."""
    model, inputs = gpt2()
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, :3] = 0
    return model, {**inputs, "attention_mask": mask}


class TiedGate(nn.Module):
    """A square table that is read as it is, and gated."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.factors = nn.Parameter(torch.tensor([0.3, 0.0, 0.6, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        gated = torch.ops.fgcompile.gate(self.up.weight, self.factors, 1)
        return self.down(F.linear(torch.tanh(self.up(x)), gated))


def tied_gate() -> Case:
    return _seeded(TiedGate), _tokens()


class LowRank(nn.Module):
    """A linear map with a scaled low-rank update beside it, as LoRA writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(8, 8), nn.Linear(8, 2, bias=False)
        self.up, self.into = nn.Linear(2, 8, bias=False), nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.into(x))
        return self.head(self.base(x) + 2.5 * self.up(self.down(x)))


def low_rank() -> Case:
    model = _seeded(LowRank)
    for tensor in (model.into.weight, model.into.bias):
        zero(tensor, 1, 4)
    return model, _tokens()


class Masked(nn.Module):
    """Two weights with masks, as torch.nn.utils.prune keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def masked() -> Case:
    from torch.nn.utils import prune

    model = _seeded(Masked)
    prune.ln_structured(model.up, "weight", amount=3, n=2, dim=0)
    prune.l1_unstructured(model.down, "weight", amount=5)
    return model, _tokens()


class Wide(nn.Module):
    """Maps of a wide stream, most of whose rows and columns are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.one = nn.Linear(4, 64), nn.Linear(64, 64)
        self.two, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.into(x))
        return self.head(x + torch.tanh(self.one(x)) + torch.tanh(self.two(x)))


def wide_columns() -> Case:
    model = _seeded(Wide)
    zero(model.one.weight, *range(2, 64), dim=1)
    zero(model.two.weight, 0, *range(3, 64), dim=1)
    return model, _tokens()


class WideRows(nn.Module):
    """Rows of a map into a stream that stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 2048)
        self.one, self.head = nn.Linear(2048, 16), nn.Linear(16, 3)
        self.beside = nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.beside(x)
        return self.head(y + self.one(torch.tanh(self.into(x))))


def wide_rows() -> Case:
    model = _seeded(WideRows)
    zero(model.one.weight, *range(2, 16))
    zero(model.one.bias, *range(5, 16))
    return model, _tokens()


class TwoOutputs(nn.Module):
    """Two outputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.tanh(self.up(x))
        return {"one": self.one(y), "two": self.two(y)}


def two_outputs() -> Case:
    return _gated(_seeded(TwoOutputs), _tokens(), "mlp")


class Halves(nn.Module):
    """The halves of a map are read by maps of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.two = nn.Linear(4, 12), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.tanh(self.up(x)).chunk(2, -1)
        return self.one(one) + 2 * self.two(two)


def sliced_halves() -> Case:
    """Two units of each half are dead, not in the same places."""
    model = _seeded(Halves)
    for tensor in (model.up.weight, model.up.bias):
        zero(tensor, 0, 2, 7, 9)
    return model, _tokens()


def square_rows() -> Case:
    """Square matrices of which other rows are dead than columns, equally many."""
    model = _seeded(Square)
    for layer, dead in ((model.first, (1, 4)), (model.second, (0, 3))):
        zero(layer.weight, *dead)
        zero(layer.bias, *dead)
    return model, _tokens()


def square_whole() -> Case:
    return _seeded(Square), _tokens()


class GatedBias(nn.Module):
    """A gate whose value a map makes and a product reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.beside, self.down = (
            nn.Linear(4, 8),
            nn.Linear(4, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.up(x)) * self.beside(x))


class GateOnRows(nn.Module):
    """A factor on the output of a map, which an elementwise function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)
        self.factors = nn.Parameter(torch.linspace(0.3, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self._gate(self.up(x))))

    def _gate(self, y: Tensor) -> Tensor:
        return torch.ops.fgcompile.gate(y, self.factors, -1)


def gated_bias() -> Case:
    return _seeded(GateOnRows), _tokens()


class GateReadTwice(GateOnRows):
    """A contraction reads the gated value, and a sum beside it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self._gate(torch.tanh(self.up(x)))
        return self.down(y) + y.sum(-1, keepdim=True)


def gate_read_twice() -> Case:
    return _seeded(GateReadTwice), _tokens()


class MaskedAlike(nn.Module):
    """Two masked weights of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def masked_alike() -> Case:
    from torch.nn.utils import prune

    model = _seeded(MaskedAlike)
    for layer in (model.one, model.two):
        prune.l1_unstructured(layer, "weight", amount=5)
    return model, _tokens()


def dead_block() -> Case:
    """A block that adds nothing."""
    model = _seeded(Mlp)
    zero(model.down.weight, *range(8))
    zero(model.down.bias, *range(8))
    return model, _tokens()


class InPlace(nn.Module):
    """A sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        y.add_(0.5 * y.abs())
        return self.down(y)


def in_place() -> Case:
    model = _seeded(InPlace)
    for tensor in (model.up.weight, model.up.bias):
        zero(tensor, 0, 2, 3)
    return model, _tokens()


class TiedInner(nn.Module):
    """Two maps hold one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)
        self.two.bias = self.one.bias
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.one(x)) * torch.tanh(self.two(x)))


def tied_inner() -> Case:
    model = _seeded(TiedInner)
    for tensor in (model.one.weight, model.two.weight, model.one.bias):
        zero(tensor, 1, 4)
    return model, _tokens()


class OwnHeads(nn.Module):
    """Attention whose code reads the number of heads, and runs with any."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.into = 4, nn.Linear(4, 32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        b, s, _ = x.shape
        q, k, v = (
            m(x).view(b, s, self.num_heads, -1).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        y = (q @ k.transpose(2, 3) / 3).softmax(-1) @ v
        return self.head(self.o(y.transpose(1, 2).reshape(b, s, -1)))


def own_heads() -> Case:
    return _gated(_seeded(OwnHeads), _tokens(), "head")


def own_heads_fractional() -> Case:
    """Gates between 0 and 1 on queries, which have a bias."""
    return _gated(_seeded(OwnHeads), _tokens(), "qk", 0.3)


class FusedAttention(OwnHeads):
    """The same in one operator, which takes its scale from the size of a head."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        b, s, _ = x.shape
        q, k, v = (
            m(x).view(b, s, self.num_heads, -1).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(3 * q, 3 * k, v)
        return self.head(self.o(y.transpose(1, 2).reshape(b, s, -1)))


def fused_attention() -> Case:
    """Heads lose dims of their queries and keys."""
    return _gated(_seeded(FusedAttention), _tokens(), "qk")


class FusedAttentionSizes(FusedAttention):
    """Its view of queries and keys takes any size of a head."""


def fused_attention_sizes() -> Case:
    return _gated(_seeded(FusedAttentionSizes), _tokens(), "qk")


class Chain(nn.Module):
    """Maps of equal width between two scales, none of which sees input or output."""

    def __init__(self, make: Any, *shape: int) -> None:
        super().__init__()
        self.first, self.maps = nn.Parameter(torch.randn(8, *shape)), nn.ModuleList()
        self.maps.extend(make() for _ in range(3))
        self.last = nn.Parameter(torch.randn(8, *shape))
        self.dim = -1 - len(shape)
        for layer, dead in zip(self.maps, ((1, 4), (0, 3), (2, 5)), strict=True):
            zero(layer.weight, *dead)
            zero(layer.bias, *dead)
        zero(self.last, 6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x.narrow(self.dim, 0, 1) * self.first
        for layer in self.maps:
            x = torch.tanh(layer(x))
        return (x * self.last).sum(self.dim)


def chain() -> Case:
    return _seeded(lambda: Chain(lambda: nn.Linear(8, 8))), _tokens()


def convolution_chain() -> Case:
    return _seeded(lambda: Chain(lambda: nn.Conv2d(8, 8, 3), 1, 1)), _image()


class TwoReaders(nn.Module):
    """A value that two maps read, one of which leaves units out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        zero(self.one.weight, 1, 4, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        return self.one(y) + self.two(y)


def two_readers() -> Case:
    return _seeded(TwoReaders), _tokens()
