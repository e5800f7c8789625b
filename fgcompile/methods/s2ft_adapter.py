"""S2FT adapters: indices and a dense block per weight, in the order of the base model.

An update changes a few rows or columns, so fusing and switching add a block where it
belongs instead of multiplying matrices. Source: S2FT (arXiv 2412.06289), section 5.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fgcompile.errors import FormatError, GateError
from fgcompile.files import read_described, read_file, write_described
from fgcompile.methods.s2ft_blocks import BlockHook, Side

SCHEMA_VERSION = 1
MANIFEST = "adapter.json"
TENSORS = "adapter.safetensors"
_WRONG = (AttributeError, KeyError, TypeError, ValueError)


Key = tuple[str, Side]


@dataclass(frozen=True, eq=False)
class S2ftEntry:
    """The update of one weight.

    Attributes:
        dim: Dim of the weight along which `indices` count.
        side: Whether these are outputs (rows) or inputs (columns).
        shape: Of the weight.
        indices: Where the update is, int64, shape `[size]`.
        block: The update, shape of the weight with `size` along `dim`.
    """

    dim: int
    side: Side
    shape: tuple[int, ...]
    indices: Tensor
    block: Tensor


@dataclass(frozen=True, eq=False)
class S2ftAdapter:
    """Updates by name of the weight and side."""

    entries: dict[Key, S2ftEntry]

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes `adapter.json` and `adapter.safetensors`; returns the directory.

        Raises:
            ExportError: If they cannot be written; the old ones are there then.
        """
        folder = Path(directory)
        tensors = safetensors.torch.save(
            {
                f"{name}.{side}.{what}": getattr(entry, what).contiguous()
                for (name, side), entry in self.entries.items()
                for what in ("indices", "block")
            }
        )
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "method": "s2ft",
            "entries": [
                {"parameter": name, "side": side, "dim": e.dim, "shape": e.shape}
                for (name, side), e in self.entries.items()
            ],
        }
        write_described(folder, TENSORS, tensors, MANIFEST, manifest)
        return folder

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> S2ftAdapter:
        """The adapter that `save` wrote.

        Raises:
            FormatError: If a file is missing, damaged or of an unknown version.
        """
        folder = Path(directory)
        manifest, content = read_described(folder, TENSORS, MANIFEST, _manifest)
        try:
            tensors = safetensors.torch.load(content)
            entries = {
                (e["parameter"], e["side"]): _entry(e, tensors)
                for e in manifest["entries"]
            }
            return cls(entries)
        except (safetensors.SafetensorError, *_WRONG) as error:
            raise FormatError(f"{folder} holds no S2FT adapter: {error!r}") from error


def _entry(described: dict[str, Any], tensors: dict[str, Tensor]) -> S2ftEntry:
    name = f"{described['parameter']}.{described['side']}"
    entry = S2ftEntry(
        described["dim"],
        described["side"],
        tuple(described["shape"]),
        tensors[f"{name}.indices"],
        tensors[f"{name}.block"],
    )
    _check_entry(name, entry)
    return entry


def _check_entry(name: str, entry: S2ftEntry) -> None:
    """What is read here decides what is written to, so all of it is checked."""
    shape, dim, indices = entry.shape, entry.dim, entry.indices
    whole = all(type(number) is int for number in (dim, *shape))
    good = whole and entry.side in get_args(Side) and 0 <= dim < len(shape)
    good = good and indices.dtype == torch.int64 and indices.dim() == 1
    if good and indices.numel():
        good = int(indices.min()) >= 0 and int(indices.max()) < shape[dim]
        good = good and indices.unique().numel() == indices.numel()
    if good:
        size = (*shape[:dim], indices.numel(), *shape[dim + 1 :])
        good = entry.block.shape == size and entry.block.is_floating_point()
    if not good:
        raise TypeError(f"{name} is no update of a weight of shape {list(shape)}")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_file(path))
        version = manifest["schema_version"]
        if not isinstance(manifest["entries"], list) or not manifest["sha256"]:
            raise TypeError("it lists no entries")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema version {version!r}, this release reads "
            f"{SCHEMA_VERSION}\n  Load it with the release that wrote it."
        )
    return manifest


@torch.no_grad()
def fuse(model: nn.Module, adapter: S2ftAdapter) -> S2ftAdapter:
    """The weights of `model` hold the updates.

    Args:
        model: A plain model in base order.
        adapter: What to add.

    Returns:
        The slices that were there, for `restore`.

    Raises:
        GateError: If a weight is missing or has another shape, or the model still has
            blocks; nothing changed then.
    """
    check_fits(model, adapter)
    replaced = {}
    for key, entry in adapter.entries.items():
        weight = model.get_parameter(key[0])
        indices = entry.indices.to(weight.device)
        old = weight.index_select(entry.dim, indices)
        replaced[key] = _with_block(entry, old.clone())
        wide = torch.promote_types(weight.dtype, torch.float32)
        new = old.to(wide) + entry.block.to(weight.device)
        weight.index_copy_(entry.dim, indices, new.to(weight.dtype))
    return S2ftAdapter(replaced)


@torch.no_grad()
def unfuse(model: nn.Module, adapter: S2ftAdapter) -> None:
    """The weights of `model` no longer hold the updates, up to rounding.

    Adding and subtracting rounds twice: an entry `w` comes back within one unit in the
    last place of the larger of `|w|` and `|w + update|`. `restore` is exact.

    Raises:
        GateError: If a weight is missing or has another shape, or the model still has
            blocks; nothing changed then.
    """
    fuse(model, negated(adapter))


@torch.no_grad()
def restore(model: nn.Module, replaced: S2ftAdapter) -> None:
    """The slices that `fuse` replaced are back, bit by bit.

    Raises:
        GateError: As `fuse` does.
    """
    check_fits(model, replaced)
    # Backwards: where a row and a column cross, the first one saw the base.
    for (name, _), entry in reversed(replaced.entries.items()):
        weight = model.get_parameter(name)
        indices = entry.indices.to(weight.device)
        weight.index_copy_(entry.dim, indices, entry.block.to(weight))


def switch(model: nn.Module, old: S2ftAdapter, new: S2ftAdapter) -> None:
    """The weights of `model` hold the updates of `new` instead of those of `old`.

    Raises:
        GateError: If a weight is missing or has another shape, or the model still has
            blocks; nothing changed then.
    """
    check_fits(model, new)
    unfuse(model, old)
    fuse(model, new)


def negated(adapter: S2ftAdapter) -> S2ftAdapter:
    """An adapter with the opposite updates."""
    return S2ftAdapter(
        {name: _with_block(e, -e.block) for name, e in adapter.entries.items()}
    )


def _with_block(entry: S2ftEntry, block: Tensor) -> S2ftEntry:
    return S2ftEntry(entry.dim, entry.side, entry.shape, entry.indices, block)


def check_fits(model: nn.Module, adapter: S2ftAdapter) -> None:
    """Raises a GateError at the first weight that `adapter` does not fit.

    A model with blocks is none that an adapter fits: its units lie in another order.
    """
    if any(
        isinstance(hook, BlockHook)
        for module in model.modules()
        for hook in module._forward_hooks.values()
    ):
        raise GateError(
            f"adapter does not fit: {type(model).__name__} still has S2FT blocks\n"
            "  Call remove_s2ft(model) first."
        )
    parameters = dict(model.named_parameters())
    for (name, _), entry in adapter.entries.items():
        if name not in parameters:
            raise GateError(f"adapter does not fit: the model has no parameter {name}")
        shape = tuple(parameters[name].shape)
        if shape != entry.shape:
            raise GateError(
                f"adapter does not fit: {name} has shape {list(shape)}, the adapter "
                f"is for {list(entry.shape)}"
            )
