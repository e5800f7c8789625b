"""A captured model: a flat FX graph of ATen ops with its tensors and names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from fgcompile.errors import CaptureError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = f"{os.sep}torch{os.sep}"


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
    """

    graph_module: GraphModule
    inputs: dict[str, Any]
    user_model: nn.Module | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    output_names: list[str] = field(default_factory=list)

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
            CaptureError: If an input is missing or unknown, or a size differs from
                one that capture had to fix.
        """
        given = dict(zip(self.inputs, args, strict=False)) | {
            name: value
            for name, value in kwargs.items()
            if name in self.inputs or value is not None
        }
        if len(args) > len(self.inputs) or given.keys() != self.inputs.keys():
            raise CaptureError(
                f"program takes inputs {list(self.inputs)}, got "
                f"{len(args)} positional and {sorted(kwargs)}\n"
                "  Capture again with the inputs that you want to call it with."
            )
        ordered = {name: given[name] for name in self.inputs}
        self._check_sizes(pytree.tree_leaves(list(ordered.values())))
        return self.graph_module(**ordered)

    def parameter(self, node: Node) -> torch.Tensor:
        """The tensor behind a `get_attr` node."""
        owner, _, name = str(node.target).rpartition(".")
        tensor = getattr(self.graph_module.get_submodule(owner), name)
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
        )

    def _check_sizes(self, leaves: list[Any]) -> None:
        for node, leaf in zip(self.placeholders, leaves, strict=True):
            expected = node.meta.get("val")
            if not isinstance(expected, torch.Tensor) or not hasattr(leaf, "shape"):
                continue
            fits = len(leaf.shape) == len(expected.shape) and all(
                not isinstance(want, int) or want == got
                for want, got in zip(expected.shape, leaf.shape, strict=True)
            )
            if not fits:
                raise CaptureError(
                    f"input {node.target} has shape {list(leaf.shape)}, but the "
                    f"program was captured for {list(expected.shape)}\n"
                    "  Capture again with example inputs of that shape."
                )


def module_path(node: Node) -> str:
    """Path of the innermost module that `node` was traced in, "" for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if not path.startswith("_empty"):
            return path.split("@")[0]
    return ""


def source_line(node: Node) -> str:
    """Where the user's code called `node`, as "file.py:112"; "" where unknown.

    Frames inside torch itself are skipped if the user's code has any.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if _TORCH not in frame[0]]
    for file, line in reversed(own or frames):
        return f"{os.path.basename(file)}:{line}"
    return ""
