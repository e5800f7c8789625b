"""Program -> text, one line per value; the same program gives the same text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from fgcompile.program import Program

# Where a value lives and how it is laid out is not what it is.
_NOISE = {"device", "layout", "memory_format", "pin_memory"}


def show(program: Program) -> str:
    """The graph as text, without a line for parameters.

    Each line is `name: [sizes] = op(operands)`. Sizes that may differ between calls
    are s0, s1 ... in the order in which they appear; a dtype is given unless it is
    float32. Parameters, buffers and constants appear by their names.
    """
    return "\n".join(_lines(program))


def _lines(program: Program) -> Iterator[str]:
    sizes = _Sizes()
    for node in program.graph.nodes:
        if node.op == "output":
            yield f"return {_operands(node.args[0])}"
        elif node.op != "get_attr":
            yield f"{node.name}: {sizes.show(node.meta.get('val'))} = {_call(node)}"


class _Sizes:
    """Names symbols s0, s1 ... as they appear."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def show(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            words = [self._size(size) for size in value.shape]
            if value.dtype != torch.float32:
                words.append(_short(value.dtype))
            return f"[{' '.join(words)}]"
        if isinstance(value, (list, tuple)):
            return f"({', '.join(self.show(item) for item in value)})"
        return self._size(value)

    def _size(self, size: Any) -> str:
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return str(size)
        expression = size.node.expr
        text = str(expression).replace(" ", "")
        symbols = [str(symbol) for symbol in expression.free_symbols]
        for symbol in sorted(symbols, key=lambda name: (-len(name), name)):
            name = self.names.setdefault(symbol, f"s{len(self.names)}")
            text = text.replace(symbol, f"${name}")
        return text.replace("$", "")


def _call(node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    words = [_operand(arg) for arg in node.args]
    words += [
        f"{name}={_operand(arg)}"
        for name, arg in node.kwargs.items()
        if name not in _NOISE
    ]
    return f"{op_name(node)}({', '.join(words)})"


def op_name(node: Node) -> str:
    """Short name of the op that `node` calls: "linear" for `aten.linear.default`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1]
    return getattr(node.target, "__name__", str(node.target))


def _operands(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={_operand(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_operand(item) for item in value)
    return _operand(value)


def _operand(value: Any) -> str:
    if isinstance(value, Node):
        return str(value.target) if value.op == "get_attr" else value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_operand(item) for item in value)}]"
    if isinstance(value, int) and value == sys.maxsize:
        return "end"
    return _short(value)


def _short(value: Any) -> str:
    return str(value).removeprefix("torch.")
