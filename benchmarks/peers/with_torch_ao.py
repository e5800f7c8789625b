"""torch.ao.pruning's structured pruner, which removes rows and the next columns.

It prunes linear layers by the magnitude of their rows. Heads are beyond it, so it is
given the feed-forward matrices alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.models import CUT, NAMES, export, layers_of, load


def prepare(folder: Path) -> Any:
    """The model."""
    return load(folder)


def prune(prepared: Any, folder: Path) -> str:
    """As in its tutorial: prepare, step, prune; then exports."""
    from torch.ao.pruning._experimental.pruner import SaliencyPruner

    model, facts = prepared
    names = NAMES[facts["model"]]
    config = [
        {
            "tensor_fqn": f"{names.layers}.{k}.{up}.weight",
            "sparsity_level": CUT,
        }
        for k, _ in enumerate(layers_of(model, names))
        for up in names.up
    ]
    pruner = SaliencyPruner({})
    pruner.prepare(model, config)
    pruner.enable_mask_update = True
    pruner.step()
    export(pruner.prune(), folder / "model.onnx")
    return "feed-forward channels only"
