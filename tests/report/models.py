"""ONNX encoders made by hand, so that no exporter's version changes the goldens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 16
HEAD = 4
WIDTH = 24
VOCABULARY = 32

Array = np.ndarray[Any, Any]


@dataclass
class Encoder:
    """Builds a small encoder: embedding, attention and MLP per layer.

    Args:
        layers: Number of layers.
        heads: Kept heads per layer; all where missing.
        channels: Kept MLP channels per layer; all where missing.
        provenance: Nodes carry the metadata that torch.onnx writes.
        opset: Operator set version.
        insert_after_gelu: Layers that get an extra operation.
        output: Name of the output.
        quantised: MLP weights are int8 with a DequantizeLinear.
        scale: Factor on the attention scores of every layer.
        hidden: Width of the residual stream.
        head: Size of one head; there are `hidden / head` of them.
        width: MLP channels.
    """

    layers: int = 3
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    channels: Mapping[int, Sequence[int]] = field(default_factory=dict)
    provenance: bool = True
    opset: int = 20
    insert_after_gelu: Sequence[int] = ()
    output: str = "last_hidden_state"
    quantised: bool = False
    scale: float = 0.5
    hidden: int = HIDDEN
    head: int = HEAD
    width: int = WIDTH

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        self.count = 0

    def build(self) -> onnx.ModelProto:
        table = self.weight("embeddings.word.weight", (VOCABULARY, self.hidden))
        value = self.add("Gather", [table, "input_ids"], "embeddings.word", axis=0)
        for index in range(self.layers):
            value = self.layer(value, index)
        self.nodes.append(helper.make_node("Identity", [value], [self.output]))
        self.describe(self.nodes[-1], "")
        dims = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, dims)],
            [
                helper.make_tensor_value_info(
                    self.output, TensorProto.FLOAT, [*dims, self.hidden]
                )
            ],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        return model

    def layer(self, value: str, index: int) -> str:
        name = f"encoder.layer.{index}"
        attended = self.attention(value, index, f"{name}.attention")
        value = self.add("Add", [value, attended], name)
        scale = self.weight(f"{name}.norm.weight", (self.hidden,))
        value = self.add("LayerNormalization", [value, scale], f"{name}.norm", axis=-1)
        hidden = self.linear(
            value, f"{name}.up", self.channels.get(index, range(self.width)), None
        )
        hidden = self.add("Gelu", [hidden], f"{name}.act")
        if index in self.insert_after_gelu:
            hidden = self.add("Clip", [hidden, self.constant(-3.0)], f"{name}.act")
        narrow = self.linear(
            hidden, f"{name}.down", None, self.channels.get(index, range(self.width))
        )
        return self.add("Add", [value, narrow], name)

    def attention(self, value: str, index: int, name: str) -> str:
        heads = self.heads.get(index, range(self.hidden // self.head))
        entries = [
            head * self.head + entry for head in heads for entry in range(self.head)
        ]
        split = self.table([0, 0, len(heads), self.head])
        parts = []
        for part in ("query", "key", "value"):
            flat = self.linear(value, f"{name}.{part}", entries, None, self.hidden)
            folded = self.add("Reshape", [flat, split], name)
            parts.append(self.add("Transpose", [folded], name, perm=[0, 2, 1, 3]))
        turned = self.add("Transpose", [parts[1]], name, perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [parts[0], turned], name)
        scores = self.add("Mul", [scores, self.constant(self.scale)], name)
        scores = self.add("Softmax", [scores], name, axis=-1)
        mixed = self.add("MatMul", [scores, parts[2]], name)
        mixed = self.add("Transpose", [mixed], name, perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [mixed, self.table([0, 0, -1])], name)
        return self.linear(flat, f"{name}.output", None, entries, self.hidden)

    def linear(
        self,
        value: str,
        name: str,
        rows: Sequence[int] | None,
        columns: Sequence[int] | None,
        width: int | None = None,
    ) -> str:
        """A layer of which `rows` of the outputs and `columns` of the inputs stay."""
        width = self.width if width is None else width
        sizes = (self.hidden, width) if rows is not None else (width, self.hidden)
        full = self.random.standard_normal(sizes, np.float32)
        bias = self.random.standard_normal(sizes[1], np.float32)
        if rows is not None:
            full, bias = full[:, list(rows)], bias[list(rows)]
        if columns is not None:
            full = full[list(columns)]
        # torch.onnx transposes the weight, and gives it a new name.
        value = self.add("MatMul", [value, self.matrix(full, name)], name)
        return self.add("Add", [value, self.store(f"{name}.bias", bias)], name)

    def matrix(self, values: Array, name: str) -> str:
        mlp = name.endswith(("up", "down"))
        if not (self.quantised and mlp):
            return self.store(self.fresh("val"), values)
        scale = np.abs(values).max() / 127
        whole = np.round(values / scale).astype(np.int8)
        operands = [
            self.store(self.fresh("val") + "_quantized", whole),
            self.store(self.fresh("val") + "_scale", np.float32(scale)),
            self.store(self.fresh("val") + "_zero_point", np.int8(0)),
        ]
        return self.add("DequantizeLinear", operands, name)

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        values = self.random.standard_normal(shape, np.float32)
        return self.store(name, values)

    def table(self, values: list[int]) -> str:
        return self.store(self.fresh("val"), np.array(values, np.int64))

    def constant(self, value: float) -> str:
        return self.store(self.fresh("val"), np.array(value, np.float32))

    def store(self, name: str, values: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, operands: list[str], module: str, **attributes: Any) -> str:
        result = self.fresh(op.lower())
        name = f"node_{op}_{self.count}"
        node = helper.make_node(op, operands, [result], name=name, **attributes)
        self.describe(node, module)
        self.nodes.append(node)
        return result

    def describe(self, node: onnx.NodeProto, module: str) -> None:
        if not self.provenance:
            return
        parts = module.split(".") if module else []
        scopes = ["", *(".".join(parts[: n + 1]) for n in range(len(parts)))]
        entry = node.metadata_props.add()
        entry.key = "pkg.torch.onnx.name_scopes"
        entry.value = str([*scopes, node.output[0]])
        entry = node.metadata_props.add()
        entry.key = "pkg.torch.onnx.stack_trace"
        entry.value = f'File "/home/someone/model.py", line {len(parts) + 10}, in f'

    def fresh(self, word: str) -> str:
        self.count += 1
        return f"{word}_{self.count}"


def scrambled(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """An equal model: other names, nodes and tensors in another valid order."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, order = result.graph, random.Random(seed)
    fixed = {value.name for value in [*graph.input, *graph.output]}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        if not name or name in fixed:
            return name
        return names.setdefault(name, f"x{order.getrandbits(40)}")

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in graph.node:
        node.name = f"n{order.getrandbits(40)}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    _shuffle(graph, order, fixed)
    onnx.checker.check_model(result)
    return result


def _shuffle(graph: onnx.GraphProto, order: random.Random, fixed: set[str]) -> None:
    known = fixed | {tensor.name for tensor in graph.initializer} | {""}
    pending, nodes = list(graph.node), []
    while pending:
        ready = [node for node in pending if set(node.input) <= known]
        node = order.choice(ready)
        pending.remove(node)
        known.update(node.output)
        nodes.append(node)
    tensors = list(graph.initializer)
    order.shuffle(tensors)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


def with_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a new input, an output of another type, and a fixed batch."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    dims = ["batch", "sequence"]
    graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, dims))
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    last = graph.node[-1]
    last.op_type = "Cast"
    last.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return result
