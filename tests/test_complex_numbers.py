"""Complex arithmetic is captured in real numbers, where it becomes real again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fgcompile
from fgcompile.capture import capture


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


class Attention(nn.Module):
    """Two heads with rotary embeddings as Llama 4 and Meta's own Llamas write them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] / torch.tensor([1.0, 9.0])
        turns = torch.polar(torch.ones_like(angles), angles)[None, None] * 0.9
        q, k, v = (
            part(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            rotate(q, turns), rotate(k, turns), v
        )
        return self.o(mixed.transpose(1, 2).flatten(-2))


def complex_nodes(model: nn.Module, x: Tensor) -> list[str]:
    program = capture(model, (x,))
    other = torch.randn(x.shape[0] + 1, *x.shape[1:])
    torch.testing.assert_close(program(other), model(other))
    values = [(node.name, node.meta.get("val")) for node in program.graph.nodes]
    return [n for n, v in values if isinstance(v, Tensor) and v.is_complex()]


def test_heads_behind_complex_rotary_embeddings_are_removed() -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    assert complex_nodes(model, x) == []
    fgcompile.insert_gates(model, (x,), fgcompile.GateConfig(kinds=("head",)))
    (gate,) = fgcompile.gates(model).values()
    gate.close([1])
    lowered = fgcompile.lower(model, "onnx")
    parameters = dict(lowered.program.graph_module.named_parameters())
    assert parameters["q.weight"].shape == (4, 8)
    torch.testing.assert_close(lowered(x)["output"], model.eval()(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.complex(x, x.sin()).mul(torch.complex(x, x)).real,
        lambda x: (torch.polar(x.abs(), x) * 2).imag,
        lambda x: torch.view_as_complex(x[..., :2].clone()).view(-1).imag,
        lambda x: torch.view_as_real(
            torch.complex(x, -x).transpose(1, 2)[:, 1:] * x[:, 1:]
        ),
    ],
)
def test_real_results_of_complex_numbers_need_none(
    function: Callable[[Tensor], Tensor],
) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x) + 0

    assert complex_nodes(Module(), torch.randn(3, 3, 3)) == []


def test_what_an_unknown_operator_makes_stays_complex() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.fft(x)
            return torch.view_as_real(spectrum * torch.complex(x, x))

    assert len(complex_nodes(Module(), torch.randn(2, 3, 4))) == 3
