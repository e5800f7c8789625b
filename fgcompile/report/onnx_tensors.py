"""Stored ONNX tensors: types, and values that are read only on demand."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgcompile.errors import FormatError
from fgcompile.report.summary import Dim, Parameter, TensorType

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_MAX_RANK = 64
_MAX_SIZE = 1 << 56
"""What numpy counts with: dims, and elements if empty dims counted as one."""

# A folder in which external data is not looked for: its values stay unknown.
NO_DATA = Path()


def port_type(value: onnx.ValueInfoProto) -> TensorType:
    """Type of a graph input, output or intermediate value."""
    kind = value.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return TensorType(dtype=(kind or "").removesuffix("_type"))
    tensor = getattr(value.type, kind)
    if not tensor.HasField("shape"):
        return TensorType(dtype_name(tensor.elem_type))
    dims = tuple(_dim(dim) for dim in tensor.shape.dim)
    return TensorType(dtype_name(tensor.elem_type), dims)


def _dim(dim: Any) -> Dim:
    return int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"


def dtype_name(element_type: int) -> str:
    """Such as "float32"; "undefined" for a type this version does not know."""
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(element_type).lower()
    except ValueError:
        return "undefined"
    return {"float": "float32", "double": "float64"}.get(name, name)


def is_external(tensor: onnx.TensorProto) -> bool:
    import onnx

    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_array_shape(shape: tuple[int, ...]) -> bool:
    """Whether an array can have this shape, on however large a machine."""
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        return False
    return math.prod(max(size, 1) for size in shape) < _MAX_SIZE


def stored_tensor(tensor: onnx.TensorProto, folder: Path | None) -> Parameter:
    """A parameter whose values are read when asked for.

    Raises:
        FormatError: If external data is missing, too short, or outside `folder`.
    """
    shape = tuple(tensor.dims)
    if not is_array_shape(shape):
        raise _damaged(tensor)
    size_bytes = -(-math.prod(shape) * _bits(tensor.data_type) // 8)
    read: Callable[[], Array] | None
    if is_external(tensor) and folder is NO_DATA:
        read = None
    elif is_external(tensor):
        read = partial(_map, *_locate(tensor, folder, size_bytes), tensor)
    else:
        read = partial(inline_values, tensor)
    name = dtype_name(tensor.data_type)
    return Parameter(tensor.name, shape, name, size_bytes, read)


def inline_values(tensor: onnx.TensorProto) -> Array:
    """The values that the file itself holds.

    Raises:
        FormatError: If they are not as many as the shape says.
    """
    import onnx

    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise _damaged(tensor) from error


def _damaged(tensor: onnx.TensorProto) -> FormatError:
    return FormatError(
        f"tensor {tensor.name} holds other data than its shape says\n"
        f"  shape {list(tensor.dims)}, dtype {dtype_name(tensor.data_type)}\n"
        "  Fetch or export the file again: it is damaged."
    )


def _bits(element_type: int) -> int:
    import onnx

    name = dtype_name(element_type)
    if name.endswith(("int4", "e2m1")):
        return 4
    if name.endswith("int2"):
        return 2
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize * 8
    except KeyError:
        return 8


def _locate(
    tensor: onnx.TensorProto, folder: Path | None, size_bytes: int
) -> tuple[Path, int]:
    """File and offset of external data that is there, whole, and inside `folder`."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f'  tensor "{tensor.name}" refers to "{location}"\n'
    if folder is None or not location or "\0" in location:
        raise FormatError(
            f"external data of {tensor.name} cannot be found\n{where}"
            "  Save the model to a file, and give its path."
        )
    root = os.path.realpath(folder)
    file = os.path.realpath(os.path.join(root, location))
    if os.path.commonpath([root, file]) != root:
        raise FormatError(
            f"external data lies outside the model's folder\n{where}"
            "  Move the data beside the model; other places are never read."
        )
    if not os.path.isfile(file):
        raise FormatError(
            f"external data file is missing\n{where}"
            "  Copy it beside the model: the two files travel together."
        )
    offset = _number(entries.get("offset", "0"), where)
    length = _number(entries.get("length", "0"), where) or size_bytes
    if length < size_bytes or os.path.getsize(file) < offset + length:
        raise FormatError(
            f"external data file is too short: {os.path.getsize(file):,} bytes\n{where}"
            f"  it needs {size_bytes:,} bytes at {offset:,}\n"
            "  Fetch or export the model and its data again."
        )
    return Path(file), offset


def _number(text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise FormatError(
            f'external data has offset or length "{text}"\n{where}'
            "  Export the model again: both must be whole numbers."
        )
    return int(text)


def _map(file: Path, offset: int, tensor: onnx.TensorProto) -> Array:
    """The values, mapped from disk; packed types as their bytes."""
    import onnx

    shape = tuple(tensor.dims)
    if _bits(tensor.data_type) < 8:
        count = -(-math.prod(shape) * _bits(tensor.data_type) // 8)
        return np.memmap(file, np.uint8, "r", offset, (count,))
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as error:
        raise _damaged(tensor) from error
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape)
