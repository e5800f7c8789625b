"""What a killed process leaves is never read, and goes with the next write."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from fgcompile import files as plain_files
from fgcompile.errors import ExportError, FormatError
from fgcompile.files import lock, read_described, write_described
from fgcompile.targets import files
from fgcompile.targets.files import staged, staged_folder


def write(target: Path, *names: str, text: str = "new") -> None:
    with staged(target) as folder:
        for name in names:
            (folder / name).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_work_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    left = tmp_path / ".fgcompile-dead"
    left.mkdir()
    (left / "model.onnx").write_text("half")
    write(tmp_path / "out", "model.onnx")
    assert names(tmp_path) == ["out"]


def test_work_folders_of_others_stay(tmp_path: Path) -> None:
    busy = tmp_path / ".fgcompile-busy"
    busy.mkdir()
    lease = lock(busy, wait=False)
    if lease is None:
        pytest.skip("this file system has no locks")
    write(tmp_path / "out", "model.onnx")
    assert names(tmp_path) == [".fgcompile-busy", "out"]
    os.close(lease)


def test_a_pair_replaces_a_pair_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "model.xml", "model.bin", text="old")
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("kept")
    (out / "link").symlink_to("model.xml")
    number = (out / "model.xml").stat().st_ino
    write(out, "model.xml", "model.bin")
    assert {n: (out / n).read_text() for n in ("model.xml", "model.bin")} == {
        "model.xml": "new",
        "model.bin": "new",
    }
    assert (out / "notes" / "mine.txt").read_text() == "kept"
    assert (out / "link").is_symlink()
    assert (out / "model.xml").stat().st_ino != number
    assert names(tmp_path) == ["out"]


def test_the_working_folder_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(), "model.xml", "model.bin", text="old")
    write(Path(), "model.xml", "model.bin")
    assert Path("model.bin").read_text() == "new"
    assert names(tmp_path) == ["model.bin", "model.xml"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert names(tmp_path) == ["out", "real"]


def test_the_old_folder_comes_back_after_a_kill_between_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda first, second: False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    out.rename(tmp_path / ".fgcompile-out-old")  # and then it was killed
    with staged_folder(out) as folder:
        (folder / "a").write_text("new")
    assert names(out) == ["a", "mine.txt"]
    assert names(tmp_path) == ["out"]


def put(folder: Path, content: bytes) -> None:
    write_described(folder, "data", content, "manifest.json", {"version": 1})


def get(folder: Path) -> bytes:
    read = read_described(
        folder, "data", "manifest.json", lambda path: json.loads(path.read_bytes())
    )
    return read[1]


def test_data_is_found_where_a_killed_process_left_it(tmp_path: Path) -> None:
    put(tmp_path, b"old")
    digest = hashlib.sha256(b"new").hexdigest()
    waiting = tmp_path / f"data.{digest[:16]}"
    waiting.write_bytes(b"new")
    assert get(tmp_path) == b"old"  # killed before the manifest
    manifest = {"version": 1, "sha256": digest}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert get(tmp_path) == b"new"  # and after it
    (tmp_path / ".data.0123456789abcdef.77.tmp").write_bytes(b"half")
    put(tmp_path, b"newer")
    assert get(tmp_path) == b"newer"
    assert names(tmp_path) == ["data", "manifest.json"]


def test_a_digest_is_never_a_path(tmp_path: Path) -> None:
    put(tmp_path, b"old")
    manifest = {"version": 1, "sha256": "/../../../etc/passwd"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="its digest is not the one"):
        get(tmp_path)


def test_files_are_written_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_files, "lock", lambda folder, wait: None)
    put(tmp_path / "gates", b"new")
    assert get(tmp_path / "gates") == b"new"


def test_a_folder_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ExportError, match="cannot write to"):
        put(tmp_path / "file" / "gates", b"new")
    with pytest.raises(ExportError, match="cannot write to"):
        write(tmp_path / "file" / "out", "model.onnx")
    assert (tmp_path / "file").read_text() == "kept"
