"""Where an ONNX node came from, by the metadata that exporters attach."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from fgcompile.report.roles import label_of
from fgcompile.report.summary import Node, Operand, Parameter

if TYPE_CHECKING:
    import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def stored_label(node: Node, slot: int, parameter: Parameter) -> str:
    """What the node's module calls the tensor it reads at `slot`.

    Exporters rename tensors that they transpose, and merge equal ones, so a name
    counts only if it lies in the module that reads it.
    """
    name = parameter.name
    if not node.display or name.rpartition(".")[0] == node.display:
        return name
    if not node.module and "." in name and "::" not in name:
        return name
    return f"{node.display}.{label_of(node, slot, len(parameter.shape))}"


def described(
    proto: onnx.NodeProto,
    operands: tuple[Operand, ...],
    attributes: tuple[tuple[str, str], ...],
    place: str,
) -> Node:
    """A summary node without its result types, placed where its metadata says."""
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    *path, _ = _list(metadata.get(_SCOPES, "")) or [""]
    path = [name for name in path if not name.startswith("_empty")]
    classes = _list(metadata.get(_CLASSES, "")) or [""]
    module = path[-1] if path else ""
    op = f"{proto.domain}::{proto.op_type}" if _foreign(proto) else proto.op_type
    if op == "Sum" and len(operands) == 2:
        op = "Add"  # another name for it
    return Node(
        op=op,
        operands=operands,
        attributes=attributes,
        module=module,
        display=module or _place_in_name(proto.name),
        line=_line(metadata.get(_TRACE, "")),
        scope=place.rstrip("/"),
        origin=classes[-1].removesuffix(".default"),
    )


def _foreign(proto: onnx.NodeProto) -> bool:
    return proto.domain not in ("", "ai.onnx")


def _place_in_name(name: str) -> str:
    """The module path that TorchScript exporters write into node names."""
    if not name.startswith("/"):
        return ""
    return ".".join(name.split("/")[1:-1])


def _list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []  # not written by an exporter; the parser's stack is small
    return [str(item) for item in value] if isinstance(value, list) else []


def _line(trace: str) -> str:
    frames = _FRAME.findall(trace)
    if not frames:
        return ""
    file, line = frames[-1]
    return re.split(r"[/\\]", file)[-1] + f":{line}"
