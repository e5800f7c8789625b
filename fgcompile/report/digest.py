"""Digests of stored values, computed piece by piece."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_PIECE = 1 << 24


def digest_of_array(array: np.ndarray[Any, Any]) -> str:
    """Sixteen hexadecimal digits that name dtype, shape and values.

    Memory-mapped arrays are read piece by piece and never copied whole.
    """
    hasher = hashlib.blake2b(digest_size=8)
    hasher.update(f"{array.dtype.str}{array.shape}".encode())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _PIECE):
        hasher.update(flat[start : start + _PIECE].data)
    return hasher.hexdigest()
