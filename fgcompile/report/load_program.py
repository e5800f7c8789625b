"""Summaries of captured programs, exported programs and FX graphs."""

from __future__ import annotations

import importlib.util
import logging
import operator
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node as FxNode

from fgcompile.errors import FgcompileError, FormatError
from fgcompile.program import Program, module_path, source_line
from fgcompile.report.fx_sizes import Sizes, tensor_type
from fgcompile.report.pt2_safety import check_pt2
from fgcompile.report.summary import (
    Constant,
    InputRef,
    ModelSummary,
    Node,
    NodeRef,
    Operand,
    Parameter,
    ParameterRef,
    Port,
)

Shapes = Mapping[str, tuple[int, ...]]
_SMALL = 64


def summarize_program(program: Program, shapes: Shapes = {}) -> ModelSummary:  # noqa: B006
    """Summary of a captured program; `shapes` are the inputs to count MACs at."""
    reader = _Reader(program, shapes)
    for node in program.graph.nodes:
        reader.visit(node)
    ports = [
        Port(name, tensor_type(node.meta.get("val")))
        for name, node in zip(program.input_names, program.placeholders, strict=True)
    ]
    returned = list(_leaves(program.graph.output_node().args[0]))
    names = program.output_names or [f"output_{i}" for i in range(len(returned))]
    outputs = [
        Port(name, tensor_type(value.meta.get("val") if _is_node(value) else None))
        for name, value in zip(names, returned, strict=True)
    ]
    return ModelSummary(
        dialect="aten",
        inputs=tuple(ports),
        outputs=tuple(outputs),
        results=tuple(reader.operand(value) for value in returned),
        nodes=tuple(reader.nodes),
        parameters=reader.parameters,
        input_sizes=tuple(
            reader.sizes.of(node.meta.get("val")) for node in program.placeholders
        ),
    )


def load_pt2(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """The exported program in a `.pt2` file.

    Raises:
        FormatError: If the file is missing, damaged, not an exported program, or could
            run code when it is opened.
    """
    file = Path(path)
    if not file.is_file():
        raise FormatError(f"no file {file.name}\n  Check the path.")
    with reading_pt2(file), _quiet():
        check_pt2(file)
        return _load(file)


@contextmanager
def reading_pt2(file: Path) -> Iterator[None]:
    """Whatever torch raises about the program in `file` becomes a FormatError."""
    try:
        yield
    except FgcompileError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise FormatError(
            f"{file.name} is not an exported program that this torch can read\n"
            f"  {type(error).__name__}: {first}\n"
            "  Save it with torch.export.save, in the torch version used here."
        ) from error


def _load(file: Path) -> torch.export.ExportedProgram:
    """The program; its output type may be known only once its library is imported."""
    try:
        return torch.export.load(file)
    except RuntimeError:
        if importlib.util.find_spec("transformers") is None:
            raise
        importlib.import_module("transformers.modeling_outputs")
        return torch.export.load(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs while it fails: the error says it once."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Reader:
    """Collects summary nodes and stored tensors of one FX graph."""

    def __init__(self, program: Program, shapes: Shapes) -> None:
        self.nodes: list[Node] = []
        self.parameters: dict[str, Parameter] = {}
        self.sizes = Sizes(program, shapes)
        self._program = program
        self._values: dict[FxNode, Operand] = {}
        self._inputs = 0

    def visit(self, node: FxNode) -> None:
        if node.op == "placeholder":
            self._values[node] = InputRef(self._inputs)
            self._inputs += 1
        elif node.op == "get_attr":
            self._values[node] = self._stored(node)
        elif node.target is operator.getitem and _picks_output(node):
            source = self._values[node.args[0]]  # type: ignore[index]
            assert isinstance(source, NodeRef)
            index = node.args[1]
            assert isinstance(index, int)
            self._values[node] = NodeRef(source.node, index)
        elif node.op != "output":
            self._add(node)

    def operand(self, value: Any) -> Operand:
        if value is None:
            return None
        return self._values[value] if _is_node(value) else Constant(_text(value))

    def _add(self, node: FxNode) -> None:
        operands: list[Operand] = []
        attributes = []
        for name, value, default in _arguments(node):
            inner = [leaf for leaf in _leaves(value) if _is_node(leaf)]
            operands += [self._values[leaf] for leaf in inner]
            if not inner and value is None and default is None:
                operands.append(None)
            elif name == "end" and _reaches_end(node, value):
                continue
            elif not _is_node(value) and _text(value) != _text(default):
                attributes.append((name, _text(value)))
        results = node.meta.get("val")
        parts = results if isinstance(results, (tuple, list)) else (results,)
        summary = Node(
            op=_op_name(node),
            operands=tuple(operands),
            attributes=tuple(sorted(attributes)),
            outputs=tuple(tensor_type(part) for part in parts),
            sizes=tuple(self.sizes.of(part) for part in parts),
            module=module_path(node),
            display=module_path(node),
            line=source_line(node),
        )
        self.nodes.append(summary)
        self._values[node] = NodeRef(len(self.nodes) - 1)

    def _stored(self, node: FxNode) -> Operand:
        tensor = self._program.parameter(node).detach()
        trained = isinstance(self._program.parameter(node), nn.Parameter)
        name = str(node.target)
        is_table = not tensor.is_floating_point() or tensor.dim() == 0
        if not trained and is_table and _readable(tensor) and tensor.numel() <= _SMALL:
            return Constant(str(tensor.tolist()))
        self.parameters[name] = Parameter(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            size_bytes=tensor.numel() * tensor.element_size(),
            read=partial(as_array, tensor) if _readable(tensor) else None,
            trained=trained,
        )
        return ParameterRef(name, name)


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The values as numpy holds them; types that numpy lacks as their bits."""
    tensor = tensor.detach().cpu().contiguous()
    try:
        return tensor.numpy()
    except TypeError:
        bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
        return tensor.view(bits).numpy()


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "meta" and type(tensor) in (torch.Tensor, nn.Parameter)


def _is_node(value: Any) -> bool:
    return isinstance(value, FxNode)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _picks_output(node: FxNode) -> bool:
    source = node.args[0]
    return isinstance(source, FxNode) and source.op.startswith("call_")


def _arguments(node: FxNode) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of every argument, by the operator's schema."""
    schema = getattr(node.target, "_schema", None)
    declared = [] if schema is None else list(schema.arguments)
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    names = [argument.name for argument in declared]
    for index, value in enumerate(node.args):
        name = names[index] if index < len(names) else f"argument {index}"
        yield name, value, defaults.get(name, _NOTHING)
    for name, value in node.kwargs.items():
        yield name, value, defaults.get(name, _NOTHING)


_NOTHING = object()


def _reaches_end(node: FxNode, end: Any) -> bool:
    """A slice up to the end of its dim, however large `end` is written."""
    source = node.args[0] if node.args else None
    value = source.meta.get("val") if isinstance(source, FxNode) else None
    if not isinstance(value, torch.Tensor) or not isinstance(end, int):
        return False
    dim = node.args[1] if len(node.args) > 1 else 0
    size = value.shape[dim] if isinstance(dim, int) else None
    return end >= (size if isinstance(size, int) else sys.maxsize)


def _op_name(node: FxNode) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.rpartition('::')[2]}"
    if isinstance(target, str):
        return f"{node.op.removeprefix('call_')}.{target}"
    return f"builtin.{getattr(target, '__name__', type(target).__name__)}"


def _text(value: Any) -> str:
    """A literal argument as text; "*" stands for a value of the graph."""
    if value is _NOTHING:
        return ""
    if _is_node(value):
        return "*"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value).removeprefix("torch.")
