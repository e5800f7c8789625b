"""Before and after a pass as text, and that nothing but the text changed."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile import GateConfig, gates, insert_gates
from fgcompile.capture import capture, other_inputs
from fgcompile.passes.base import Pass, run_passes
from fgcompile.passes.pipeline import PREPARE
from fgcompile.printer import show
from fgcompile.program import Program

SIZES = ((1, 5), (2, 3), (4, 9))
"""Batch sizes and lengths at which programs are compared."""


def check_pass(rewrite: Pass, program: Program, expected: str) -> Program:
    """`program` before and after `rewrite` prints as `expected`; outputs are equal.

    A second run finds nothing to do. Programs are float64, so that equal means equal
    up to the order of sums. EXPECTTEST_ACCEPT=1 rewrites the text.
    """
    reference, before = program.copy(), show(program)
    assert rewrite(program)
    text = f"before\n{before}\n\nafter\n{show(program)}\n"
    assert_expected_inline(text, expected, skip=1)
    assert_equal(reference, program)
    assert not rewrite(program)
    return program


def check_unchanged(rewrite: Pass, program: Program) -> None:
    """`rewrite` finds nothing to do, says so, and leaves the program alone."""
    before = show(program)
    assert not rewrite(program)
    assert show(program) == before


@torch.no_grad()
def assert_equal(reference: Program, program: Program) -> None:
    """Both compute the same at several sizes."""
    for batch, length in SIZES:
        inputs = other_inputs(reference, batch, length, seed=batch)
        want, got = (pytree.tree_leaves(p(**inputs)) for p in (reference, program))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        assert all(bool(w.isfinite().all()) for w in want)


def program_of(model: nn.Module, *inputs: Tensor) -> Program:
    """`model` in float64, captured; constants are stored, as `lower` does first."""
    program = capture(model.double().eval(), _double(inputs))
    run_passes(program, PREPARE)
    return program


def gated_program(
    model: nn.Module,
    *inputs: Tensor,
    closed: dict[str, list[int]] | None = None,
    kinds: tuple[str, ...] = ("mlp", "head"),
) -> Program:
    """`model` with gates of which some units are closed, captured."""
    config = GateConfig(kinds=kinds, gate="plain")
    insert_gates(model.double().eval(), _double(inputs), config)
    for name, units in (closed or {}).items():
        gates(model)[name].close(units)
    return program_of(model, *inputs)


def _double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


@torch.no_grad()
def zero(parameter: Any, *indices: int, dim: int = 0) -> None:
    """Zeros rows (or what else `dim` counts) of a parameter."""
    parameter.index_fill_(dim, torch.tensor(indices), 0.0)


def shapes(program: Program) -> dict[str, list[int]]:
    """Sizes of all parameters."""
    parameters = program.graph_module.named_parameters()
    return {name: list(parameter.shape) for name, parameter in parameters}
