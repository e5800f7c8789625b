"""Summaries of ONNX files; weights stay on disk until someone compares them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fgcompile.errors import FormatError
from fgcompile.report.onnx_graph import GraphReader
from fgcompile.report.onnx_order import in_order
from fgcompile.report.onnx_tensors import NO_DATA, port_type
from fgcompile.report.summary import ModelSummary, Port

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int, ...]]


def load_onnx(
    path: str | os.PathLike[str],
    shapes: Shapes = {},  # noqa: B006
    with_data: bool = True,
) -> ModelSummary:
    """Summary of an ONNX file.

    Args:
        path: The file; its external data lies in the same folder or below.
        shapes: Input shapes to count MACs at, by input name.
        with_data: External data is there and can be read.

    Raises:
        FormatError: If the file, or the data it refers to, is missing, damaged,
            outside its folder, or not an ONNX model.
    """
    file = Path(path)
    folder = file.parent if with_data else NO_DATA
    return summarize_onnx(parse_onnx(file), folder, shapes)


def summarize_onnx(
    model: onnx.ModelProto,
    folder: Path | None = None,
    shapes: Shapes = {},  # noqa: B006
) -> ModelSummary:
    """Summary of a model in memory; external data is looked for in `folder`.

    Raises:
        FormatError: If the graph refers to values or data that do not exist.
    """
    try:
        return _summarize(model, folder, shapes)
    except RecursionError as error:
        raise FormatError(
            "the graph is nested too deeply to be read\n"
            "  its functions or branches lie in each other, level after level\n"
            "  Inline its functions with onnx.inliner, or export it again."
        ) from error


def _summarize(
    model: onnx.ModelProto, folder: Path | None, shapes: Shapes
) -> ModelSummary:
    from fgcompile.report.onnx_shapes import infer_sizes

    nodes = in_order(model.graph.node, {v.name for v in model.graph.input})
    inferred = infer_sizes(model, nodes, shapes)
    reader = GraphReader(model, folder, inferred.values)
    results = reader.read(model.graph)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    return ModelSummary(
        dialect="onnx",
        inputs=tuple(Port(value.name, port_type(value)) for value in inputs),
        outputs=tuple(Port(v.name, port_type(v)) for v in model.graph.output),
        results=results,
        nodes=tuple(reader.nodes),
        parameters=reader.parameters,
        opsets=tuple(sorted((o.domain, o.version) for o in model.opset_import)),
        input_sizes=tuple(inferred.values.get(value.name) for value in inputs),
        notes=inferred.notes,
    )


def parse_onnx(file: Path) -> onnx.ModelProto:
    """The model in a file, without its external data.

    Raises:
        FormatError: If the file is missing, damaged, or not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not file.is_file():
        raise FormatError(
            f"no file {file.name}\n  Check the path: the folder exists: "
            f"{file.parent.is_dir()}."
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise FormatError(
            f"{file.name} is not a whole ONNX file ({file.stat().st_size:,} bytes)\n"
            "  its protobuf encoding is damaged or truncated\n"
            "  Fetch or export the file again; a git-lfs pointer must be pulled first."
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise FormatError(
            f"{file.name} is not an ONNX model\n  it has no graph or no IR version\n"
            "  Give a file that an ONNX exporter wrote."
        )
    if not all(isinstance(text, str) for text in _texts(model)):
        raise FormatError(
            f"{file.name} is not a whole ONNX file ({file.stat().st_size:,} bytes)\n"
            "  a name in it is not text\n"
            "  Fetch or export the file again: it is damaged."
        )
    return model


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Every name; protobuf hands out bytes where one is not valid text."""
    yield from (entry.domain for entry in model.opset_import)
    yield from _graph_texts(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
        yield from _node_texts(function.node)


def _graph_texts(graph: onnx.GraphProto) -> Iterator[object]:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        yield value.name
        dims = value.type.tensor_type.shape.dim
        yield from (dim.dim_param for dim in dims if dim.HasField("dim_param"))
    for tensor in graph.initializer:
        yield tensor.name
        yield from (text for e in tensor.external_data for text in (e.key, e.value))
    yield from _node_texts(graph.node)


def _node_texts(nodes: Iterable[onnx.NodeProto]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (text for e in node.metadata_props for text in (e.key, e.value))
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
            for graph in [attribute.g, *attribute.graphs]:
                yield from _graph_texts(graph)
