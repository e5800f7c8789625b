"""Complex arithmetic, as rotary embeddings use it, in real numbers.

Dimension rules, and the exporters, know real numbers only. A complex number is two of
them, so that each operator that is known here becomes one or more on the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fgcompile.capture.simplify import call_like
from fgcompile.program import arguments

aten = torch.ops.aten

Parts = tuple[Node, Node]
"""Real and imaginary part of a value."""

Call = Callable[..., Node]
"""Makes a node of an operator and its arguments."""


def in_real_numbers(graph_module: GraphModule) -> bool:
    """Rewrites complex values that become real ones again; whether there were any.

    What an unknown operator makes stays complex, and so does what reads it.
    """
    parts: dict[Node, Parts] = {}
    modified = False
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        with graph_module.graph.inserting_before(node):
            call = partial(call_like, node)
            found = _parts_of(node, parts, call) if _is_complex(node) else None
            if found is not None:
                parts[node] = found
            whole = node.args[0] if node.target in _ENDS else None
            if isinstance(whole, Node) and whole in parts:
                node.replace_all_uses_with(_ENDS[node.target](parts[whole], call))
                modified = True
    return modified


def _parts_of(node: Node, parts: dict[Node, Parts], call: Call) -> Parts | None:
    """Parts of what `node` computes; None if it is not known how."""
    a = arguments(node) if node.target in _KNOWN else {}
    if node.target is aten.view_as_complex.default:
        real, imaginary = (call(aten.select.int, a["self"], -1, k) for k in (0, 1))
        return real, imaginary
    if node.target is aten.complex.default:
        return a["real"], a["imag"]
    if node.target is aten.polar.default:
        waves = (aten.cos.default, aten.sin.default)
        real, imaginary = (
            call(aten.mul.Tensor, a["abs"], call(wave, a["angle"])) for wave in waves
        )
        return real, imaginary
    if node.target is aten.mul.Tensor:
        return _product(a["self"], a["other"], parts, call)
    whole = node.args[0]
    if node.target in _MOVES and isinstance(whole, Node) and whole in parts:
        # Parts may lie in memory otherwise than the whole.
        target = aten.reshape.default if node.target in _VIEWS else node.target
        real, imaginary = (
            call(target, part, *node.args[1:], **node.kwargs) for part in parts[whole]
        )
        return real, imaginary
    return None


def _product(
    one: Any, other: Any, parts: Mapping[Node, Parts], call: Call
) -> Parts | None:
    times = partial(call, aten.mul.Tensor)
    if one in parts and other in parts:
        (a, b), (c, d) = parts[one], parts[other]
        real = call(aten.sub.Tensor, times(a, c), times(b, d))
        return real, call(aten.add.Tensor, times(a, d), times(b, c))
    for value, factor in ((one, other), (other, one)):
        if value in parts and not _is_complex(factor):
            real, imaginary = parts[value]
            return times(real, factor), times(imaginary, factor)
    return None


def _is_complex(value: Any) -> bool:
    if isinstance(value, complex):
        return True
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.is_complex()


_VIEWS = (aten.view.default, aten.reshape.default)
_MOVES = {
    *_VIEWS,
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.select.int),
    *(aten.expand.default, aten.permute.default, aten.transpose.int),
    *(aten.index_select.default, aten.index.Tensor, aten.clone.default),
}
_MAKES = (aten.view_as_complex.default, aten.complex.default, aten.polar.default)
_KNOWN = {*_MAKES, aten.mul.Tensor}

_ENDS: dict[Any, Callable[[Parts, Call], Node]] = {
    aten.view_as_real.default: lambda parts, call: call(
        aten.stack.default, list(parts), -1
    ),
    aten.real.default: lambda parts, call: parts[0],
    aten.imag.default: lambda parts, call: parts[1],
}
"""Operators of which the result is real."""
