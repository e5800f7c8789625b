"""How far a student is from its teacher: in its logits, and in its hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fgcompile.errors import GateError


def logit_distance(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """`T^2 KL(teacher || student)` at temperature T, averaged over rows.

    Args:
        student: Logits, shape `[... classes]`.
        teacher: The same.
        temperature: Divides both.
        mask: Rows that count, `[batch length]`, where the logits have a length too.
    """
    _check_same(student, teacher, "logits")
    if student.shape[-1] == 1:
        return _mean((student - teacher).float().square().sum(-1), mask)
    log_p = F.log_softmax(teacher.float() / temperature, -1)
    log_q = F.log_softmax(student.float() / temperature, -1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * _mean(divergence, mask)


def hidden_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean squared distance over tokens that count and over dims."""
    _check_same(student, teacher, "hidden states")
    return _mean((student - teacher).float().square().mean(-1), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape != values.shape:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1.0)


def _check_same(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise GateError(
            f"{what} of student and teacher differ: {list(student.shape)} and "
            f"{list(teacher.shape)}\n  Distil from a model of the same sizes."
        )
