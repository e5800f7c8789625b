"""Runs two callables side by side on inputs of several shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.capture.state import tracing_state
from fgcompile.errors import VerifyError
from fgcompile.program import Program
from fgcompile.targets.cases import shapes_of, tensors_of, verification_inputs
from fgcompile.targets.double import CANNOT, run_in_double, weight_rounding

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""Largest difference allowed, relative to the largest magnitude of an output.

Where the terms of an output happen to cancel, what is left of them is small, but their
rounding is not. There its largest magnitude over all inputs counts, if the rounding of
weights explains the difference.
"""

ROUNDINGS = 16
"""How many roundings of a weight may add up."""

_SMALLEST = 1e-3
"""Outputs below this count as this large."""

REMEDY = (
    "  Nothing was written. This is a bug in fgcompile: please report the model; "
    "verify=False would give you a wrong one."
)


@dataclass(frozen=True)
class Comparison:
    """What a verification saw: the largest differences over `cases` inputs."""

    absolute: float
    relative: float
    cases: int


@dataclass(frozen=True)
class _Difference:
    """How far one output is off on one input, and how large it is there."""

    output: int
    absolute: float
    magnitude: float
    dtype: torch.dtype
    numbers: bool
    inputs: dict[str, Any]


def verify_equal(
    program: Program,
    candidate: Callable[..., Any],
    *,
    reference: Callable[..., Any] | None = None,
    name: str = "the lowered model",
    scale: float = 1.0,
    visible_only: bool = False,
    remedy: str = REMEDY,
) -> Comparison:
    """Runs `candidate` and `reference` on inputs of all `SHAPES`.

    Args:
        program: Says what inputs look like, and is the reference by default.
        candidate: Takes the inputs by keyword, returns the same structure or the
            flat list of outputs.
        reference: What it should equal.
        name: What the candidate is called in errors.
        scale: Factor on the tolerance.
        visible_only: Compare only where a mask of the inputs is set. In a causal
            model a row of left padding attends to nothing, and runtimes differ in
            what they make of an empty softmax; no other position reads it.
        remedy: Last line of the error for a difference.

    Raises:
        VerifyError: If an output is missing, has another shape, holds NaN where the
            reference does not, or differs by more than `TOLERANCE`.
    """
    reference = reference or program
    found: list[_Difference] = []
    cases = 0
    for case, inputs in enumerate(verification_inputs(program)):
        expected = _run_reference(reference, program, case, inputs)
        if expected is None:
            continue
        actual = _run_candidate(candidate, program, case, inputs, name)
        if actual is None:
            continue
        if visible_only:
            expected, actual = (_visible(t, inputs) for t in (expected, actual))
        found += _differences(program, expected, actual, name, inputs)
        cases += 1
    if not cases:
        raise VerifyError(
            "the model fails on its own example inputs, so nothing could be verified\n"
            "  Give example_inputs that its forward accepts."
        )
    judged = _judge(program, found, cases, name, scale, remedy)
    _refuse_nan(program, found)
    return judged


def _refuse_nan(program: Program, found: list[_Difference]) -> None:
    numbers = {each.output for each in found if each.numbers}
    without = [each.output for each in found if each.output not in numbers]
    if without:
        raise VerifyError(
            f"output {_label(program, without[0])} of the model is NaN or infinite "
            "everywhere, so nothing could be verified\n"
            "  Look for NaN in its buffers and in example_inputs."
        )


@contextlib.contextmanager
def remembered_outputs(program: Program) -> Iterator[None]:
    """While the body runs, verifications run `program` once on each input.

    It must stay as it is.
    """
    program.cache[_OUTPUTS] = {}
    try:
        yield
    finally:
        del program.cache[_OUTPUTS]


_OUTPUTS = "outputs"


def _outputs(
    run: Callable[..., Any], program: Program, case: int, inputs: dict[str, Any]
) -> list[Tensor]:
    """What `run` makes of the inputs of a case."""
    known = program.cache.get(_OUTPUTS, {}) if run is program else {}
    if case not in known:
        with torch.no_grad():
            known[case] = tensors_of(run(**inputs))
    found: list[Tensor] = known[case]
    return found


def _run_reference(
    reference: Callable[..., Any], program: Program, case: int, inputs: dict[str, Any]
) -> list[Tensor] | None:
    """Outputs of the reference; None where it refuses the inputs itself.

    A model may have limits that its graph does not show, such as the number of
    positions in a table. The example inputs are always among those that run.
    """
    try:
        return _outputs(reference, program, case, inputs)
    except Exception:  # the user's code may refuse in its own way
        return None


def _run_candidate(
    candidate: Callable[..., Any],
    program: Program,
    case: int,
    inputs: dict[str, Any],
    name: str,
) -> list[Tensor] | None:
    """Outputs of the candidate; None where the program or its model fails too.

    A branch that nobody reads is not in the graph, but the model's own code, which a
    candidate may run, still takes no inputs that the branch refuses.

    Raises:
        VerifyError: If only the candidate fails.
    """
    try:
        return _outputs(candidate, program, case, inputs)
    except Exception as error:  # as may any runtime
        if _run_reference(program, program, case, inputs) is None:
            return None
        if case and not _model_runs(program, inputs):
            return None
        first = str(error).strip().partition("\n")[0]
        raise VerifyError(
            f"{name} fails where the model runs: {type(error).__name__}: {first}\n"
            f"  at inputs {shapes_of(inputs)}\n"
            "  Nothing was written. Please report the model."
        ) from error


def _model_runs(program: Program, inputs: dict[str, Any]) -> bool:
    """Whether the model that the program came from, if any, takes `inputs`."""
    model = program.user_model
    return model is None or (
        _run_reference(lambda **kwargs: outputs_of(model, kwargs), program, 0, inputs)
        is not None
    )


def _differences(
    program: Program,
    expected: list[Tensor],
    actual: list[Tensor],
    name: str,
    inputs: dict[str, Any],
) -> Iterator[_Difference]:
    """How far the outputs on one input are from each other.

    Raises:
        VerifyError: If one is missing or has another shape.
    """
    shapes = shapes_of(inputs)
    if len(expected) != len(actual):
        raise VerifyError(
            f"{name} returns {len(actual)} outputs, the model {len(expected)}\n"
            f"  at inputs {shapes}"
        )
    for k, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if want.shape != got.shape:
            raise VerifyError(
                f"output {_label(program, k)} of {name} has shape {list(got.shape)}, "
                f"the model's is {list(want.shape)}\n  at inputs {shapes}"
            )
        difference, magnitude = largest_difference(want, got)
        numbers = _has_numbers(want)
        yield _Difference(k, difference, magnitude, want.dtype, numbers, inputs)


def _judge(
    program: Program,
    found: list[_Difference],
    cases: int,
    name: str,
    scale: float,
    remedy: str,
) -> Comparison:
    """The largest of the differences.

    Raises:
        VerifyError: If one is larger than rounding makes it.
    """
    # Kernels of another runtime round what is inside as well.
    inner = _inner_rounding(program) if scale > 1 else 0.0
    sizes: dict[int, float] = {}
    for each in found:
        sizes[each.output] = max(sizes.get(each.output, _SMALLEST), each.magnitude)
    for each in found:
        rounding = scale * max(TOLERANCE.get(each.dtype, 0.0), inner)
        if each.absolute <= rounding * max(each.magnitude, _SMALLEST):
            continue
        if not (
            each.absolute <= rounding * sizes[each.output]
            and rounding_explains(
                each.absolute / scale, program, each.inputs, each.output
            )
        ):
            raise VerifyError(
                f"output {_label(program, each.output)} of {name} differs by "
                f"{each.absolute:.3g}, "
                f"{each.absolute / max(each.magnitude, 1e-30):.3g} of its magnitude "
                f"{each.magnitude:.3g}\n  at inputs {shapes_of(each.inputs)}\n{remedy}"
            )
    return Comparison(
        max((each.absolute for each in found), default=0.0),
        max((e.absolute / max(e.magnitude, _SMALLEST) for e in found), default=0.0),
        cases,
    )


def rounding_explains(
    difference: float, program: Program, inputs: dict[str, Any], output: int
) -> bool:
    """Whether an output is as far off as rounding makes it where its terms cancel.

    That is measured in float64, with weights as far off as if each was rounded once.
    """
    rounding = weight_rounding(program)
    try:
        exact, rough = (run_in_double(program, inputs, r) for r in (0.0, rounding))
    except CANNOT:
        return False
    return difference <= ROUNDINGS * largest_difference(exact[output], rough[output])[0]


def _inner_rounding(program: Program) -> float:
    """Tolerance of the coarsest type that a value inside of the program has."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    types = {value.dtype for value in values if isinstance(value, Tensor)}
    return max((TOLERANCE.get(dtype, 0.0) for dtype in types), default=0.0)


def _label(program: Program, k: int) -> str:
    return program.output_names[k] if k < len(program.output_names) else str(k)


def _has_numbers(output: Tensor) -> bool:
    floating = output.is_floating_point() or output.is_complex()
    return not output.numel() or not floating or bool(output.isfinite().any())


def _visible(outputs: list[Tensor], inputs: dict[str, Any]) -> list[Tensor]:
    """`outputs` with zeros at positions that a mask `[batch, length]` hides."""
    masks = [
        m.cpu()
        for m in inputs.values()
        if isinstance(m, Tensor) and m.dim() == 2 and bool(((m == 0) | (m == 1)).all())
    ]
    for mask in masks:
        outputs = [
            o.masked_fill(mask.view(*mask.shape, *[1] * (o.dim() - 2)) == 0, 0)
            if o.shape[:2] == mask.shape
            else o
            for o in outputs
        ]
    return outputs


def largest_difference(want: Tensor, got: Tensor) -> tuple[float, float]:
    """Largest absolute difference and magnitude; equal NaN and infinities agree."""
    if not want.numel():
        return 0.0, 0.0
    if not (want.is_floating_point() or want.is_complex()):
        return float((want != got).sum()), 1.0
    if want.is_complex():
        want, got = torch.view_as_real(want), torch.view_as_real(got)
    want, got = want.double(), got.double()
    same = (want == got) | (want.isnan() & got.isnan())
    difference = torch.where(same, 0.0, (want - got).abs())
    finite = want[want.isfinite()]
    magnitude = float(finite.abs().max()) if finite.numel() else 0.0
    return float(difference.max()), magnitude


def outputs_of(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an eager model returns in eval mode, without caches."""
    with tracing_state(model):
        return tensors_of(model(**inputs))
