"""The papers' methods, as clients of coupled groups and gates."""

from __future__ import annotations

from fgcompile.methods.co_permutation import Permutation, permute_units
from fgcompile.methods.distillation import (
    DistillationConfig,
    distill,
    distillation_loss,
    remove_distillation,
)
from fgcompile.methods.low_rank import (
    find_low_rank,
    insert_low_rank,
    merge_low_rank,
)
from fgcompile.methods.pst import PstConfig, bake_pst, find_pst, insert_pst, pst_status
from fgcompile.methods.s2ft import (
    S2ftConfig,
    extract_adapter,
    find_s2ft,
    insert_s2ft,
    remove_s2ft,
)
from fgcompile.methods.s2ft_adapter import (
    S2ftAdapter,
    S2ftEntry,
    fuse,
    restore,
    switch,
    unfuse,
)
from fgcompile.methods.s2ft_serving import Serving, serve_adapters
from fgcompile.methods.schedule import cubic_sparsity

__all__ = [
    "DistillationConfig",
    "Permutation",
    "PstConfig",
    "S2ftAdapter",
    "S2ftConfig",
    "S2ftEntry",
    "Serving",
    "bake_pst",
    "cubic_sparsity",
    "distill",
    "distillation_loss",
    "extract_adapter",
    "find_low_rank",
    "find_pst",
    "find_s2ft",
    "fuse",
    "insert_low_rank",
    "insert_pst",
    "insert_s2ft",
    "merge_low_rank",
    "permute_units",
    "pst_status",
    "remove_distillation",
    "remove_s2ft",
    "restore",
    "serve_adapters",
    "switch",
    "unfuse",
]
