"""A file written piece by piece is the message that protobuf would have written."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgcompile.targets import onnx_file
from fgcompile.targets.onnx_file import LARGE, write_single_file


def model_with(*arrays: np.ndarray) -> onnx_ir.Model:
    """A model that adds up its weights, with names, metadata and a docstring."""
    names = [f"weight_{k}" for k in range(len(arrays))]
    stored = [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)]
    nodes = [helper.make_node("Sum", ["x", *names], ["y"], name="sum")]
    sizes = list(arrays[0].shape)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        stored,
        doc_string="sums",
    )
    opsets = [helper.make_opsetid("", 20)]
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=opsets))
    for value, array in zip(model.graph.initializers.values(), arrays, strict=True):
        facts = {"from": "test"}
        value.const_value = onnx_ir.Tensor(
            array, name=value.name, doc_string="a weight", metadata_props=facts
        )
    return model


@pytest.mark.parametrize("side", [2, 150, 700])
def test_file_is_the_same_message(side: int, tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).random((3, side, side), np.float32)
    model = model_with(*arrays)
    expected = onnx_ir.to_proto(model)
    write_single_file(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == expected
    assert onnx_ir.to_proto(model) == expected  # the model is as it was


def test_half_precision_and_integers_keep_their_bits(tmp_path: Path) -> None:
    count = LARGE
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
            [
                numpy_helper.from_array(np.arange(count, dtype=kind), kind)
                for kind in ("float16", "int8", "int64", "float64")
            ],
        )
    )
    write_single_file(onnx_ir.from_proto(model), tmp_path / "model.onnx")
    read = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert [numpy_helper.to_array(t).tobytes() for t in read] == [
        numpy_helper.to_array(t).tobytes() for t in model.graph.initializer
    ]


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    arrays = np.ones((16, 512, 512), np.float32)  # 1 MB each
    model = model_with(*arrays)
    tracemalloc.start()
    write_single_file(model, tmp_path / "model.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * arrays[0].nbytes


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**31 - 1])
def test_lengths_are_written_as_protobuf_does(number: int) -> None:
    tensor = TensorProto()
    tensor.dims.append(number)
    assert tensor.SerializeToString()[1:] == onnx_file._varint(number)
