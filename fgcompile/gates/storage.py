"""Gates on disk: `gates.json` and `gates.safetensors`, without pickle."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fgcompile.errors import FormatError, GateError
from fgcompile.files import read_described, read_file, write_described
from fgcompile.gates.access import container_of
from fgcompile.gates.config import Budget, GateConfig
from fgcompile.gates.container import GateContainer
from fgcompile.gates.latency import LatencyTable
from fgcompile.gates.processes import gathered

SCHEMA_VERSION = 1
MANIFEST = "gates.json"
TENSORS = "gates.safetensors"
_NOT_JSON = (ValueError, RecursionError)


def save_gates(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Writes the gates of `model`, with everything that resuming needs.

    A reader sees the old gates or the new ones, whenever the process dies.

    Args:
        model: A gated model.
        directory: Where to write; it is created.

    Returns:
        The directory.

    Raises:
        GateError: If `model` has no gates.
        ExportError: If they cannot be written; the old ones are there then.
    """
    container = container_of(model)
    container.settle()
    folder = Path(directory)
    state = {
        name: gathered(value).contiguous().cpu()
        for name, value in container.state_dict().items()
    }
    tensors = safetensors.torch.save(state)
    write_described(folder, TENSORS, tensors, MANIFEST, _describe(container))
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
    manifest, content = read_described(folder, TENSORS, MANIFEST, _read_manifest)
    state = _parsed(content, folder / TENSORS)
    own = _describe(container)
    _check_same(manifest["gates"], own["gates"])
    _check_meaning(manifest["config"], own["config"])
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
        limits = None if budget is None else _budget(budget)
        return _made(GateConfig, found | {"budget": limits})
    except (AttributeError, GateError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error!r:.300}") from error


def _made(cls: Any, options: dict[str, Any]) -> Any:
    """An object of `cls`, whose fields are of the types that it declares."""
    hints = get_type_hints(cls)
    for name, value in options.items():
        if not _fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r}")
    return cls(**options)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if inner:  # a union
        return any(_fits(value, each) for each in inner)
    if hint is float:
        return isinstance(value, int | float) and value == value and value is not True
    if hint is int:
        return type(value) is int and abs(value) < 1 << 63
    return isinstance(value, hint)


def _budget(found: dict[str, Any]) -> Any:
    table = found.get("measured")
    measured = None if table is None else LatencyTable.from_dict(table)
    return _made(Budget, found | {"measured": measured})


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


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_file(path))
        version, gates = manifest["schema_version"], manifest["gates"]
        complete = isinstance(manifest["sha256"], str) and all(
            {"name", "kind", "size"} <= gate.keys() for gate in gates
        )
        manifest["config"].keys()
    except (*_NOT_JSON, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} has schema version {version!r}, this release reads "
            f"{SCHEMA_VERSION}\n  Load it with the release that wrote it."
        )
    if not complete:
        raise FormatError(f"{path} is damaged: a gate lacks its name, kind or size")
    return manifest


def _parsed(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


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


def _check_meaning(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Equal logits are other factors under another parametrisation."""
    for key in ("coupling", "gate"):
        if saved.get(key) != own[key]:
            raise GateError(
                f"saved gates do not fit: {key} is {saved.get(key)!r}, in the model it "
                f"is {own[key]!r}\n"
                "  Insert the gates with the config that they were saved with."
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
