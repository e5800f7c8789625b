"""Which heads and channels S2FT trains.

Source: S2FT (arXiv 2412.06289), section 3.2 and table 4: at random, or by the norm of
the weights, of the activations, of both together, or of the gradients, the largest or
the smallest of each group. In the paper small activations did best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import CoupledGroup
from fgcompile.capture.state import eval_mode
from fgcompile.errors import GateError
from fgcompile.gates.hooks import loss_of
from fgcompile.gates.matrices import Matrix, oriented, units_along, weight_of

Criterion = Literal["random", "weight", "activation", "product", "gradient"]

Readers = Mapping[str, list[Matrix]]
"""By name of a group, the matrices that sum over its units."""


def readers_of(groups: list[CoupledGroup], found: list[Matrix]) -> Readers:
    """The matrices with columns along each group."""
    return {
        group.name: [m for m in found if units_along(group, m, m.columns) is not None]
        for group in groups
    }


def rank_units(
    model: nn.Module,
    groups: list[CoupledGroup],
    readers: Readers,
    by: Criterion,
    largest: bool,
    seed: int,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The units of each group, those to select first.

    Args:
        model: What is calibrated.
        groups: What to rank.
        readers: The matrices whose columns are measured.
        by: What is measured; all but the first two need `calibration`.
        largest: Whether the largest come first, or the smallest.
        seed: Of the random order.
        calibration: Inputs of the model, each a tensor, a tuple or a dict. Where a
            dict has an `attention_mask [batch length]`, activations
            `[batch length ...]` count where it is not 0.
        loss: From outputs to a scalar, for gradients; None takes the model's own loss.

    Raises:
        GateError: If calibration data is missing, or a loss to differentiate.
    """
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        return {g.name: torch.randperm(g.size, generator=generator) for g in groups}
    scores = {
        group.name: _score(model, group, readers[group.name], by, statistics)
        for statistics in [_statistics(model, readers, by, calibration, loss)]
        for group in groups
    }
    return {
        name: score.argsort(descending=largest, stable=True)
        for name, score in scores.items()
    }


Statistics = dict[str, Tensor]
"""By parameter, a sum of squares for each column."""


def _score(
    model: nn.Module,
    group: CoupledGroup,
    readers: list[Matrix],
    by: Criterion,
    measured: Statistics,
) -> Tensor:
    """The norm of each unit's columns, over all readers of the group."""
    weights = {
        m.parameter: oriented(weight_of(model, m).detach(), m).float().square().sum(0)
        for m in readers
    }
    if by == "weight":
        return _norms(group, readers, weights)
    norms = _norms(group, readers, measured)
    return norms * _norms(group, readers, weights) if by == "product" else norms


def _norms(group: CoupledGroup, readers: list[Matrix], squares: Statistics) -> Tensor:
    total = torch.zeros(group.size)
    for matrix in readers:
        index = units_along(group, matrix, matrix.columns)
        assert index is not None
        inside = index >= 0
        if matrix.parameter in squares:  # else no batch came there
            found = squares[matrix.parameter].cpu()
            total.index_add_(0, index[inside], found[inside])
    return total.sqrt()


def _statistics(
    model: nn.Module,
    readers: Readers,
    by: Criterion,
    calibration: Iterable[Any] | None,
    loss: Callable[[Any], Tensor] | None,
) -> Statistics:
    if by == "weight":
        return {}
    measured: Statistics = {}
    padding = _Padding()
    distinct = {m.parameter: m for each in readers.values() for m in each}
    batches = 0
    watch = (
        _gradients(model, list(distinct.values()), measured)
        if by == "gradient"
        else _activations(model, list(distinct.values()), measured, padding)
    )
    with eval_mode(model), watch, torch.set_grad_enabled(by == "gradient"):
        for batch in calibration or ():
            batches += 1
            inputs = batch if isinstance(batch, Mapping) else {}
            padding.mask = inputs.get("attention_mask")
            outputs = model(*_positional(batch), **inputs)
            if by == "gradient":
                value = loss_of(outputs, inputs) if loss is None else loss(outputs)
                _checked(value).backward()
    if not batches:
        raise GateError(
            f"selection by {by} needs calibration data\n"
            "  Pass calibration=[batch, ...]; the paper takes 1 % of the data."
        )
    return measured


def _positional(batch: Any) -> tuple[Any, ...]:
    if isinstance(batch, Mapping):
        return ()
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _checked(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise GateError(
            "selection by gradient needs a loss, which is a scalar\n"
            "  Put labels into the calibration batches of a model that returns a loss "
            "then, or pass loss=a function of its outputs."
        )
    return value


class _Padding:
    """Which tokens of the current batch are padding, if that is known."""

    def __init__(self) -> None:
        self.mask: Any = None

    def without(self, x: Tensor) -> Tensor:
        """The rows of `x [... inputs]` that are not padding, `[rows inputs]`."""
        mask = self.mask
        known = isinstance(mask, Tensor) and mask.dim() == 2 < x.dim()
        if known and x.shape[:2] == mask.shape:
            x = x[mask.to(x.device) != 0]
        return x.reshape(-1, x.shape[-1])


@contextmanager
def _activations(
    model: nn.Module, found: list[Matrix], measured: Statistics, padding: _Padding
) -> Iterator[None]:
    handles = []
    for matrix in found:
        hook = _ColumnSquares(matrix.parameter, measured, padding)
        module = model.get_submodule(matrix.reader)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ColumnSquares:
    def __init__(self, name: str, measured: Statistics, padding: _Padding) -> None:
        self.name, self.measured, self.padding = name, measured, padding

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = (args or tuple(kwargs.values()))[0].detach().float()
        squares = self.padding.without(x).square().sum(0)
        self.measured[self.name] = self.measured.get(self.name, 0) + squares


@contextmanager
def _gradients(
    model: nn.Module, found: list[Matrix], measured: Statistics
) -> Iterator[None]:
    """Every gradient is measured and dropped as soon as it is there."""
    trained = {p: p.requires_grad for p in model.parameters()}
    for parameter in trained:
        parameter.requires_grad_(False)
    handles = []
    for matrix in found:
        weight = weight_of(model, matrix).requires_grad_()
        hook = _ColumnGradients(matrix, measured)
        handles.append(weight.register_post_accumulate_grad_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)


class _ColumnGradients:
    def __init__(self, matrix: Matrix, measured: Statistics) -> None:
        self.matrix, self.measured = matrix, measured

    def __call__(self, weight: Tensor) -> None:
        assert weight.grad is not None
        squares = oriented(weight.grad, self.matrix).float().square().sum(0)
        name = self.matrix.parameter
        self.measured[name] = self.measured.get(name, 0) + squares
        weight.grad = None
