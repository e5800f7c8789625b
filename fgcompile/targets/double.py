"""Runs of a program in float64, where rounding hides nothing.

Weights are converted as they are read, one at a time, and casts inside of the program
lead to float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from fgcompile.program import Program

CANNOT = (IndexError, NotImplementedError, RuntimeError)
"""What a run raises where an operator has no kernel for float64."""

_SEED = 0
_DOUBLE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def floating(program: Program) -> dict[str, Tensor]:
    """The floating-point tensors that a program reads, by name."""
    nodes = program.graph.find_nodes(op="get_attr")
    tensors = {str(node.target): program.parameter(node) for node in nodes}
    return {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }


def weight_rounding(program: Program) -> float:
    """Largest relative rounding of the types of its weights, of those below float64."""
    types = {tensor.dtype for tensor in floating(program).values()} & _DOUBLE.keys()
    return max((torch.finfo(dtype).eps for dtype in types), default=0.0)


@torch.no_grad()
def run_in_double(
    program: Program, inputs: dict[str, Any], rounding: float = 0.0
) -> list[Tensor]:
    """Outputs in float64.

    Args:
        program: Its weights may have any type.
        inputs: Of its model's forward, by name.
        rounding: Every weight is off by a random part of it, relative to itself: the
            same one for the same program.
    """
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
