"""Gates on disk: `gates.json` and `gates.safetensors`, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fgcompile.errors import FormatError, GateError
from fgcompile.gates.access import container_of
from fgcompile.gates.config import Budget, GateConfig
from fgcompile.gates.container import GateContainer
from fgcompile.gates.latency import LatencyTable

SCHEMA_VERSION = 1
MANIFEST = "gates.json"
TENSORS = "gates.safetensors"


def save_gates(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Writes the gates of `model`, with everything that resuming needs.

    Each file is replaced as a whole, and the manifest holds the digest of the tensors,
    so a reader sees the old gates, the new ones, or a FormatError.

    Args:
        model: A gated model.
        directory: Where to write; it is created.

    Returns:
        The directory.

    Raises:
        GateError: If `model` has no gates.
    """
    container = container_of(model)
    container.settle()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous().cpu() for k, v in container.state_dict().items()}
    tensors = safetensors.torch.save(state)
    manifest = _describe(container) | {"sha256": hashlib.sha256(tensors).hexdigest()}
    replace_file(folder / TENSORS, tensors)
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return folder


def load_gates(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Puts saved gates into `model`, which was gated the same way.

    Args:
        model: A model with gates inserted.
        directory: Where `save_gates` wrote.

    Raises:
        FormatError: If a file is missing, damaged or of an unknown version.
        GateError: If `model` has no gates, or others than were saved; the first
            difference is named. The model is unchanged then.
    """
    container = container_of(model)
    folder = Path(directory)
    manifest = _read_manifest(folder / MANIFEST)
    state = _read_tensors(folder / TENSORS, manifest["sha256"])
    _check_same(manifest["gates"], _describe(container)["gates"])
    _check_state(state, container.state_dict(), folder)
    container.load_state_dict(state)


def saved_config(directory: str | os.PathLike[str]) -> GateConfig:
    """The config of the gates that were saved in `directory`.

    `insert_gates(model, config=saved_config(directory))` makes gates that
    `load_gates(model, directory)` fits.

    Raises:
        FormatError: If the manifest is missing, damaged or of an unknown version.
    """
    path = Path(directory) / MANIFEST
    manifest = _read_manifest(path)
    try:
        found = {k: _option(v) for k, v in manifest["config"].items()}
        budget = found.pop("budget")
        return GateConfig(**found, budget=None if budget is None else _budget(budget))
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error


def _budget(found: dict[str, Any]) -> Budget:
    table = found.get("measured")
    measured = None if table is None else LatencyTable.from_dict(table)
    return Budget(**{**found, "measured": measured})


def _option(value: Any) -> Any:
    if value == "inf":
        return float("inf")
    return tuple(value) if isinstance(value, list) else value


def _describe(container: GateContainer) -> dict[str, Any]:
    gates = [
        {
            "name": gate.name,
            "kind": gate.kind,
            "size": gate.size,
            "open": int(gate.open.sum()),
        }
        for gate in container.each()
    ]
    config = {k: _finite(v) for k, v in asdict(container.config).items()}
    return {"schema_version": SCHEMA_VERSION, "gates": gates, "config": config}


def _finite(value: Any) -> Any:
    # JSON has no infinity; Python would write one that others cannot read.
    return str(value) if isinstance(value, float) and value == float("inf") else value


def replace_file(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_file(path))
        version, gates = manifest["schema_version"], manifest["gates"]
        complete = isinstance(manifest["sha256"], str) and all(
            {"name", "kind", "size"} <= gate.keys() for gate in gates
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema version {version!r}, this release reads "
            f"{SCHEMA_VERSION}\n  Load it with the release that wrote it."
        )
    if not complete:
        raise FormatError(f"{path} is damaged: a gate lacks its name, kind or size")
    return manifest


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise FormatError(
            f"{path} is damaged: its digest is not the one in {MANIFEST}\n"
            "  Copy both files again, or save the gates again."
        )
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path} is damaged: {error}") from error


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def _check_same(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    for number, (theirs, ours) in enumerate(zip(saved, own, strict=False)):
        for key in ("name", "kind", "size"):
            if theirs[key] != ours[key]:
                raise GateError(
                    f"saved gates do not fit: gate {number} has {key} "
                    f"{theirs[key]!r}, in the model it is {ours[key]!r}"
                )
    if len(saved) != len(own):
        raise GateError(
            f"saved gates do not fit: there are {len(saved)}, the model has {len(own)}"
        )


def _check_state(
    state: dict[str, Tensor], own: dict[str, Tensor], folder: Path
) -> None:
    for name in sorted(state.keys() | own.keys()):
        theirs, ours = state.get(name), own.get(name)
        if theirs is None or ours is None:
            where = "in the model" if theirs is None else f"in {folder}"
            raise GateError(
                f"saved gates do not fit: {name} is only {where}\n"
                "  Insert the gates with the config that they were saved with."
            )
        if theirs.shape != ours.shape:
            raise GateError(
                f"saved gates do not fit: {name} has shape {list(theirs.shape)}, in "
                f"the model it is {list(ours.shape)}"
            )
