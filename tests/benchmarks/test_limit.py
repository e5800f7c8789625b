"""Built files are kept as long as they are used, and profiles add up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import limit
from benchmarks.limit import build, files
from benchmarks.limit.profile import excess, profile
from benchmarks.limit.sessions import runner, session
from benchmarks.machine import ROOT
from tests.targets.spinning import SPINNING, time_after

HOLDER = """
import sys
from benchmarks.limit import files
files.hold("held")
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(files, "_held", [])
    monkeypatch.setattr(files, "FULL", 250)
    yield tmp_path / "fgcompile-benchmarks" / "limit" / files.digest()
    for lock in files._held:
        lock.close()


def fill(name: str, age: float) -> None:
    """A folder of 100 bytes that was used last so many seconds ago."""
    folder = files.hold(name)
    (folder / "model.onnx").write_bytes(bytes(100))
    files._held.pop().close()
    then = time.time() - age
    os.utime(folder / "used", (then, then))


def test_least_recently_used_files_go(cache: Path) -> None:
    for name, age in (("new", 10), ("oldest", 1000), ("older", 900), ("old", 20)):
        fill(name, age)
    files.make_room()
    assert {folder.name for folder in cache.iterdir()} == {"new", "old"}
    files.hold("older")
    assert not (cache / "older" / "model.onnx").exists()


def test_files_that_a_process_uses_stay(cache: Path) -> None:
    for age, name in enumerate(("new", "old", "mine", "held")):
        fill(name, age)
    files.hold("mine")
    os.utime(cache / "mine" / "used", (0, 0))
    command = [sys.executable, "-c", HOLDER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holds\n"
        os.utime(cache / "held" / "used", (0, 0))
        files.make_room()
        holder.communicate(b"")
    assert {folder.name for folder in cache.iterdir()} == {"mine", "held"}


def test_failure_to_build_says_why(cache: Path) -> None:
    with pytest.raises(RuntimeError, match="dense: exit code 1: KeyError: 'no-such'"):
        build.built("no-such", "dense", 0)


def test_excess_is_what_is_beyond_the_part_of_the_work() -> None:
    found = excess({"MatMul": 10.0, "Add": 1.0}, {"MatMul": 6.0, "Sum": 0.5}, 0.5)
    assert found == {"MatMul": 1.0, "Add": -0.5, "Sum": 0.5}


def product(file: Path, width: int) -> Path:
    """Writes a file that multiplies rows of 256 numbers by a matrix."""
    weight = numpy_helper.from_array(np.ones((256, width), np.float32), "w")
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", size])
        for name, size in (("x", 256), ("y", width))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(file))
    return file


def test_profile_is_of_runs_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.limit.profile.SECONDS", 0.0)
    dense = product(tmp_path / "dense.onnx", 512)
    pruned = product(tmp_path / "pruned.onnx", 256)
    found = profile(dense, pruned, 0.5, 64, 16, 1)
    assert found["runs"] == 10
    assert found["dense"].keys() == found["pruned"].keys() == {"MatMul"}
    want = found["pruned"]["MatMul"] - 0.5 * found["dense"]["MatMul"]
    assert found["excess"]["MatMul"] == pytest.approx(want, abs=1e-4)


def test_threads_of_an_idle_session_do_not_spin(tmp_path: Path) -> None:
    file = product(tmp_path / "m.onnx", 512)
    assert time_after(runner(session(file, 2), 4096, 16)) < SPINNING


def test_published_gathers_are_measured_where_the_readme_shows_them() -> None:
    cells = [cell.parameters for cell in limit.cells(False)]
    assert len({tuple(cell.values()) for cell in cells}) == len(cells)
    large = [cell for cell in cells if cell["model"] == limit.LARGE]
    assert {cell["removed"] for cell in large} == set(limit.REMOVED)
    assert [8, 128] in [[cell["batch"], cell["tokens"]] for cell in large]
    with_gathers = [cell for cell in cells if "gathers" in limit.variants(cell)]
    assert len(with_gathers) == 3 * len(limit.REMOVED) + 1
