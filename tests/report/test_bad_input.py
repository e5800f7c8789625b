"""Damaged, foreign and hostile input: a clear error or a right report."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgcompile.errors import FormatError
from fgcompile.report import diff, summarize
from tests.report.models import Encoder


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.onnx"
    onnx.save(Encoder().build(), path)
    return path


@pytest.fixture
def split(tmp_path):
    """A model whose data lies in a file beside it."""
    path = tmp_path / "model.onnx"
    onnx.save(
        Encoder().build(),
        path,
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(good, share):
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FormatError, match=r"not a whole ONNX file|holds other data"):
        diff(good, good)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 64,
        b"<html></html>",
        os.urandom(512),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        diff(path, path)


def test_a_missing_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(FormatError, match=r"^no file gone\.onnx\n"):
        diff(tmp_path / "gone.onnx", tmp_path / "gone.onnx")


def test_missing_external_data_is_named(split):
    (split.parent / "model.data").unlink()
    with pytest.raises(FormatError, match="external data file is missing"):
        diff(split, split)


def test_short_external_data_is_refused(split):
    data = split.parent / "model.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(FormatError, match="external data file is too short"):
        diff(split, split)


@pytest.mark.parametrize(
    "location", ["../secret.data", "{root}/secret.data", "a/../.."]
)
def test_external_data_outside_of_the_folder_is_never_opened(tmp_path, location):
    (tmp_path / "secret.data").write_bytes(b"\x00" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    path.write_bytes(external(location.format(root=tmp_path)).SerializeToString())
    with pytest.raises(FormatError, match="outside the model's folder"):
        diff(path, path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.data").write_bytes(b"\x00" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.data").symlink_to(tmp_path / "secret.data")
    path = folder / "model.onnx"
    path.write_bytes(external("weights.data").SerializeToString())
    with pytest.raises(FormatError, match="outside the model's folder"):
        diff(path, path)


@pytest.mark.parametrize("offset", ["-8", "1e3", "eight", "999999999999"])
def test_a_malformed_offset_is_refused(tmp_path, offset):
    (tmp_path / "weights.data").write_bytes(b"\x00" * 4096)
    path = tmp_path / "model.onnx"
    path.write_bytes(external("weights.data", offset).SerializeToString())
    with pytest.raises(FormatError):
        diff(path, path)


def external(location: str, offset: str = "0") -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size])
        for name, size in (("x", 16), ("y", 4))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [tensor])
    return helper.make_model(graph)


def test_a_reference_to_a_missing_value_is_named(good):
    model = onnx.load(good)
    model.graph.node[5].input[0] = "nowhere"
    with pytest.raises(FormatError, match='no value "nowhere"'):
        diff(model, model)


def test_a_cycle_is_refused(good):
    model = onnx.load(good)
    model.graph.node[1].input[0] = model.graph.node[-2].output[0]
    with pytest.raises(FormatError, match="the graph has a cycle through"):
        diff(model, model)


def test_a_tensor_with_too_few_values_is_refused():
    model = Encoder().build()
    table = next(t for t in model.graph.initializer if t.data_type == TensorProto.INT64)
    table.raw_data = table.raw_data[:-3]
    with pytest.raises(FormatError, match="holds other data than its shape says"):
        diff(model, model)


def test_a_graph_without_nodes_is_compared():
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    empty = helper.make_model(helper.make_graph([], "g", [port], [port]))
    assert diff(empty, empty).same
    report = diff(empty, Encoder().build())
    assert report.breaking
    assert all(change.action == "added" for change in report.nodes)


def branching(scale: float, loop: bool = False) -> onnx.ModelProto:
    """An If (or a Loop) whose body multiplies by a constant."""
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    factor = numpy_helper.from_array(np.array(scale, np.float32), "factor")
    body = [helper.make_node("Mul", ["x", "factor"], ["inner"])]
    result = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2])
    if not loop:
        graph = helper.make_graph(body, "then", [], [result], [factor])
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["inner"])], "else", [], [result]
        )
        flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
        node = helper.make_node(
            "If", ["flag"], ["y"], then_branch=graph, else_branch=other
        )
        return helper.make_model(helper.make_graph([node], "g", [port, flag], [out]))
    counter = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    state = helper.make_tensor_value_info("s", TensorProto.FLOAT, [2])
    body = [
        helper.make_node("Mul", ["s", "factor"], ["inner"]),
        helper.make_node("Identity", ["go"], ["still"]),
    ]
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    graph = helper.make_graph(
        body, "body", [counter, going, state], [still, result], [factor]
    )
    times = numpy_helper.from_array(np.array(3, np.int64), "times")
    node = helper.make_node("Loop", ["times", "", "x"], ["y"], body=graph)
    return helper.make_model(helper.make_graph([node], "g", [port], [out], [times]))


@pytest.mark.parametrize("loop", [False, True])
def test_subgraphs_are_compared_like_the_rest(loop):
    assert diff(branching(2.0, loop), branching(2.0, loop)).same
    (change,) = diff(branching(2.0, loop), branching(3.0, loop)).nodes
    assert (change.action, change.op) == ("changed", "Mul")
    assert change.module == ("body" if loop else "then_branch")


def test_model_local_functions_are_compared_by_their_bodies():
    def model(op: str) -> onnx.ModelProto:
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
            for name in ("x", "y")
        ]
        opset = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        function = helper.make_function(
            "own", "Twice", ["a"], ["c"],
            [helper.make_node(op, ["a", "a"], ["c"])], opset[:1],
        )  # fmt: skip
        node = helper.make_node("Twice", ["x"], ["y"], domain="own")
        graph = helper.make_graph([node], "g", ports[:1], ports[1:])
        return helper.make_model(graph, opset_imports=opset, functions=[function])

    assert diff(model("Add"), model("Add")).same
    changes = diff(model("Add"), model("Mul")).nodes
    assert [(c.action, c.op) for c in changes] == [("removed", "Add"), ("added", "Mul")]


def test_an_unknown_operator_leaves_macs_unknown_only_where_it_counts():
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4])
        for name in ("x", "y")
    ]
    node = helper.make_node("Mystery", ["x"], ["y"], domain="com.example", size=3)
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    assert diff(model, model).same
    assert summarize(model).nodes[0].op == "com.example::Mystery"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{'a}",
        struct.pack("<Q", 11) + b'{"a": null}',
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        diff(path, path)


def test_a_safetensors_entry_beyond_the_file_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00" * 8)
    with pytest.raises(FormatError, match='tensor "w" does not fit its bytes'):
        diff(path, path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"abc"])
def test_a_damaged_exported_program_is_refused(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not an exported program"):
        diff(path, path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match="holds no model"):
        diff(tmp_path, tmp_path)


@pytest.mark.parametrize("seed", range(80))
def test_a_corrupted_file_gives_an_error_or_a_report(tmp_path, seed):
    random = np.random.default_rng(seed)
    good = Encoder(layers=1).build()
    content = bytearray(good.SerializeToString())
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(0, 2500))
        content[place : place + int(random.integers(0, 3))] = random.bytes(1)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        report = diff(good, path)
    except FormatError:
        return
    assert report.to_markdown()
    assert report.to_html()
    assert report.to_json()
