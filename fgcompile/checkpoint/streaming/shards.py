"""Tensors of a sharded checkpoint, read one at a time and written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgcompile.errors import FormatError

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 1 << 28


class Checkpoint:
    """The safetensors files of a folder.

    Attributes:
        files: File of each tensor, by name.
        shapes: Shape of each tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            FormatError: If there is no safetensors file, or one is damaged.
        """
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if not file.is_file():
                raise FormatError(f"cannot read {file}: it is a pipe or a device")
            try:
                with safe_open(file, "pt") as stream:
                    for name in list(stream.keys()):
                        self.files[name] = file
                        self.shapes[name] = tuple(stream.get_slice(name).get_shape())
            except (OSError, SafetensorError) as error:
                raise FormatError(
                    f"cannot read {file}: {error}\n  Copy or save the checkpoint again."
                ) from error
        if not self.files:
            raise FormatError(
                f"{folder} holds no .safetensors file\n"
                "  Save the model with save_pretrained; pickled weights are not read."
            )

    def __getitem__(self, name: str) -> Tensor:
        """The tensor; the file is closed again, so that its pages are free."""
        with safe_open(self.files[name], "pt") as stream:
            tensor: Tensor = stream.get_tensor(name)
            return tensor.clone()


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes tensors into files of about 256 MiB, with an index if several.

    Args:
        folder: Where the files go.
        tensors: Consumed one by one; a file's worth is held, twice while it is written.
    """
    names: list[list[str]] = []
    size = 0
    for number, shard in enumerate(_shards(tensors)):
        save_file(shard, str(folder / f"part-{number}"), metadata={"format": "pt"})
        names.append(list(shard))
        size += sum(t.nbytes for t in shard.values())
        del shard
    if len(names) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05}-of-{len(names):05}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        places |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    if shard:
        yield shard
