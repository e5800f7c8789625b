"""The papers' methods, as clients of coupled groups and gates."""

from __future__ import annotations

from fgcompile.methods.pst import PstConfig, bake_pst, find_pst, insert_pst, pst_status
from fgcompile.methods.schedule import cubic_sparsity

__all__ = [
    "PstConfig",
    "bake_pst",
    "cubic_sparsity",
    "find_pst",
    "insert_pst",
    "pst_status",
]
