"""Two programs in float64, where rounding hides nothing.

What a float32 model computes is only known to some 1e-5 of its largest output, in
bfloat16 to a few percent. A norm whose `eps` is off, or a bias that is missing beside
a large one, may be smaller than that. So both programs are run in float64 as well. If
lowering has done nothing but slice, they must agree to 1e-9; where it has folded
something into weights, to the rounding of those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fgcompile.errors import VerifyError
from fgcompile.program import Program
from fgcompile.targets.cases import shapes_of, verification_inputs
from fgcompile.targets.double import CANNOT, floating, run_in_double, weight_rounding
from fgcompile.targets.verify import (
    REMEDY,
    ROUNDINGS,
    largest_difference,
    rounding_explains,
)

EXACT = 1e-9
"""Largest difference of sliced weights, relative to the largest value of an output."""

SMALLEST = 1e-5
"""Outputs below this count as this large: sums that cancel leave some 1e-16."""

_CASES = 2


def verify_precisely(program: Program, lowered: Program) -> None:
    """Runs `lowered` and `program` in float64.

    Programs in float64 are left to `verify_equal`, as are those that call an operator
    that has no kernel for it.

    Raises:
        VerifyError: If an output differs by more than rounding explains.
    """
    rounding = weight_rounding(program)
    if not rounding:
        return
    sliced = only_sliced(program, lowered)
    bound = EXACT if sliced else ROUNDINGS * rounding
    runs = list(_runs(program, lowered))
    sizes = [map(_size, want) for _, want, _ in runs]
    usual = [max(column) for column in zip(*sizes, strict=True)]
    for inputs, want, got in runs:
        for k, (one, other) in enumerate(zip(want, got, strict=True)):
            if one.shape != other.shape:
                continue  # verify_equal says so
            difference = largest_difference(one, other)[0]
            if difference <= bound * _size(one):
                continue
            if sliced or not (
                difference <= bound * usual[k]
                and rounding_explains(difference, program, inputs, k)
            ):
                raise _error(program, k, one, other, inputs)


def _runs(
    program: Program, lowered: Program
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Inputs, and the outputs of both programs; not where they cannot run."""
    for inputs in itertools.islice(verification_inputs(program), _CASES):
        try:
            want, got = (run_in_double(each, inputs) for each in (program, lowered))
        except CANNOT:
            continue
        yield inputs, want, got


def only_sliced(program: Program, lowered: Program) -> bool:
    """Whether each number that `lowered` reads is one that `program` reads there."""
    before = floating(program)
    return all(
        name in before and _is_slice(tensor, before[name], lowered.kept.get(name, {}))
        for name, tensor in floating(lowered).items()
    )


def _is_slice(tensor: Tensor, whole: Tensor, kept: dict[int, Tensor]) -> bool:
    for dim, indices in kept.items():
        whole = whole.index_select(dim, indices.to(whole.device))
    return torch.equal(tensor, whole)


def _size(output: Tensor) -> float:
    return max(SMALLEST, largest_difference(output, output)[1])


def _error(
    program: Program, k: int, one: Tensor, other: Tensor, inputs: dict[str, Any]
) -> VerifyError:
    difference, magnitude = largest_difference(one, other)
    label = program.output_names[k] if k < len(program.output_names) else str(k)
    return VerifyError(
        f"output {label} of the lowered model differs by {difference:.3g} in "
        f"float64, {difference / max(magnitude, 1e-30):.3g} of its magnitude "
        f"{magnitude:.3g}, which rounding does not explain\n"
        f"  at inputs {shapes_of(inputs)}\n{REMEDY}"
    )
