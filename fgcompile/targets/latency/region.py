"""A part of a program as a program of its own, at fixed sizes and with fewer units."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from fgcompile.analysis.cost import ConcreteSizes
from fgcompile.analysis.coupling import Analysis
from fgcompile.analysis.regions import region_of
from fgcompile.passes.pipeline import eliminate
from fgcompile.passes.refresh_shapes import refresh_shapes
from fgcompile.printer import show
from fgcompile.program import Program


@dataclass(frozen=True)
class Region:
    """What the units of one group take part in.

    Attributes:
        program: Its calls at fixed sizes; values from outside are inputs. Its weights
            are random, as time does not depend on them.
        members: Parameter of `program`, dim, and the group's unit at each index.
        size: Units of the group.
        digest: Equal for regions that take equally long.
    """

    program: Program
    members: tuple[tuple[str, int, Tensor], ...]
    size: int
    digest: str

    def keeping(self, units: int) -> Program:
        """The region with the first `units` of its group alone, the rest removed."""
        small = self.program.copy()
        # GraphModules share their tensors: what is zeroed here must not be zero there.
        for name in {parameter for parameter, _, _ in self.members}:
            tensor = small.graph_module.get_parameter(name)
            setattr(small.graph_module, name, nn.Parameter(tensor.detach().clone()))
        for name, dim, index in self.members:
            gone = (index >= units).nonzero().flatten()
            with torch.no_grad():
                small.graph_module.get_parameter(name).index_fill_(dim, gone, 0.0)
        return eliminate(small)


def make_region(analysis: Analysis, name: str, batch: int, length: int) -> Region:
    """The region of the group `name`, with numbers for its symbols."""
    sizes = ConcreteSizes(analysis.program, batch, length)
    builder = _Builder(analysis.program, sizes)
    program, names = builder.build(region_of(analysis, name))
    group = analysis.by_name[name]
    members = tuple(
        (names[member.parameter], member.dim, member.index)
        for member in group.members
        if member.parameter in names
    )
    return Region(program, members, group.size, _digest(program, members))


class _Builder:
    """Copies calls into a graph of their own."""

    def __init__(self, program: Program, sizes: ConcreteSizes) -> None:
        self.source, self.sizes = program, sizes
        self.graph, self.root = Graph(), nn.Module()
        self.new: dict[Node, Any] = {}
        self.inputs: dict[str, Tensor] = {}
        self.names: dict[str, str] = {}
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, nodes: Sequence[Node]) -> tuple[Program, dict[str, str]]:
        """The program, and its name for each parameter of the source."""
        inside = set(nodes)
        before = {n: None for node in nodes for n in node.all_input_nodes}
        # Inputs first: a graph declares them before anything else.
        for node in sorted(before, key=lambda n: n.op == "get_attr"):
            if node not in inside:
                self.new[node] = self._outside(node)
        calls = []
        for node in nodes:
            args = torch.fx.map_arg(node.args, self.new.__getitem__)
            kwargs = torch.fx.map_arg(node.kwargs, self.new.__getitem__)
            copy = self.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
            self.new[node] = copy
            calls.append(copy)
        used = [
            self.new[node]
            for node in nodes
            if any(user not in inside for user in node.users)
        ]
        self.graph.output(tuple(used))
        module = GraphModule(self.root, self.graph)
        outputs = [f"output_{number}" for number in range(len(used))]
        program = Program(module, self.inputs, output_names=outputs)
        refresh_shapes(program, set(calls))
        return program, self.names

    def _outside(self, node: Node) -> Any:
        value = node.meta.get("val")
        if node.op == "get_attr":
            return self._attribute(node)
        if isinstance(value, Tensor):
            return self._input(value)
        return self.sizes.number(value)

    def _attribute(self, node: Node) -> Node:
        tensor = self.source.parameter(node)
        known = self.names.get(str(node.target))
        name = known or f"tensor_{len(self.names)}"
        if known is None:
            self.names[str(node.target)] = name
            if self.source.is_parameter(node):
                setattr(self.root, name, nn.Parameter(_random(tensor, tensor.shape)))
            else:
                self.root.register_buffer(name, tensor.detach())
        made = self.graph.get_attr(name)
        made.meta["val"] = self.mode.from_tensor(getattr(self.root, name))
        return made

    def _input(self, value: Tensor) -> Node:
        name = f"input_{len(self.inputs)}"
        self.inputs[name] = _random(value, self.sizes.of(value))
        made = self.graph.placeholder(name)
        made.meta["val"] = self.mode.from_tensor(self.inputs[name])
        return made


def _random(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers of an ordinary size: zeros and denormal ones may take another time."""
    generator = torch.Generator().manual_seed(0)
    if like.dtype.is_floating_point:
        return torch.randn(*shape, generator=generator).mul_(0.02).to(like.dtype)
    return torch.ones(*shape, dtype=like.dtype)


def _digest(program: Program, members: Iterable[tuple[str, int, Tensor]]) -> str:
    shapes = {
        name: list(p.shape) for name, p in program.graph_module.named_parameters()
    }
    where = [(name, dim, index.tolist()) for name, dim, index in members]
    return hashlib.sha256(repr((show(program), shapes, where)).encode()).hexdigest()
