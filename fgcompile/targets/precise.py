"""Two programs in float64, where rounding hides nothing.

What a float32 model computes is only known to some 1e-5 of its largest output, in
bfloat16 to a few percent. A norm whose `eps` is off, or a bias that is missing beside
a large one, may be smaller than that. So both programs are run in float64 as well:
weights are converted as they are read, one at a time, and casts inside of the program
lead to float64. If lowering has done nothing but slice, they must agree to 1e-9; where
it has folded something into weights, to the rounding of those.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
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

ROUNDINGS = 16
"""How many roundings of a folded weight may add up."""

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
    bound = EXACT if only_sliced(program, lowered) else ROUNDINGS * rounding
    for inputs in itertools.islice(verification_inputs(program), _CASES):
        try:
            with torch.no_grad():
                want, got = (_run(each, inputs) for each in (program, lowered))
        except (IndexError, NotImplementedError, RuntimeError):
            continue
        _compare(program, want, got, inputs, bound)


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


def _run(program: Program, inputs: dict[str, Any]) -> list[Tensor]:
    leaves = pytree.tree_leaves(list(inputs.values()))
    runner = _DoubleInterpreter(program.graph_module)
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


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(_DOUBLE.get(value.dtype, value.dtype))
    return _DOUBLE.get(value, value) if isinstance(value, torch.dtype) else value


def _compare(
    program: Program,
    want: list[Tensor],
    got: list[Tensor],
    inputs: dict[str, Any],
    bound: float,
) -> None:
    for k, (one, other) in enumerate(zip(want, got, strict=True)):
        if one.shape != other.shape:
            continue  # verify_equal says so
        difference, magnitude = largest_difference(one, other)
        if not difference <= bound * max(magnitude, 1e-3):
            label = program.output_names[k] if k < len(program.output_names) else str(k)
            raise VerifyError(
                f"output {label} of the lowered model differs by {difference:.3g} in "
                f"float64, {difference / max(magnitude, 1e-30):.3g} of its magnitude "
                f"{magnitude:.3g}, which rounding does not explain\n"
                f"  at inputs {shapes_of(inputs)}\n{REMEDY}"
            )
