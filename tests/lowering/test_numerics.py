"""Unusual numbers, sizes and states: a right result or a clear error each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, analyze, gates, insert_gates, lower
from fgcompile.errors import CaptureError, ExportError, GateError, VerifyError
from tests.gates.models import bert, bert_batch
from tests.passes.check import zero

X = torch.linspace(-1, 1, 40).view(2, 5, 4)
TARGETS = ("fx", "module", pytest.param("onnx", marks=pytest.mark.slow))


class Net(nn.Module):
    """Two hidden maps, some of whose units are dead."""

    def __init__(self, hidden: int = 8, inputs: int = 4, act: Any = torch.relu) -> None:
        super().__init__()
        self.up, self.mid = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.down, self.act = nn.Linear(hidden, 3), act
        for layer in (self.up, self.mid):
            for unit in range(hidden // 4):
                zero(layer.weight, unit)
                zero(layer.bias, unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.mid(self.act(self.up(x)))))


class Tied(Net):
    """Two maps share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 8)
        self.second.weight = self.mid.weight
        zero(self.second.bias, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.mid(torch.relu(self.up(x))))
        return self.down(torch.relu(self.second(y)))


class Aliased(Tied):
    """Two parameters overlap in memory."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.linspace(-1, 1, 96)
        self.mid.weight = nn.Parameter(flat[:64].view(8, 8))
        self.second.weight = nn.Parameter(flat[32:].view(8, 8))


class NonContiguous(Net):
    """Parameters that are views of transposed memory."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.up, self.mid, self.down):
            transposed = layer.weight.detach().t().contiguous()
            layer.weight = nn.Parameter(transposed.t())


class Normed(nn.Module):
    """Batch norm and dropout, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = Net(), nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        nn.init.uniform_(self.norm.running_mean, -1, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.net(x)))


class OneRow(Net):
    """Takes one row only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one row at a time")
        return super().forward(x)


class WithEmpty(Net):
    """A parameter without elements beside one with some."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        none = self.empty.expand(x.shape[0], -1, -1)
        return torch.cat([super().forward(x), none], 1)


class Mixed(Net):
    """Half of it is in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.up.half()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x.half()).float())
        return self.down(torch.relu(self.mid(y)))


class Parametric(nn.Module):
    """Reads nothing of its input but its size."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(x.shape[0], -1)


def scaled(factor: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = Net().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def without_hidden() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is nothing to start
        return nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))


RIGHT: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "float64": (lambda: Net().double(), X.double()),
    "float16": (lambda: Net().half(), X.half()),
    "mixed": (Mixed, X),
    "huge": (lambda: scaled(1e12), X),
    "tiny": (lambda: scaled(1e-8), X),
    "hidden-1": (lambda: Net(1), X),
    "input-1": (lambda: Net(8, 1), X[..., :1]),
    "no-hidden": (without_hidden, X),
    "empty-parameter": (WithEmpty, X),
    "one-row": (OneRow, X[:1]),
    "one-row-given": (Net, X[:1]),
    "no-layers": (nn.Sequential, X),
    "no-parameters": (nn.ReLU, X),
    "only-parameters": (Parametric, X),
    "tied": (Tied, X),
    "aliased": (Aliased, X),
    "non-contiguous": (NonContiguous, X),
    "non-contiguous-input": (Net, X.transpose(0, 1)),
    "training-mode": (Normed, X),
    "nan-input": (Net, X * torch.nan),
    "infinite-input": (Net, X * torch.inf),
    "some-infinite-inputs": (Net, X.masked_fill(X > 0.9, torch.inf)),
    "float64-beyond-float32": (lambda: scaled(1e50, torch.float64), X.double()),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RIGHT)
def test_result_is_right(name: str, target: Any, tmp_path: Any) -> None:
    build, x = RIGHT[name]
    model = build()
    flags = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lowered = lower(model, target, tmp_path / "out", example_inputs=(x,))
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    with torch.no_grad():
        got, want = lowered(x), model.eval()(x)
    got = next(iter(got.values())) if isinstance(got, dict) else got
    got, want = got.detach(), want.detach()
    coarse = x.dtype == torch.float16 or name == "mixed"
    scale = max(float(want.nan_to_num().abs().max()), 1e-30)
    torch.testing.assert_close(
        got / scale,
        want / scale,
        rtol=0,
        atol=1e-2 if coarse else 1e-5,
        equal_nan=True,
    )


@pytest.mark.parametrize(
    "name", ["float64", "mixed", "tied", "aliased", "training-mode"]
)
def test_dead_units_go(name: str) -> None:
    build, x = RIGHT[name]
    model = build()
    lowered = lower(model, example_inputs=(x,))
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in lowered.model.parameters()) < before


def test_bfloat16_is_lowered_for_torch() -> None:
    model, x = Net().bfloat16(), X.bfloat16()
    for target in ("fx", "module"):
        lowered = lower(model, target, example_inputs=(x,))
        torch.testing.assert_close(lowered(x), model(x))


@pytest.mark.slow
def test_bfloat16_is_refused_by_onnxruntime(tmp_path: Any) -> None:
    with pytest.raises(
        ExportError, match=r'in float32: lower\(model.float\(\), "onnx"'
    ):
        lower(Net().bfloat16(), "onnx", tmp_path / "o", example_inputs=(X.bfloat16(),))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_without_a_value_are_refused(value: float) -> None:
    model = Net()
    with torch.no_grad():
        model.mid.weight[5, 5] = value
    with pytest.raises(
        VerifyError, match=r"mid.weight holds 1 of 64 values that are NaN"
    ):
        lower(model, example_inputs=(X,))


def test_buffer_that_makes_every_output_nan_is_refused() -> None:
    model = Normed()
    model.norm.running_mean.fill_(torch.nan)
    with pytest.raises(VerifyError, match="is NaN or infinite everywhere"):
        lower(model, example_inputs=(X,))


def test_weights_on_the_meta_device_are_refused() -> None:
    model, x = Net().to("meta"), X.to("meta")
    assert analyze(model, (x,)).groups
    with pytest.raises(VerifyError, match="is on the meta device and has no values"):
        lower(model, example_inputs=(x,))


@pytest.mark.parametrize(("model", "x"), [("cpu", "meta"), ("meta", "cpu")])
def test_inputs_of_another_device_are_refused(model: str, x: str) -> None:
    with pytest.raises(CaptureError, match="is not on the expected device"):
        lower(Net().to(model), example_inputs=(X.to(x),))


@pytest.mark.parametrize("build", [nn.Sequential, nn.ReLU, Parametric])
def test_nothing_to_gate_is_an_error(build: Any) -> None:
    assert not [g for g in analyze(build(), (X,)).groups if not g.reasons]
    with pytest.raises(GateError, match="0 mlp groups found"):
        insert_gates(build(), (X,))


def test_complex_constants_are_not_taken_for_their_real_part() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.tensor([1j, 0j, 2j, 0j]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.turn

    lowered = lower(Turned(), example_inputs=(X,))
    torch.testing.assert_close(lowered(X), X * torch.tensor([1j, 0j, 2j, 0j]))


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float32, 1e38), (torch.float16, 6e4)]
)
def test_weights_that_overflow_are_refused(dtype: torch.dtype, largest: float) -> None:
    """All weights are finite, no output of the dense model is: nothing to compare."""
    model, x = Net().to(dtype), (X.abs() + 1).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(largest).abs_()
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        assert not model(x).isfinite().any()
    with pytest.raises(VerifyError, match="is NaN or infinite everywhere"):
        lower(model, example_inputs=(x,))


def gated(model: nn.Module, x: Tensor, closed: Any) -> Any:
    """Gates in `model`, of which each has the units `closed(size)` closed."""
    insert_gates(model.eval(), (x,), GateConfig(kinds=("mlp",)))
    assert gates(model)
    for gate in gates(model).values():
        gate.close(list(closed(gate.size)))
    return model


def assert_lowered_equal(model: Any, x: Tensor, rtol: float = 1e-5) -> Any:
    lowered = lower(model)
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), model(x), rtol=rtol, atol=rtol)
    return lowered


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)],
)
def test_gates_of_any_precision_are_folded(dtype: torch.dtype, rtol: float) -> None:
    x = X.to(dtype)
    model = gated(Net().to(dtype), x, lambda size: range(0, size, 2))
    assert all(p.dtype == dtype for n, p in model.named_parameters() if "weight" in n)
    lowered = assert_lowered_equal(model, x, rtol)
    assert lowered.model.get_parameter("up.weight").shape[0] <= 4
    assert {p.dtype for p in lowered.model.parameters()} == {dtype}


def test_groups_of_which_no_unit_is_open_are_lowered_to_constants() -> None:
    model = gated(Net(), X, range)
    lowered = assert_lowered_equal(model, X)
    before = sum(p.numel() for p in Net().parameters())
    assert sum(p.numel() for p in lowered.model.parameters()) < before / 4


def test_tied_weights_with_gates_stay_tied_in_value() -> None:
    model = gated(Tied(), X, lambda size: range(1, size, 3))
    assert_lowered_equal(model, X)


def test_a_bert_without_layers_is_lowered() -> None:
    model = bert(num_hidden_layers=0)
    with pytest.raises(GateError, match="0 head groups found"):
        insert_gates(model, config=GateConfig(kinds=("head",)))
    ids = bert_batch()["input_ids"]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["token_type_ids"] = torch.zeros_like(ids)
    lowered = lower(model)
    with torch.no_grad():
        want, got = model.eval()(**batch), lowered(**batch)
    torch.testing.assert_close(got["logits"], want["logits"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_on_a_gpu_is_lowered_there(dtype: torch.dtype) -> None:
    x = X.to("cuda", dtype)
    model = gated(Net().to("cuda", dtype), x, lambda size: range(0, size, 2))
    lowered = assert_lowered_equal(model, x, 1e-5 if dtype == torch.float32 else 3e-2)
    assert all(p.is_cuda for p in lowered.model.parameters())
