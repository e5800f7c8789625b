"""Each benchmark runs, on models of a size that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import catalogue, limit
from benchmarks.__main__ import app
from benchmarks.cells import Cell, Record
from benchmarks.limit import build, files, latency, profile
from benchmarks.machine import ROOT
from benchmarks.runner import measure
from benchmarks.store import read


def run(name: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "run", name, "--smoke"]
    environment = os.environ | {"XDG_CACHE_HOME": str(out)}
    return subprocess.run(
        [*command, "--out", str(out), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_command_measures_and_stores(tmp_path: Path) -> None:
    done = run("compile", tmp_path, "--only", "width=64")
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path / "compile.json")
    assert record.result is not None
    assert record.result["groups"] > 0
    assert record.result["threads"] == 1
    assert record.result["seconds"].keys() == {"capture", "analyse"}
    assert "| 64 | 2 |" in done.stdout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are built in this process, which has imported all, and timed briefly."""

    def built(model: str, variant: str, removed: int) -> build.Built:
        build.make(model, variant, removed, tmp_path / variant)
        return build.read(tmp_path / variant)

    monkeypatch.setattr(latency, "built", built)
    monkeypatch.setattr(latency, "SECONDS", 0.1)
    monkeypatch.setattr(latency, "LIMIT", 0.0)
    monkeypatch.setattr(profile, "SECONDS", 0.1)


def test_two_variants_are_built_and_timed(here: None) -> None:
    (cell,) = limit.cells(True)
    result = limit.measure(cell.parameters)
    dense, shared = result["variants"].values()
    assert shared["parameters"] < dense["parameters"]
    assert shared["mac_ratio"] < dense["mac_ratio"] == 1
    assert shared["milliseconds"] > 0
    assert result["files"] == files.digest()
    record = Record(cell.parameters, result, "", 1.0, "now", {}, {})
    page = limit.BENCHMARK.page([record])
    assert "| tiny-bert | 40 % | 1 x 16 | 1 |" in page
    assert "MatMul" in page


@pytest.mark.slow
def test_latencies_of_all_variants_are_measured(here: None) -> None:
    found = latency.latencies("tiny-bert", 50, 1, 16, 1, build.VARIANTS)
    dense, shared, fine, gathers = (found["variants"][n] for n in build.VARIANTS)
    assert dense["ratio"] == dense["mac_ratio"] == 1
    # 2 layers with 2 of 4 heads and 64 of 128 channels left: 64 wide, with biases.
    heads = 3 * 32 * (64 + 1) + 32 * 64
    gone = 2 * (heads + 64 * (64 + 1) + 64 * 64)
    assert dense["parameters"] - shared["parameters"] == gone
    assert fine["promised_mac_ratio"] == pytest.approx(shared["mac_ratio"], abs=0.08)
    assert gathers["parameters"] < fine["parameters"]
    assert found["over"] == pytest.approx(shared["ratio"] / shared["mac_ratio"])
    assert {"MatMul", "Softmax"} <= found["profile"]["pruned"].keys()
    assert found["profile"]["runs"] >= profile.LEAST
    assert found["profile"]["excess"].keys() >= found["profile"]["pruned"].keys()


def test_failure_of_a_cell_is_stored_with_its_message() -> None:
    cell = Cell({"model": "no-such-model", "rounds": 1}, 120)
    record = measure("compile", cell)
    assert record.result is None
    assert record.error == "KeyError: 'no-such-model'"


def test_unknown_benchmark_and_options_are_refused() -> None:
    for words in (["speed"], ["limit", "--fast"]):
        command = [sys.executable, "-m", "benchmarks", "run", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert words[-1] in done.stderr


@pytest.mark.parametrize("words", [["--out", "x.json", "--only=a"], ["--help"]])
def test_programs_get_all_of_their_options(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def run_module(name: str, **options: Any) -> None:
        seen.append((name, sys.argv[1:]))

    monkeypatch.setattr("runpy.run_module", run_module)
    monkeypatch.setattr(sys, "argv", [])
    done = CliRunner().invoke(app, ["run", "training_cost", *words])
    assert done.exit_code == 0, done.output
    assert seen == [("benchmarks.training_cost", words)]


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.NAMES)
def test_smoke_run_fills_every_cell(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stderr
    records = read(tmp_path / f"{name}.json")
    assert len(records) == len(catalogue.benchmark(name).cells(True))
    again = run(name, tmp_path)
    assert again.returncode == 0
    assert read(tmp_path / f"{name}.json") == records
    if name == "peers":
        (result,) = (record.result for record in records)
        assert result is not None
        ours, unverified, ao, script = result["rows"].values()
        assert ours["exact"]
        assert unverified["exact"]
        assert script["exact"]
        assert ours["parameters"] == unverified["parameters"] == script["parameters"]
        assert unverified["process_seconds"] > 0
        assert not ao["runs"]
        assert "Proxy" in ao["message"]
