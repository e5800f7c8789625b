"""A captured model: a flat FX graph of ATen ops with its tensors and names."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from fgcompile.errors import CaptureError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclass
class Program:
    """A model as a straight line of ATen calls.

    Attributes:
        graph_module: Placeholders, `get_attr` nodes (parameters, buffers, constants),
            calls of ATen or registered custom ops, one output. Its tensors are those
            of `user_model`, not copies.
        inputs: Example inputs by forward-argument name, nested as they were given.
        user_model: The eager model it came from, where there is one.
        aliases: Other names of a tied parameter -> its canonical name, which is the
            only one that `get_attr` nodes use.
        output_names: One name per flattened output.
        kept: For each parameter that lost units, the original indices that are left
            along each dim that shrank.
        optional: Inputs that are zeros of the first input's shape unless given.
        cache: What analyses remember about this program; a copy begins without.
    """

    graph_module: GraphModule
    inputs: dict[str, Any]
    user_model: nn.Module | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    output_names: list[str] = field(default_factory=list)
    kept: dict[str, dict[int, torch.Tensor]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def graph(self) -> Graph:
        """The FX graph."""
        return self.graph_module.graph

    @property
    def placeholders(self) -> list[Node]:
        """Input nodes, in the order of the flattened inputs."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def input_names(self) -> list[str]:
        """One name per flattened input; nested ones are joined by `_`."""
        return [str(node.target) for node in self.placeholders]

    @property
    def input_tensors(self) -> list[Any]:
        """Example inputs, flattened in the order of `input_names`."""
        return pytree.tree_leaves(list(self.inputs.values()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the model, in the structure that its forward returns.

        Raises:
            CaptureError: If an input is missing or unknown, or a size or a constant
                differs from what capture had to fix.
        """
        ordered = self.bind(args, kwargs)
        self._check(pytree.tree_leaves(list(ordered.values())))
        return self.graph_module(**ordered)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All inputs by name, in the order of `inputs`.

        Raises:
            CaptureError: If an input is missing or unknown.
        """
        given = dict(zip(self.inputs, args, strict=False)) | {
            name: value
            for name, value in kwargs.items()
            if name in self.inputs or value is not None
        }
        fixed = {
            name: value
            for name, value in self.inputs.items()
            if not _holds_tensors(value)
        }
        first = next(iter(given.values()), None)
        if isinstance(first, torch.Tensor):
            absent = [name for name in self.optional if name not in given]
            fixed |= {name: torch.zeros_like(first) for name in absent}
        if (
            len(args) > len(self.inputs)
            or not given.keys() <= self.inputs.keys() <= given.keys() | fixed.keys()
        ):
            raise CaptureError(
                f"program takes inputs {list(self.inputs)}, got "
                f"{len(args)} positional and {sorted(kwargs)}\n"
                "  Capture again with the inputs that you want to call it with."
            )
        return {name: {**fixed, **given}[name] for name in self.inputs}

    def parameter(self, node: Node) -> torch.Tensor:
        """The tensor behind a `get_attr` node."""
        tensor: Any = self.graph_module
        for name in str(node.target).split("."):
            tensor = getattr(tensor, name)
        assert isinstance(tensor, torch.Tensor), node
        return tensor

    def is_parameter(self, node: Node) -> bool:
        """Whether `node` reads a parameter."""
        return node.op == "get_attr" and isinstance(self.parameter(node), nn.Parameter)

    def is_buffer(self, node: Node) -> bool:
        """Whether `node` reads a buffer or a constant that tracing lifted."""
        return node.op == "get_attr" and not self.is_parameter(node)

    def copy(self) -> Program:
        """A program with its own graph and modules; the tensors are shared."""
        graph = Graph()
        value_map: dict[Node, Node] = {}
        graph.output(graph.graph_copy(self.graph, value_map))
        for old, new in value_map.items():
            new.meta = old.meta.copy()
        last = next(iter(reversed(graph.nodes)))
        last.meta = next(iter(reversed(self.graph.nodes))).meta.copy()
        graph.set_codegen(self.graph._codegen)
        module = GraphModule(self.graph_module, graph, type(self.graph_module).__name__)
        return replace(
            self,
            graph_module=module,
            inputs=dict(self.inputs),
            aliases=dict(self.aliases),
            output_names=list(self.output_names),
            kept={name: dict(dims) for name, dims in self.kept.items()},
            cache={},
        )

    def _check(self, leaves: list[Any]) -> None:
        for node, leaf, seen in zip(
            self.placeholders, leaves, self.input_tensors, strict=True
        ):
            if not isinstance(leaf, torch.Tensor):
                if leaf != seen:
                    raise CaptureError(
                        f"input {node.target} is {leaf!r}, but the program was "
                        f"captured for {seen!r}\n"
                        "  Capture again with that value: it is a part of the program."
                    )
            elif not _fits(leaf.shape, node.meta.get("val")):
                allowed = map(_range_text, node.meta["val"].shape)
                raise CaptureError(
                    f"input {node.target} has shape {_text(leaf.shape)}, but the "
                    f"program was captured for {_text(allowed)}\n"
                    "  Capture again with example inputs of that shape."
                )


def _text(sizes: Iterable[Any]) -> str:
    return f"[{' '.join(map(str, sizes))}]"


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _fits(shape: torch.Size, value: Any) -> bool:
    """Whether a traced tensor stands for tensors of that shape too."""
    if not isinstance(value, torch.Tensor):
        return True
    return len(shape) == len(value.shape) and all(
        low <= got <= high
        for (low, high), got in zip(map(size_range, value.shape), shape, strict=True)
    )


def size_range(size: int | torch.SymInt) -> tuple[int, float]:
    """Smallest and largest size that a traced one stands for, both included.

    The code of a model may choose by a size; its graph is one choice only. Tracing
    takes every size for 2 or more, of which nothing follows for 0 and 1.
    """
    if isinstance(size, int):
        return size, size
    bounds = size.node.shape_env.bound_sympy(size.node.expr)
    low = int(bounds.lower) if bounds.lower.is_Integer else 0
    high = int(bounds.upper) if bounds.upper.is_Integer else math.inf
    return (0 if low <= 2 else low), high


def _range_text(size: int | torch.SymInt) -> str:
    low, high = size_range(size)
    if low == high:
        return str(low)
    if (low, high) == (0, math.inf):
        return "*"
    return f"{low}.." if high == math.inf else f"{low}..{high}"


def module_path(node: Node) -> str:
    """Path of the innermost module that `node` was traced in, "" for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if not path.startswith("_empty"):
            return path.split("@")[0]
    return ""


def source_line(node: Node) -> str:
    """Where the user's code called `node`, as "file.py:112"; "" where unknown.

    Frames inside torch itself are skipped if the user's code has any. Relative paths
    are of frames that torch makes up, for nodes that no code called.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if os.path.isabs(frame[0])]
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    for file, line in reversed(own or frames):
        return f"{os.path.basename(file)}:{line}"
    return ""


def arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by the names of its operator's schema.

    Optional arguments that were not given have their default.
    """
    schema = node.target._schema  # type: ignore[union-attr]
    values = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            values[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value
    return values


def without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, with size 1 along every dim whose entries share one place in memory.

    Such dims come from `expand`. What holds for all of their entries can be found on
    one, in no memory of its own.
    """
    for dim in range(tensor.dim()):
        if tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def select(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """`tensor.index_select(dim, index)`; repeats still share their memory."""
    shape = list(tensor.shape)
    shape[dim] = index.numel()
    core = without_repeats(tensor)
    if core.shape[dim] == tensor.shape[dim]:
        core = core.index_select(dim, index)
    return core.expand(shape)
