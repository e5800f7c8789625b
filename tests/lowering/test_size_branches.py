"""Models whose code chooses by a size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fgcompile import lower
from fgcompile.capture import capture
from fgcompile.errors import CaptureError


class LongOrShort(nn.Module):
    """Sequences of more than eight steps go through another layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.long, self.short = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.long(x) if x.shape[1] > 8 else self.short(x)


def test_a_size_that_takes_another_path_is_refused() -> None:
    model = LongOrShort().eval()
    program = capture(model, (torch.randn(2, 12, 4),))
    x = torch.randn(3, 20, 4)
    assert torch.equal(program(x), model(x))
    with pytest.raises(CaptureError, match=r"captured for \[\* 9\.\. 4\]"):
        program(torch.randn(3, 5, 4))


def test_a_largest_size_is_refused_beyond() -> None:
    program = capture(LongOrShort().eval(), (torch.randn(2, 5, 4),))
    program(torch.randn(1, 1, 4))
    with pytest.raises(CaptureError, match=r"captured for \[\* 0\.\.8 4\]"):
        program(torch.randn(3, 9, 4))


def test_the_report_names_the_smallest_size() -> None:
    lowered = lower(LongOrShort().eval(), example_inputs=(torch.randn(2, 12, 4),))
    (note,) = [n for n in lowered.report.notes if n.subject == "input x"]
    assert note.text.startswith("dim 1 must be at least 9")
    assert note.level == "warning"
    with pytest.raises(CaptureError):
        lowered(torch.randn(3, 5, 4))
