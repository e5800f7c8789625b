"""Two programs in float64, where rounding hides nothing.

What a float32 model computes is only known to some 1e-5 of its largest output, in
bfloat16 to a few percent. A norm whose `eps` is off, or a bias that is missing beside
a large one, may be smaller than that. So both programs are run in float64 as well:
weights are converted as they are read, one at a time, and casts inside of the program
lead to float64. If lowering has done nothing but slice, they must agree to 1e-9; where
it has folded something into weights, to the rounding of those. What that rounding
does to an output whose terms cancel is measured, with weights that are a little off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from fgcompile.errors import VerifyError
from fgcompile.program import Program
from fgcompile.targets.verify import (
    REMEDY,
    largest_difference,
    shapes_of,
    verification_inputs,
)

EXACT = 1e-9
"""Largest difference of sliced weights, relative to the largest value of an output."""

SMALLEST = 1e-5
"""Outputs below this count as this large: sums that cancel leave some 1e-16."""

ROUNDINGS = 16
"""How many roundings of a folded weight may add up."""

_SEED = 0

_CASES = 2
_DOUBLE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def verify_precisely(program: Program, lowered: Program) -> None:
    """Runs `lowered` and `program` in float64.

    Programs in float64 are left to `verify_equal`, as are those that call an operator
    that has no kernel for it.

    Raises:
        VerifyError: If an output differs by more than rounding explains.
    """
    types = {tensor.dtype for tensor in _floating(program).values()}
    coarse = types & _DOUBLE.keys()
    if not coarse:
        return
    rounding = max(torch.finfo(dtype).eps for dtype in coarse)
    sliced = only_sliced(program, lowered)
    bound = EXACT if sliced else ROUNDINGS * rounding
    runs = list(_runs(program, lowered))
    sizes = _sizes([want for _, want, _ in runs])
    for inputs, want, got in runs:
        allowed = [bound * size for size in sizes]
        wrong = _first_wrong(want, got, allowed)
        if wrong is not None and not sliced:
            rough = _run(program, inputs, rounding)
            off = [ROUNDINGS * d for d in _distances(want, rough)]
            wrong = _first_wrong(want, got, [*map(max, allowed, off)])
        if wrong is not None:
            raise _error(program, wrong, want[wrong], got[wrong], inputs)


def _runs(
    program: Program, lowered: Program
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Inputs, and the outputs of both programs; not where they cannot run."""
    for inputs in itertools.islice(verification_inputs(program), _CASES):
        try:
            yield inputs, _run(program, inputs), _run(lowered, inputs)
        except (IndexError, NotImplementedError, RuntimeError):
            continue


def only_sliced(program: Program, lowered: Program) -> bool:
    """Whether each number that `lowered` reads is one that `program` reads there."""
    before = _floating(program)
    return all(
        name in before and _is_slice(tensor, before[name], lowered.kept.get(name, {}))
        for name, tensor in _floating(lowered).items()
    )


def _is_slice(tensor: Tensor, whole: Tensor, kept: dict[int, Tensor]) -> bool:
    for dim, indices in kept.items():
        whole = whole.index_select(dim, indices.to(whole.device))
    return torch.equal(tensor, whole)


def _floating(program: Program) -> dict[str, Tensor]:
    """The floating-point tensors that a program reads, by name."""
    nodes = program.graph.find_nodes(op="get_attr")
    tensors = {str(node.target): program.parameter(node) for node in nodes}
    return {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }


@torch.no_grad()
def _run(
    program: Program, inputs: dict[str, Any], rounding: float = 0.0
) -> list[Tensor]:
    """Outputs in float64, of weights that are off by a random part of `rounding`."""
    leaves = pytree.tree_leaves(list(inputs.values()))
    runner = _DoubleInterpreter(program.graph_module)
    if rounding:
        runner = _RoughInterpreter(program.graph_module, rounding)
    outputs = runner.run(*leaves, enable_io_processing=False)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


class _DoubleInterpreter(Interpreter):
    """Runs every operator in float64."""

    def run_node(self, n: Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_function(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        args, kwargs = pytree.tree_map(_doubled, (args, kwargs))
        if target is torch.ops.aten.rms_norm.default:
            args, kwargs = self._with_eps(args, kwargs), {}
        return super().call_function(target, args, kwargs)

    def _with_eps(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Arguments of an RMS norm; its default follows from the model's type."""
        names = ("input", "normalized_shape", "weight", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("eps") is None:
            given["eps"] = torch.finfo(self.node.meta["val"].dtype).eps
        return tuple(given.get(name) for name in names)


class _RoughInterpreter(_DoubleInterpreter):
    """The same, with weights as far off as if each was rounded once."""

    def __init__(self, module: GraphModule, rounding: float) -> None:
        super().__init__(module)
        self.rounding = rounding
        self.generator = torch.Generator().manual_seed(_SEED)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        off = torch.rand(value.shape, generator=self.generator, dtype=torch.float64)
        return value.double() * (1 + self.rounding * (2 * off.to(value.device) - 1))


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(_DOUBLE.get(value.dtype, value.dtype))
    return _DOUBLE.get(value, value) if isinstance(value, torch.dtype) else value


def _sizes(outputs: Sequence[list[Tensor]]) -> list[float]:
    """The largest magnitude of each output over all inputs."""
    each = [[largest_difference(t, t)[1] for t in tensors] for tensors in outputs]
    return [max(SMALLEST, *column) for column in zip(*each, strict=True)]


def _distances(want: list[Tensor], got: list[Tensor]) -> list[float]:
    return [
        largest_difference(one, other)[0] if one.shape == other.shape else 0.0
        for one, other in zip(want, got, strict=True)  # verify_equal compares shapes
    ]


def _first_wrong(
    want: list[Tensor], got: list[Tensor], allowed: Sequence[float]
) -> int | None:
    """The first output that differs by more than is allowed."""
    pairs = zip(_distances(want, got), allowed, strict=True)
    return next((k for k, (d, most) in enumerate(pairs) if not d <= most), None)


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
