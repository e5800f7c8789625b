"""Summaries of saved folders: the graph in them if there is one, else parameters."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fgcompile.errors import FormatError
from fgcompile.report.onnx_tensors import is_array_shape
from fgcompile.report.summary import ModelSummary, Parameter

_DTYPES = {
    "BOOL": ("bool", "u1"),
    "U8": ("uint8", "u1"),
    "I8": ("int8", "i1"),
    "I16": ("int16", "<i2"),
    "U16": ("uint16", "<u2"),
    "I32": ("int32", "<i4"),
    "U32": ("uint32", "<u4"),
    "I64": ("int64", "<i8"),
    "U64": ("uint64", "<u8"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
}
_WRONG_TYPE = (AttributeError, KeyError, TypeError)
NO_GRAPH = "only parameters were compared: a folder of weights holds no graph"


def find_graph(folder: Path) -> Path | None:
    """The one ONNX or `.pt2` file of a saved folder; None if it has no graph.

    Raises:
        FormatError: If there are several, so that one must be named.
    """
    found = sorted([*folder.glob("*.onnx"), *folder.glob("*.pt2")])
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise FormatError(
            f"folder {folder.name} holds {len(found)} models\n  {names}\n"
            "  Give the path of one of them."
        )
    return found[0] if found else None


def load_weights(folder: Path) -> ModelSummary:
    """Parameters of all `.safetensors` files of a folder, mapped from disk.

    Raises:
        FormatError: If there are none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    _check_shards(folder)
    if not files:
        raise FormatError(
            f"folder {folder.name} holds no model\n"
            "  it has no .onnx, .pt2 or .safetensors file; pickles are not opened\n"
            "  Save the model with save_pretrained or fgcompile.save."
        )
    parameters = {p.name: p for file in files for p in read_safetensors(file)}
    return ModelSummary("parameters", parameters=parameters, notes=(NO_GRAPH,))


def _check_shards(folder: Path) -> None:
    """All files that the list of shards names are there, as after a whole download."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        listed = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(n for n in listed if not (folder / n).is_file())
    except (OSError, ValueError, RecursionError, *_WRONG_TYPE) as error:
        raise _damaged(index, repr(error)[:200]) from error
    if missing:
        raise FormatError(
            f"folder {folder.name} lacks {len(missing)} of {len(listed)} files\n"
            f"  {missing[0]!r} is missing\n  Its download was interrupted: repeat it."
        )


def read_safetensors(file: Path) -> list[Parameter]:
    """The tensors of one file; only its header is read now.

    Raises:
        FormatError: If the header is damaged or the file is too short.
    """
    if not file.is_file():
        raise _damaged(file, "it is a pipe, a device or a folder")
    header, start = _header(file)
    size = file.stat().st_size
    parameters = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, code = _DTYPES[entry["dtype"]]
            shape = tuple(int(n) for n in entry["shape"])
            begin, end = (start + int(n) for n in entry["data_offsets"])
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise _damaged(file, f'entry "{name}" is malformed') from error
        inside = is_array_shape(shape) and start <= begin and end <= size
        if not inside or end - begin != math.prod(shape) * np.dtype(code).itemsize:
            raise _damaged(file, f'tensor "{name}" does not fit its bytes')
        read = partial(_map, file, np.dtype(code), begin, shape)
        trained = dtype.startswith(("float", "bfloat")) and bool(shape)
        parameters.append(Parameter(name, shape, dtype, end - begin, read, trained))
    return parameters


def _header(file: Path) -> tuple[dict[str, Any], int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(100_000_000, file.stat().st_size):
            raise _damaged(file, f"its header claims {length:,} bytes")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a table")
    return header, 8 + length


def _map(
    file: Path, dtype: np.dtype[Any], begin: int, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", begin, shape)


def _damaged(file: Path, fact: str) -> FormatError:
    return FormatError(
        f"{file.name} is not a whole safetensors file\n  {fact}\n"
        "  Fetch or save the file again; a git-lfs pointer must be pulled first."
    )
