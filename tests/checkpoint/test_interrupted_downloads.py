"""A model of which a part is missing is told, by whatever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import fgcompile
from fgcompile.checkpoint.foreign import INDEX, foreign
from fgcompile.checkpoint.manifest import Manifest, sha256
from fgcompile.cli import main
from fgcompile.errors import FormatError
from fgcompile.zoo.models import entry


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two shards, with a manifest."""
    folder = tmp_path_factory.mktemp("whole")
    model: Any = entry("llama").build()
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number in (1, 2):
        file = f"model-{number:05}-of-00002.safetensors"
        part = {n: t for k, (n, t) in enumerate(state.items()) if k % 2 == number - 1}
        save_file(part, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    digests = {f.name: sha256(f) for f in sorted(folder.glob("*.safetensors"))}
    Manifest("LlamaForCausalLM", digests).write(folder)
    return folder


SHARD = "model-00002-of-00002.safetensors"


def _missing(folder: Path) -> None:
    (folder / SHARD).unlink()


def _incomplete(folder: Path) -> None:
    """As the hub's client leaves it."""
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    (folder / f"{SHARD}.incomplete").write_bytes(content[:-200])


def _truncated(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-200])


def _empty(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"")


def _dangling(folder: Path) -> None:
    """A link of the hub's cache to a file that never came."""
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("../../blobs/0123")


DAMAGE = (_missing, _incomplete, _truncated, _empty, _dangling)


@pytest.fixture(params=DAMAGE, ids=lambda damage: damage.__name__)
def broken(request: pytest.FixtureRequest, tmp_path: Path, whole: Path) -> Path:
    """A copy of which a part is missing."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage: Callable[[Path], None] = request.param
    damage(folder)
    return folder


def test_the_whole_one_loads(whole: Path) -> None:
    assert type(fgcompile.load(whole)).__name__ == "LlamaForCausalLM"
    assert fgcompile.diff(whole, whole).same


def test_loading_is_refused(broken: Path) -> None:
    with pytest.raises(FormatError):
        fgcompile.load(broken)


def test_comparing_is_refused(broken: Path, whole: Path) -> None:
    with pytest.raises(FormatError):
        fgcompile.diff(whole, broken)


@pytest.mark.parametrize("target", ["module", "fx"])
def test_lowering_is_refused_and_the_old_output_stays(
    broken: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken / "fgcompile.json").unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.pt2").write_text("old")
    status = main(["lower", str(broken), "--target", target, "--out", str(out)])
    assert status == 1
    assert "error: " in capsys.readouterr().err
    assert (out / "model.pt2").read_text() == "old"
    assert [file.name for file in out.iterdir()] == ["model.pt2"]


def _told(error: Exception) -> str:
    """What becomes of the error of a library."""
    with pytest.raises(FormatError) as caught, foreign("cannot open it", "Try again."):
        raise error
    return str(caught.value)


def test_what_was_behind_an_error_is_told() -> None:
    error = OSError("no such model")
    error.__cause__ = ConnectionError("peer closed connection\nafter 3 bytes")
    assert _told(error) == (
        "cannot open it: no such model\n"
        "  Behind it: ConnectionError: peer closed connection\n"
        "  Try again."
    )


def test_an_error_is_told_once() -> None:
    error = OSError("no such model")
    error.__cause__ = error
    assert _told(error) == "cannot open it: no such model\n  Try again."
