"""What a saved folder says about itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fgcompile.checkpoint.foreign import shards_of
from fgcompile.errors import FormatError

MANIFEST = "fgcompile.json"
"""Name of the file in the folder."""

FORMAT = "fgcompile-module"
SCHEMA_VERSION = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """How the model in a folder differs from what its class builds.

    Attributes:
        model: Name of the class, such as "LlamaForCausalLM".
        files: Names of the weight files, with the SHA-256 digest of each.
        shapes: Shape of every parameter that differs from the dense model's.
        kept: For each of those, the dense model's indices that are left, by dim.
        attributes: Numbers in attributes that differ, by module path and slot.
    """

    model: str
    files: dict[str, str]
    shapes: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes the manifest into `folder`."""
        text = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(text, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of `folder`, checked.

        Raises:
            FormatError: If there is none, or it is damaged, foreign or of an unknown
                version.
        """
        file = folder / MANIFEST
        try:
            found = json.loads(file.read_text("utf-8"))
        except FileNotFoundError as error:
            raise FormatError(
                f"{folder} holds no {MANIFEST}\n"
                "  Name a folder that fgcompile.save wrote; other models load with "
                "their own library."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(file, str(error)) from error
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise _damaged(file, f'its format is not "{FORMAT}"')
        version = found.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise FormatError(
                f"{file} has schema version {version!r}, this fgcompile reads "
                f"{SCHEMA_VERSION}\n  Install the version that wrote it."
            )
        _check(file, found)
        known = cls.__dataclass_fields__
        return cls(**{name: found[name] for name in found if name in known})

    def check_files(self, folder: Path) -> None:
        """Compares the digests.

        Raises:
            FormatError: If a weight file is missing, outside the folder, or differs.
        """
        for name, digest in self.files.items():
            file = folder / name
            if Path(name).name != name or not file.is_file():
                raise _damaged(folder, f"weight file {name!r} is missing")
            if sha256(file) != digest:
                raise _damaged(file, "it is not the file that the manifest names")
        whole = (folder / "model.safetensors").exists()
        read = ["model.safetensors"] if whole else shards_of(folder)
        if not read or any(name not in self.files for name in read):
            raise _damaged(folder, f"{MANIFEST} does not name the weights beside it")


def sha256(file: Path) -> str:
    """Digest of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check(file: Path, found: dict[str, Any]) -> None:
    """Types of all fields: what is read here decides what is allocated and set."""
    fields = {
        "model": isinstance(found.get("model"), str),
        "files": _is_map(found.get("files"), lambda v: isinstance(v, str)),
        "shapes": _is_map(found.get("shapes", {}), _is_sizes),
        "kept": _is_map(found.get("kept", {}), lambda v: _is_map(v, _is_sizes)),
        "attributes": _is_map(
            found.get("attributes", {}), lambda v: _is_map(v, _is_int)
        ),
    }
    bad = [name for name, good in fields.items() if not good]
    if bad:
        raise _damaged(file, f"field {bad[0]!r} is missing or of another type")


def _is_map(value: Any, good: Any) -> bool:
    return isinstance(value, dict) and all(good(v) for v in value.values())


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(_is_int(v) and v >= 0 for v in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _damaged(file: Path, what: str) -> FormatError:
    return FormatError(
        f"cannot read {file}: {what}\n"
        "  The folder is damaged or incomplete. Save the model again."
    )
