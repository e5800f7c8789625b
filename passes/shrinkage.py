"""What the rewrites of `eliminate_dead_dims` share: old facts beside the new graph.

The analysis describes the program as it was; the rewrites change a copy of it.
`Shrinkage` joins the two: for a node of the copy it tells the old values, which of
their units survive, and the sizes that result.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node

from fgcompile.analysis.facts import Constants
from fgcompile.analysis.steps import Align, Array, Flow, Link, Move, Step
from fgcompile.analysis.survivors import Survivors
from fgcompile.program import Program


@dataclass
class Shrinkage:
    """A shrinking program.

    Attributes:
        program: The copy that is rewritten; its nodes have the old names.
        flow: Steps and values of the program as it was.
        survivors: What stays.
        constants: Units that hold a known value.
    """

    program: Program
    flow: Flow
    survivors: Survivors
    constants: Constants
    steps: dict[str, list[Step]] = field(default_factory=dict)
    values: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for step in self.flow.steps:
            self.steps.setdefault(step.node.name, []).append(step)
        for node, values in self.flow.of.items():
            self.values[node.name] = values

    def index(self, node: Node) -> int | None:
        """Index of the old (first) value of a node of the copy."""
        return self.values.get(node.name, (None,))[0]

    def sizes(self, index: int) -> tuple[int, ...]:
        """Hidden shape of a value after shrinking."""
        value = self.flow.values[index]
        sizes = list(value.shape)
        for plane, ids in enumerate(value.planes):
            after = self.survivors.size(index, plane)
            for dim, size in enumerate(ids.shape):
                if size > 1:
                    sizes[dim] = after[dim]
        return tuple(sizes)

    def shrinks(self, index: int) -> bool:
        """Whether the value loses any unit."""
        return self.sizes(index) != self.flow.values[index].shape

    def aligned(self, node: Node) -> list[Align]:
        """Steps of the node that have factors."""
        return [s for s in self.steps.get(node.name, []) if isinstance(s, Align)]

    def link(self, node: Node, dim: int, output: int = 0) -> Link | None:
        """The link whose source plane varies along `dim` of the node's operand."""
        for step in self.steps.get(node.name, []):
            if isinstance(step, Move):
                for link in step.links:
                    plane = self.flow.values[link.source].planes[link.source_plane]
                    if link.target == step.outputs[output] and plane.shape[dim] > 1:
                        return link
        return None

    def row(self, link: Link, dim: int) -> list[int] | None:
        """Where a surviving row of the output lies in the row of its source.

        Positions along `dim` among the survivors of the source, for the first
        surviving row; None if the output lost the dim.
        """
        source = self.survivors.positions(link.source, link.source_plane)
        target = self.survivors.positions(link.target, link.target_plane)
        origin = link.index.reshape(-1)[target]
        first = [0] * source.ndim
        row = {
            int(source[(*first[:dim], k, *first[dim + 1 :])]): k
            for k in range(source.shape[dim])
        }
        found = [row.get(int(p)) for p in _first_row(origin, source.ndim, dim)]
        return None if any(k is None for k in found) else found  # type: ignore[return-value]


def _first_row(origin: Array, rank: int, dim: int) -> list[int]:
    if not origin.size:
        return []
    if origin.ndim != rank:
        return [int(origin.reshape(-1)[0])]
    first: list[Any] = [0] * rank
    first[dim] = slice(None)
    return [int(p) for p in origin[tuple(first)].reshape(-1)]


def new_buffer(
    program: Program, stem: str, tensor: torch.Tensor, beside: Node | None = None
) -> Node:
    """A `get_attr` node, placed where the caller's insertion point is.

    Its tensor is on the device of what the node `beside` computes, if one is given.
    """
    module = program.graph_module
    if beside is not None:
        tensor = tensor.to(beside.meta["val"].device)
    name = next(
        name for k in range(10**9) if not hasattr(module, name := f"{stem}_{k}")
    )
    module.register_buffer(name, tensor)
    node = program.graph.get_attr(name)
    node.meta["val"] = fake_like(program, tensor)
    return node


def fake_like(program: Program, tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of `tensor`'s shape, in the mode of the program's inputs."""
    mode = fake_mode(program)
    fake: torch.Tensor = mode.from_tensor(tensor.detach(), static_shapes=True)
    return fake


def fake_mode(program: Program) -> Any:
    """The fake tensor mode of the program's values."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    raise ValueError("the program has no fake tensors")


def scaled(program: Program, size: Node, old: int, new: int) -> Node:
    """A node for `size // old * new`: a dynamic size whose static part shrinks.

    `old` divides `size` exactly, because it is its constant factor.
    """
    return call(program, operator.mul, call(program, operator.floordiv, size, old), new)


def call(program: Program, target: Any, *args: Any) -> Node:
    """A node, placed where the caller's insertion point is, that knows its value."""
    node = program.graph.call_function(target, args)
    values: Any = torch.fx.map_arg(args, lambda n: n.meta["val"])
    with fake_mode(program), enable_python_dispatcher():
        node.meta["val"] = target(*values)
    return node
