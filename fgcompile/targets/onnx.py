"""Program -> ONNX file that onnxruntime runs with equal results.

Needs the extra `onnx`: `pip install fgcompile[onnx]`.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from fgcompile.errors import ExportError
from fgcompile.program import Program
from fgcompile.targets.attention import split_attention
from fgcompile.targets.exported import export_program
from fgcompile.targets.extras import cause, quiet, require
from fgcompile.targets.feed import feed_of
from fgcompile.targets.onnx_file import write_single_file

if TYPE_CHECKING:
    import onnxruntime

aten = torch.ops.aten

_MOVES = (aten.permute.default, aten.transpose.int)
_VIEWS = (aten.reshape.default, aten.view.default)

OPSET = 20
"""What onnxruntime's CPU kernels know best; 23 and later have `Attention`."""

_HAS_ATTENTION = 23

_TRACE = "pkg.torch.onnx.stack_trace"
_TORCH = os.path.dirname(torch.__file__) + os.sep
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')

_SINGLE_FILE_LIMIT = 2_000_000_000
"""Protobuf refuses files of 2 GiB; above this, weights go into a file beside."""

_AXES = ("batch", "sequence")


def write_onnx(program: Program, path: Path, opset: int = OPSET) -> None:
    """Writes `program` to `path`, with its weights in `path`.data above 2 GB.

    Inputs and outputs have the program's names; dynamic axes are called `batch`,
    `sequence`, and after the graph's own symbols beyond those.

    Raises:
        ExportError: If the exporter fails, or the extra `onnx` is not installed.
    """
    require("onnx", "onnx", "onnxscript")
    try:
        with quiet():
            exported = export_program(program)
            if opset < _HAS_ATTENTION:
                split_attention(exported)
            settle_views(exported)
            converted = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=program.input_names,
                output_names=program.output_names,
                opset_version=opset,
                verbose=False,
            )
            assert converted is not None
            _name_axes(converted)
            save_onnx(converted, path)
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot export the lowered model: {cause(error)}\n"
            f"  to {path.name}, opset {opset}\n"
            '  Check that the dense model exports, or lower to "fx" instead.'
        ) from error


def settle_views(exported: torch.export.ExportedProgram) -> None:
    """Lets no view depend on how its operand lies in memory.

    Tracing turns a reshape into a view where the strides allow it; when the exporter
    then takes attention apart, they may not. ONNX knows no strides, so that the copy
    costs nothing.
    """
    graph = exported.graph
    for node in graph.nodes:
        operand = node.args[0] if node.target in _VIEWS else None
        if not isinstance(operand, Node) or operand.target not in _MOVES:
            continue
        with graph.inserting_before(node):
            kept = {"memory_format": torch.contiguous_format}
            copy = graph.call_function(aten.clone.default, (operand,), kept)
        copy.meta = dict(operand.meta)
        node.replace_input_with(operand, copy)


def save_onnx(converted: Any, path: Path) -> None:
    """Writes what torch.onnx made, in one file if protobuf can hold it."""
    _rename_inner_values(converted.model.graph)
    _keep_norms_apart(converted.model.graph)
    _shorten_traces(converted.model.graph)
    stored = converted.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in stored)
    if size > _SINGLE_FILE_LIMIT:
        converted.save(str(path), external_data=True)
    else:
        write_single_file(converted.model, path)


def _rename_inner_values(graph: Any) -> None:
    """Gives values inside another name than inputs and outputs, which have theirs.

    A model may call its output as an operator calls its result, such as "embedding".
    """
    outer = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    taken = {value.name for value in inner} | outer.keys()
    for value in inner:
        if outer.get(value.name, value) is not value:
            numbers = (f"{value.name}_{number}" for number in itertools.count(1))
            value.name = next(name for name in numbers if name not in taken)
            taken.add(value.name)


def _keep_norms_apart(graph: Any) -> None:
    """Writes the sum that a LayerNormalization reads as `Sum` instead of `Add`.

    The same function, which onnxruntime does not fuse: its CPU kernel for both at once
    takes several times as long as the two. That was an eighth of the time of a pruned
    MiniLM (onnxruntime 1.31, 128 tokens, one thread).
    """
    for node in graph.all_nodes():
        if node.op_type == "LayerNormalization" and node.inputs[0] is not None:
            producer = node.inputs[0].producer()
            if producer is not None and producer.op_type == "Add":
                producer.op_type = "Sum"


def _shorten_traces(graph: Any) -> None:
    """Leaves the model's line that called each operator: no folders of this machine.

    A whole stack for every node can be larger than a small model.
    """
    for node in graph.all_nodes():
        frames = _FRAME.findall(node.metadata_props.get(_TRACE, ""))
        own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
        if frames:
            file, line = (own or frames)[-1]
            name = re.split(r"[/\\]", file)[-1]
            node.metadata_props[_TRACE] = f'File "{name}", line {line}'


def read_onnx(file: Path) -> Any:
    """The ModelProto in `file`; its path if the weights lie in a file beside."""
    import onnx

    return file if data_file(file).exists() else onnx.load(str(file))


def copy_onnx(source: Path, target: Path) -> None:
    """`source` as `target`, with the file of its weights, if it has one."""
    if not data_file(source).exists():
        shutil.copyfile(source, target)
        return
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_file(target).name
    shutil.copyfile(data_file(source), data_file(target))
    onnx.save_model(model, str(target))


def data_file(file: Path) -> Path:
    """Where the weights of `file` lie if they are not in it."""
    return file.with_name(f"{file.name}.data")


def _name_axes(converted: Any) -> None:
    names: dict[str, str] = {}
    for value in converted.model.graph.inputs:
        for dim, size in enumerate(value.shape or ()):
            symbol = getattr(size, "value", None)
            if isinstance(symbol, str) and symbol not in names:
                wanted = _AXES[dim] if dim < len(_AXES) else ""
                if wanted and wanted not in names.values():
                    names[symbol] = wanted
    if names:
        converted.rename_axes(names)


def onnx_session(path: str | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session of the file at `path`; `threads=0` lets onnxruntime choose.

    Raises:
        ExportError: If onnxruntime is not installed or refuses the file.
    """
    require("onnx", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        remedy = "Please report the model."
        if "NOT_IMPLEMENTED" in str(error):
            # On CPUs it has all kernels for float32, few for other types.
            remedy = 'Try a model in float32: lower(model.float(), "onnx").'
        raise ExportError(
            f"onnxruntime refuses {Path(path).name}: {cause(error)}\n"
            f"  Nothing was kept. {remedy}"
        ) from error


class OnnxModel:
    """An ONNX file, callable with the inputs of the model it came from."""

    def __init__(self, path: str | Path, program: Program, threads: int = 0) -> None:
        """Opens `path`, whose inputs and outputs are those of `program`."""
        self.session = onnx_session(path, threads)
        self.output_names = program.output_names
        self._program = program

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Outputs by name, in the order of the model's."""
        wanted = {value.name for value in self.session.get_inputs()}
        feed = feed_of(self._program, args, kwargs, wanted)
        results = self.session.run(None, feed)
        return {
            name: torch.from_numpy(result) if result.ndim else torch.tensor(result)
            for name, result in zip(self.output_names, results, strict=True)
        }
