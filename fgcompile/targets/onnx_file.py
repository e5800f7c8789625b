"""ONNX files that hold their weights, written without a second copy of them.

Protobuf serialises a message as a whole: the tensors as a message and the bytes of the
file are two more copies of the weights. Here the message is made without the data of
large tensors, and these follow one by one. The file is the same message, as the order
of fields does not matter to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from onnx import ModelProto

LARGE = 1 << 16
"""Tensors below this [bytes] stay in the message."""

# Tags of fields that are preceded by their length: (field << 3) | 2, see onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = b"\x3a", b"\x2a", b"\x4a"


def write_single_file(model: Any, path: Path) -> None:
    """Writes an `onnx_ir.Model` to `path`; what is read back equals it.

    Args:
        model: Below 2 GB. It is not changed.
        path: Where to.
    """
    import onnx_ir

    values = [v for v in model.graph.initializers.values() if _is_plain(v.const_value)]
    tensors = [value.const_value for value in values]
    try:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = _without_data(tensor)
        proto: ModelProto = onnx_ir.to_proto(model)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
    named = {v.name: t for v, t in zip(values, tensors, strict=True)}
    with path.open("wb") as file:
        _write(file, proto, named)


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor's data are its elements one after the other."""
    return tensor.nbytes >= LARGE and tensor.dtype.bitwidth % 8 == 0


def _without_data(tensor: Any) -> Any:
    import onnx_ir

    class Header(onnx_ir.Tensor[Any]):
        def tobytes(self) -> bytes:
            return b""

    return Header(
        tensor,
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _write(file: BinaryIO, proto: ModelProto, tensors: dict[str, Any]) -> None:
    """`proto` with the data of `tensors`, by name, in their initializers."""
    headers = []
    for initializer in proto.graph.initializer:
        tensor = tensors.get(initializer.name)
        if tensor is None:
            headers.append((initializer.SerializeToString(), None))
        else:
            initializer.ClearField("raw_data")
            start = initializer.SerializeToString() + _RAW_DATA + _varint(tensor.nbytes)
            headers.append((start, tensor))
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    parts = [
        (_INITIALIZER + _varint(len(start) + _size(tensor)) + start, tensor)
        for start, tensor in headers
    ]
    size = len(graph) + sum(len(start) + _size(tensor) for start, tensor in parts)
    file.write(proto.SerializeToString() + _GRAPH + _varint(size) + graph)
    for start, tensor in parts:
        file.write(start)
        if tensor is not None:
            file.write(tensor.tobytes())


def _size(tensor: Any) -> int:
    return 0 if tensor is None else int(tensor.nbytes)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
