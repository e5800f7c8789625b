"""What verification notices, and what it takes for rounding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import lower
from fgcompile.capture import capture
from fgcompile.errors import CaptureError, VerifyError
from fgcompile.passes.pipeline import eliminate
from fgcompile.program import Program
from fgcompile.targets.captured import verify_captured
from fgcompile.targets.cases import verification_inputs
from fgcompile.targets.precise import only_sliced, verify_precisely
from fgcompile.targets.verify import verify_equal
from tests.passes.check import zero

X = torch.linspace(-1, 1, 24).view(2, 3, 4)


class Normed(nn.Module):
    """Six units, two of them zero, through an RMS norm."""

    def __init__(self, eps: float | None = 1e-6) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Linear(4, 6),
            nn.RMSNorm(6, eps=eps),
            nn.Linear(6, 2),
        )
        for tensor in (self.up.weight, self.up.bias):
            zero(tensor, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


def programs(model: nn.Module, x: Tensor = X) -> tuple[Program, Program]:
    program = capture(model.eval(), (x,))
    return program, eliminate(program)


def call_of(program: Program, name: str) -> Any:
    return next(n for n in program.graph.nodes if n.name == name)


@pytest.mark.parametrize("eps", [1e-6, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_repaired_norm_is_equal_in_float64(eps: Any, dtype: Any) -> None:
    model, x = Normed(eps).to(dtype), X.to(dtype)
    program, lowered = programs(model, x)
    assert only_sliced(program, lowered)
    verify_precisely(program, lowered)


def test_eps_below_the_rounding_of_float32_is_noticed() -> None:
    program, lowered = programs(Normed())
    norm = call_of(lowered, "rms_norm")
    norm.update_arg(3, norm.args[3] * 1.02)
    lowered.graph_module.recompile()
    verify_equal(program, lowered)
    with pytest.raises(VerifyError, match=r"in float64, .* rounding does not explain"):
        verify_precisely(program, lowered)


def test_scale_that_is_off_by_less_than_bfloat16_rounds_is_noticed() -> None:
    program, lowered = programs(Normed().to(torch.bfloat16), X.bfloat16())
    repair = call_of(lowered, "mul_tensor")
    repair.update_arg(1, repair.args[1] * 1.01)
    lowered.graph_module.recompile()
    verify_equal(program, lowered)
    with pytest.raises(VerifyError, match="in float64"):
        verify_precisely(program, lowered)


def test_folded_weights_may_be_rounded() -> None:
    model = Normed()
    model.norm = nn.Sigmoid()  # type: ignore[assignment]
    program, lowered = programs(model)
    assert not only_sliced(program, lowered)
    verify_precisely(program, lowered)


class Cancels(nn.Module):
    """Where there is one row, large terms cancel; one of them is a dead unit's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.up.weight.mul_(1e-5)
            zero(self.up.weight, 1, 4)
            self.down.weight.mul_(100)
            usual = self.down(self.up.bias.sigmoid())
        self.register_buffer("usual", usual.detach())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).sigmoid()) * x.shape[0] - self.usual
        return y


def cancelling() -> nn.Module:
    torch.manual_seed(0)
    model = Cancels().eval()
    with torch.no_grad():
        assert model(X[:1]).abs().max() < 1e-2
    return model


def test_rounding_is_no_error_where_terms_cancel() -> None:
    assert lower(cancelling(), example_inputs=(X,)).comparison is not None


def test_errors_are_noticed_where_terms_cancel() -> None:
    program, lowered = programs(cancelling())
    assert not only_sliced(program, lowered)
    verify_precisely(program, lowered)
    verify_equal(program, lowered)
    bias = next(n for n in lowered.graph.nodes if n.target == "down.bias")
    with torch.no_grad():
        lowered.parameter(bias).add_(1e-3)
    for verify in (verify_precisely, verify_equal):
        with pytest.raises(VerifyError, match="of the lowered model differs"):
            verify(program, lowered)


class NothingForOneRow(nn.Module):
    """Zero for one row, in every rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x) * (x.shape[0] - 1)
        return y


def test_small_differences_that_rounding_does_not_make_are_noticed() -> None:
    program = capture(NothingForOneRow().eval(), (X,))
    with pytest.raises(VerifyError, match="differs by 1e-06"):
        verify_equal(program, lambda **inputs: program(**inputs) + 1e-6)


class TellsExport(nn.Module):
    """Computes something else when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return y + 0.01 if torch.compiler.is_exporting() else y


def test_graph_that_is_not_the_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(VerifyError, match="output of the captured graph differs"):
        lower(TellsExport().eval(), path=tmp_path / "out", example_inputs=(X,))
    assert not list(tmp_path.iterdir())


class OneRowAlone(nn.Module):
    """Computes something else for one row, which a trace of two does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return y if x.shape[0] > 1 else y.relu()


def test_graph_that_is_wrong_for_one_row_is_refused(tmp_path: Any) -> None:
    program = capture(OneRowAlone().eval(), (X,))
    assert 1 in {len(inputs["x"]) for inputs in verification_inputs(program)}
    with pytest.raises(VerifyError, match=r"captured graph differs.*\n.*\[1, 5, 4\]"):
        lower(OneRowAlone().eval(), path=tmp_path / "out", example_inputs=(X,))
    assert not list(tmp_path.iterdir())


def rows_of_cases(*size: int) -> list[int]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(size), 2)).eval()
    program = capture(model, (torch.randn(2, *size),))
    cases = verification_inputs(program)
    return [len(inputs["input"]) for inputs in cases]


def test_inputs_of_fixed_sizes_are_tried_once_and_large_ones_in_few_rows() -> None:
    assert rows_of_cases(3, 8, 8) == [2, 1, 3, 8]
    assert rows_of_cases(3, 128, 128) == [2, 1, 3]


class Counts(nn.Module):
    """Its forward writes to a buffer, in eval mode too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.up(x)


def test_capture_and_verification_leave_buffers_alone() -> None:
    model = Counts().eval()
    verify_captured(capture(model, (X,)))
    lower(model, "module", example_inputs=(X,))
    assert float(model.calls) == 0


class Remembers(Counts):
    """What it computes depends on how often it was called."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.calls


def test_model_with_a_memory_is_refused() -> None:
    with pytest.raises(CaptureError, match="buffer calls is read and written by the"):
        lower(Remembers().eval(), example_inputs=(X,))


def test_candidate_that_fails_where_the_model_runs_is_refused() -> None:
    program, _ = programs(Normed())

    def fails(**inputs: Tensor) -> Tensor:
        raise OSError("no such kernel")

    with pytest.raises(
        VerifyError, match=r"the file fails where .* OSError: no such kernel"
    ):
        verify_equal(program, fails, name="the file")


def test_candidate_that_takes_fewer_inputs_than_the_model_is_refused() -> None:
    program, _ = programs(Normed())

    def short(x: Tensor) -> Tensor:
        if x.shape[1] > 16:
            raise IndexError("too long")
        return program(x=x)

    with pytest.raises(VerifyError, match=r"fails where the model runs: .* too long"):
        verify_equal(program, short)
