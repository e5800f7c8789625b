"""Recomputes the shapes that nodes carry, after a rewrite changed some."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.utils import _pytree as pytree

from fgcompile.capture.shapes import dynamic_sizes
from fgcompile.capture.state import silence
from fgcompile.errors import VerifyError
from fgcompile.passes.shrinkage import fake_mode
from fgcompile.program import Program, module_path


class ShapeError(VerifyError):
    """A node does not fit its operands' shapes; `node` is its name."""

    def __init__(self, node: Node, error: Exception) -> None:
        super().__init__(
            f"{node.target} does not fit its operands: {_first_line(error)}\n"
            f"  at %{node.name} ({module_path(node) or 'root'})"
        )
        self.node = node.name


def refresh_shapes(program: Program, changed: set[Node]) -> None:
    """Every node's `meta["val"]` is right, given that those of `changed` are new.

    Only what is reachable from `changed`, or has no value yet, runs again, on fake
    tensors.

    Raises:
        ShapeError: At the first node that cannot run.
    """
    mode = fake_mode(program)
    stale = set(changed)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        fresh = not any(n in stale for n in node.all_input_nodes)
        if fresh and "val" in node.meta and node not in changed:
            continue
        try:
            with (
                silence(),
                mode,
                enable_python_dispatcher(),
                dynamic_sizes(mode.shape_env),
            ):
                value = _run(node)
        except Exception as error:  # any kernel may complain in its own way
            raise ShapeError(node, error) from error
        if _differs(node.meta.get("val"), value):
            stale.add(node)
        node.meta["val"] = value


def _run(node: Node) -> Any:
    args: Any = torch.fx.map_arg(node.args, lambda n: n.meta["val"])
    kwargs: Any = torch.fx.map_arg(node.kwargs, lambda n: n.meta["val"])
    if node.target is operator.getitem:
        return args[0][args[1]]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _differs(before: Any, after: Any) -> bool:
    old, new = pytree.tree_leaves(before), pytree.tree_leaves(after)
    if len(old) != len(new):
        return True
    return any(_shape(a) != _shape(b) for a, b in zip(old, new, strict=True))


def _shape(value: Any) -> Any:
    return (
        tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else str(value)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
