"""From ONNX nodes to summary nodes: wiring, provenance, subgraphs, functions."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgcompile.errors import FormatError
from fgcompile.report.digest import digest_of_array
from fgcompile.report.onnx_order import in_order
from fgcompile.report.onnx_provenance import described, stored_label
from fgcompile.report.onnx_tensors import port_type, stored_tensor
from fgcompile.report.summary import (
    Constant,
    InputRef,
    Node,
    NodeRef,
    Operand,
    Parameter,
    ParameterRef,
    TensorType,
)

if TYPE_CHECKING:
    import onnx

Scope = MutableMapping[str, Operand]
_SMALL = 64
# Functions that call functions can stand for more nodes than any memory holds.
_INLINED = 20_000
_INLINED_PER_NODE = 2


class GraphReader:
    """Collects the nodes and stored tensors of a model and its subgraphs.

    Attributes:
        nodes: Summary nodes; operands come before their users.
        parameters: Stored tensors by key.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None,
        sizes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.nodes: list[Node] = []
        self.parameters: dict[str, Parameter] = {}
        self._folder = folder
        self._sizes = sizes
        self._types = {v.name: port_type(v) for v in _typed(model.graph)}
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self._calls: list[str] = []
        written = len(model.graph.node) + sum(len(f.node) for f in model.functions)
        self._inlined_left = _INLINED + _INLINED_PER_NODE * written

    def read(self, graph: onnx.GraphProto) -> tuple[Operand, ...]:
        """Add all of a top-level graph; what its outputs return."""
        scope: Scope = ChainMap()
        self._add_stored(graph, scope, "")
        names = [v.name for v in graph.input if v.name not in scope]
        scope.update({name: InputRef(index) for index, name in enumerate(names)})
        self._add_nodes(graph.node, scope, "")
        return tuple(_resolve(scope, out.name, "the outputs") for out in graph.output)

    def _add_stored(self, graph: onnx.GraphProto, scope: Scope, place: str) -> None:
        for tensor in graph.initializer:
            scope[tensor.name] = self._stored(tensor, place)
        for sparse in graph.sparse_initializer:
            values = stored_tensor(sparse.values, self._folder)
            self.parameters[place + values.name] = values
            scope[values.name] = ParameterRef(place + values.name)

    def _stored(self, tensor: onnx.TensorProto, place: str) -> Operand:
        parameter = stored_tensor(tensor, self._folder)
        is_float = "float" in parameter.dtype or parameter.dtype == "double"
        if parameter.count <= _SMALL and (not is_float or not parameter.shape):
            return Constant(_literal(parameter))
        key = place + tensor.name
        trained = bool(parameter.shape) and parameter.dtype not in _TABLES
        self.parameters[key] = replace(parameter, trained=trained)
        return ParameterRef(key)

    def _add_nodes(self, nodes: Any, scope: Scope, place: str) -> None:
        for proto in in_order(nodes, scope):
            if proto.op_type == "Constant":
                scope[proto.output[0]] = self._constant(proto, place)
                continue
            function = self._functions.get((proto.domain, proto.op_type))
            if function is not None:
                self._inline(function, proto, scope, place)
            else:
                self._add_node(proto, scope, place)

    def _add_node(self, proto: onnx.NodeProto, scope: Scope, place: str) -> None:
        where = f"node {proto.op_type} {proto.name}"
        operands = [_resolve(scope, name, where) for name in proto.input]
        attributes = []
        for attribute in sorted(proto.attribute, key=lambda a: a.name):
            graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
            if not graphs:
                attributes.append((attribute.name, self._attribute(attribute)))
            for number, graph in enumerate(graphs):
                inner = f"{place}{attribute.name}{number or ''}/"
                operands += self._subgraph(graph, scope, inner)
        node = described(proto, tuple(operands), tuple(attributes), place)
        outputs = tuple(self._types.get(n, TensorType()) for n in proto.output)
        sizes = tuple(self._sizes.get(name) for name in proto.output)
        node = replace(node, outputs=outputs, sizes=sizes)
        self.nodes.append(self._labelled(node))
        for index, name in enumerate(proto.output):
            scope[name] = NodeRef(len(self.nodes) - 1, index)

    def _subgraph(
        self, graph: onnx.GraphProto, scope: Scope, place: str
    ) -> list[Operand]:
        """Add a branch or loop body; what it returns."""
        inner: Scope = ChainMap({}, scope)
        self._types |= {v.name: port_type(v) for v in _typed(graph)}
        self._add_stored(graph, inner, place)
        for index, value in enumerate(graph.input):
            inner[value.name] = Constant(f"loop variable {index}")
        self._add_nodes(graph.node, inner, place)
        return [_resolve(inner, out.name, place) for out in graph.output]

    def _inline(
        self, function: Any, call: onnx.NodeProto, scope: Scope, place: str
    ) -> None:
        """Add a model-local function's body in place of its call."""
        name = f"{call.domain}::{call.op_type}"
        self._inlined_left -= 1 + len(function.node)
        if name in self._calls:
            raise FormatError(f"function {name} calls itself{_CHECK}")
        if self._inlined_left < 0:
            raise FormatError(
                f"function {name} stands for too many nodes\n  its functions call "
                f"others, level after level{_CHECK}"
            )
        self._calls.append(name)
        inner: Scope = ChainMap({})
        given = {a.name: a for a in function.attribute_proto}
        given |= {a.name: a for a in call.attribute}
        for index, name in enumerate(function.input):
            argument = call.input[index] if index < len(call.input) else ""
            inner[name] = _resolve(scope, argument, f"call of {call.op_type}")
        body = [_bound(node, given) for node in function.node]
        self._add_nodes(body, inner, f"{place}{call.op_type}/")
        for result, name in zip(function.output, call.output, strict=False):
            scope[name] = _resolve(inner, result, f"function {call.op_type}")
        self._calls.pop()

    def _constant(self, proto: onnx.NodeProto, place: str) -> Operand:
        if not proto.attribute:
            return None
        if len(proto.attribute) > 1:
            raise FormatError(
                f"constant {proto.name or proto.output[0]} has "
                f"{len(proto.attribute)} values{_CHECK}"
            )
        (attribute,) = proto.attribute
        if not attribute.HasField("t"):
            return Constant(self._attribute(attribute))
        tensor = attribute.t
        parameter = stored_tensor(tensor, self._folder)
        if parameter.count <= _SMALL:
            return Constant(_literal(parameter))
        key = place + proto.output[0]
        trained = parameter.dtype not in _TABLES
        self.parameters[key] = replace(parameter, name=key, trained=trained)
        return ParameterRef(key)

    def _attribute(self, attribute: onnx.AttributeProto) -> str:
        import onnx

        if attribute.HasField("t"):
            return _literal(stored_tensor(attribute.t, self._folder))
        try:
            value = onnx.helper.get_attribute_value(attribute)
        except ValueError as error:
            raise FormatError(
                f'attribute "{attribute.name}" has no value of a type that ONNX knows\n'
                "  Fetch or export the file again: it is damaged."
            ) from error
        if isinstance(value, bytes):
            return _text(value)
        if isinstance(value, float):
            return f"{value:.7g}"
        if isinstance(value, list | tuple) or hasattr(value, "__len__"):
            texts = [_text(v) if isinstance(v, bytes) else v for v in value]
            return str(texts)
        return str(value)

    def _labelled(self, node: Node) -> Node:
        """The node, whose stored operands are called as their module calls them."""
        operands = tuple(
            replace(o, label=stored_label(node, slot, self.parameters[o.key]))
            if isinstance(o, ParameterRef)
            else o
            for slot, o in enumerate(node.operands)
        )
        return replace(node, operands=operands)


_CHECK = "\n  Check the file with onnx.checker, or export it again."
_TABLES = {"int64", "int32", "bool", "string"}


def _typed(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _resolve(scope: Scope, name: str, where: str) -> Operand:
    if not name:
        return None
    if name not in scope:
        raise FormatError(
            f'the graph has no value "{name}"\n  it is read by {where}\n'
            "  Check the file with onnx.checker: it refers to a missing value."
        )
    return scope[name]


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _literal(parameter: Parameter) -> str:
    """Small tables as text, larger ones by digest."""
    if parameter.read is None:
        return f"{parameter.dtype}{list(parameter.shape)} not read"
    values = np.asarray(parameter.read())
    if values.size > _SMALL:
        return f"{parameter.dtype}{list(values.shape)} {digest_of_array(values)}"
    return str(values.tolist())


def _bound(node: Any, given: Mapping[str, Any]) -> onnx.NodeProto:
    """A function's node with the caller's attributes filled in."""
    import onnx

    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            filled = bound.attribute.add()
            filled.CopyFrom(given[attribute.ref_attr_name])
            filled.name = attribute.name
    return bound
