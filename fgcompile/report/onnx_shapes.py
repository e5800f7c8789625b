"""Shapes of all ONNX values at one stated input shape.

Dynamic dims become numbers, then one walk over the nodes derives every shape:
small integer tables (what shapes are computed from) are evaluated, everything
else goes through ONNX's own shape inference of that operator. Weights are
never touched, so large files cost nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fgcompile.analysis.cost import BATCH, LENGTH
from fgcompile.report.onnx_tensors import inline_values, is_external

if TYPE_CHECKING:
    import onnx

_TABLE = 4096

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Inferred:
    """Concrete shapes by value name, and what could not be derived."""

    values: dict[str, Shape]
    notes: tuple[str, ...] = ()


def infer_sizes(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    shapes: Mapping[str, Shape],
) -> Inferred:
    """Shapes of the values at top level, with the inputs at `shapes`.

    Args:
        model: The model; its weights are not read.
        nodes: Its top-level nodes, operands before users.
        shapes: Input shapes by name; others are one sample of length 128.
    """
    walk = _Walk(model, shapes)
    for node in nodes:
        walk.visit(node)
    sizes = {name: s for name, t in walk.types.items() if (s := _shape(t)) is not None}
    return Inferred(sizes, tuple(sorted(walk.notes)))


class _Walk:
    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:

        self.types: dict[str, onnx.TypeProto] = {}
        self.notes: set[str] = set()
        self._tables: dict[str, Array] = {}
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._imports = list(model.opset_import)
        self._named = _fix_inputs(model.graph, shapes, self.types)
        self._given = {value.name: value.type for value in model.graph.value_info}
        self._given |= {value.name: value.type for value in model.graph.output}
        for tensor in model.graph.initializer:
            self._store(tensor.name, tensor)

    def visit(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            if node.attribute and node.attribute[0].HasField("t"):
                self._store(node.output[0], node.attribute[0].t)
            else:
                self._evaluate(node)
            return
        if not (self._measure(node) or self._evaluate(node)):
            self._infer(node)
        for name in node.output:
            if name and _shape(self.types.get(name)) is None:
                self._from_file(name)

    def _store(self, name: str, tensor: onnx.TensorProto) -> None:
        import onnx

        self.types[name] = onnx.helper.make_tensor_type_proto(
            tensor.data_type, list(tensor.dims)
        )
        small = np.prod(tensor.dims, dtype=np.int64) <= _TABLE
        if small and not is_external(tensor) and tensor.data_type in _integers():
            self._tables[name] = inline_values(tensor)

    def _measure(self, node: onnx.NodeProto) -> bool:
        """A Shape or Size node whose operand's shape is known."""
        if node.op_type not in ("Shape", "Size") or node.domain:
            return False
        shape = _shape(self.types.get(node.input[0]))
        if shape is None:
            return False
        bounds = {a.name: a.i for a in node.attribute}
        part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        value = np.array(part if node.op_type == "Shape" else np.prod(shape), np.int64)
        self._know(node.output[0], value)
        return True

    def _evaluate(self, node: onnx.NodeProto) -> bool:
        """A node that computes a small table from small tables."""
        from onnx.reference import ReferenceEvaluator

        names = [name for name in node.input if name]
        known = all(name in self._tables for name in names)
        if not known or node.domain or node.op_type.startswith("Random"):
            return False
        try:
            run = ReferenceEvaluator(node, opsets=self._opsets)
            results = run.run(None, {name: self._tables[name] for name in names})
        except Exception:  # whatever its kernel raises: inference decides instead
            return False
        arrays = [np.asarray(result) for result in results]
        if any(a.size > _TABLE or a.dtype.kind not in "iubf" for a in arrays):
            return False
        for name, array in zip(node.output, arrays, strict=False):
            self._know(name, array)
        return True

    def _infer(self, node: onnx.NodeProto) -> None:
        """Types of the outputs by the operator's own inference function."""
        import onnx

        try:
            schema = onnx.defs.get_schema(
                node.op_type, self._opsets.get(node.domain, 1), node.domain
            )
            types = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {n: self.types[n] for n in node.input if n in self.types},
                {
                    n: onnx.numpy_helper.from_array(self._tables[n])
                    for n in node.input
                    if n in self._tables
                },
                opset_imports=self._imports,
            )
        except Exception:  # unknown operator, or sizes that do not fit: not known
            return
        self.types.update(types)

    def _from_file(self, name: str) -> None:
        """The shape that the exporter wrote, with its named dims filled in."""
        import onnx

        given = self._given.get(name)
        if given is None or given.WhichOneof("value") != "tensor_type":
            return
        tensor = given.tensor_type
        if not tensor.HasField("shape"):
            return
        dims = [
            d.dim_value if d.HasField("dim_value") else self._named.get(d.dim_param)
            for d in tensor.shape.dim
        ]
        if None not in dims:
            self.types[name] = onnx.helper.make_tensor_type_proto(
                tensor.elem_type, dims
            )

    def _know(self, name: str, array: Array) -> None:
        import onnx

        self._tables[name] = array
        element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        self.types[name] = onnx.helper.make_tensor_type_proto(element, array.shape)


def _fix_inputs(
    graph: onnx.GraphProto,
    shapes: Mapping[str, Shape],
    types: dict[str, onnx.TypeProto],
) -> dict[str, int]:
    """Give every dynamic input dim a number; equal names get equal numbers."""
    import onnx

    named: dict[str, int] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                named[dim.dim_param] = size
    for value in graph.input:
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            continue
        sizes = list(shapes.get(value.name, ()))
        for position, dim in enumerate(tensor.shape.dim):
            if position >= len(sizes):
                sizes.append(_size(dim, position, named))
        types[value.name] = onnx.helper.make_tensor_type_proto(tensor.elem_type, sizes)
    return named


def _size(dim: Any, position: int, named: dict[str, int]) -> int:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    default = LENGTH if position else BATCH
    return named.setdefault(dim.dim_param, default) if dim.dim_param else default


def _shape(given: Any) -> Shape | None:
    if given is None or given.WhichOneof("value") != "tensor_type":
        return None
    tensor = given.tensor_type
    if not tensor.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _integers() -> tuple[int, ...]:
    import onnx

    kinds = onnx.TensorProto
    return (kinds.INT64, kinds.INT32, kinds.BOOL, kinds.UINT8, kinds.INT8)
