"""`analyze`, `lower` and `bench`, on a small model in a folder."""

from __future__ import annotations

import errno
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fgcompile
from fgcompile import Budget, GateConfig, gates, insert_gates, save_gates
from fgcompile.cli import main
from fgcompile.errors import FgcompileError
from fgcompile.gates import LatencyTable, saved_config
from fgcompile.gates.latency import GroupTimes, SharedTime
from fgcompile.zoo.models import entry

# The package has a function of the same name.
bench_verb = importlib.import_module("fgcompile.cli.bench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in a folder."""
    path = tmp_path_factory.mktemp("model")
    model: Any = entry("llama").build()
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gate_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its gates, half of them closed."""
    model = insert_gates(entry("llama").build(), config=GateConfig(kinds=("mlp",)))
    for gate in gates(model).values():
        gate.close(range(gate.size // 2))
    return save_gates(model, tmp_path_factory.mktemp("gates"))


def test_analyze_reads_no_weights(folder: Path, tmp_path: Path, capsys: Any) -> None:
    config = (folder / "config.json").read_text("utf-8")
    (tmp_path / "config.json").write_text(config, "utf-8")
    assert main(["analyze", str(tmp_path), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = {g["kind"]: g["units"] for g in found["groups"] if g["pinned"] is None}
    assert (kinds["mlp"], kinds["head"]) == (96, 4)


def test_analyze_explains_a_module(folder: Path, capsys: Any) -> None:
    assert main(["analyze", str(folder), "--explain", "model.layers.0.mlp"]) == 0
    out = capsys.readouterr().out
    assert "couples model.layers.0.mlp.down_proj.weight:1" in out


def test_lower_writes_a_module_that_loads(
    folder: Path, gate_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["--gates", str(gate_folder), "--target", "module"]
    status = main(
        ["lower", str(folder), *arguments, "--out", str(tmp_path), "--format", "json"]
    )
    assert status == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"]["parameters"]["after"] < 30_000
    small = fgcompile.load(tmp_path)
    assert small.get_parameter("model.layers.1.mlp.up_proj.weight").shape == (48, 32)


def test_lower_says_that_a_budget_is_not_met(folder: Path, tmp_path: Path) -> None:
    arguments = ["lower", str(folder), "--target", "module", "-o", str(tmp_path)]
    limits = ["--budget", "params=-10%", "--exit-code"]
    assert main([*arguments, *limits]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "no-such-folder"], "cannot open model no-such-folder"),
        (["lower", "x", "--target", "tpu", "--out", "y"], 'unknown target "tpu"'),
        (["lower", "x", "-t", "module", "--int8", "-o", "y"], "is for ONNX files"),
        (["bench", "x", "--keep", "2"], 'cannot read the shares "2"'),
        (["bench", "x.onnx", "y.onnx"], "cannot run x.onnx"),
    ],
)
def test_bad_command_lines_are_told(
    arguments: list[str], message: str, capsys: Any
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


class FullDisk(io.StringIO):
    """A log on a disk without room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_without_room_stops_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    out, report = tmp_path / "out", tmp_path / "report.txt"
    arguments = ["--target", "module", "--out", str(out), "--report", str(report)]
    assert main(["lower", str(folder), *arguments]) == 0
    assert "parameters" in report.read_text("utf-8")
    assert main(["analyze", "no-such-folder"]) == 1


@pytest.mark.slow
def test_bench_predicts_what_a_unit_saves(folder: Path, capsys: Any) -> None:
    arguments = ["bench", str(folder), "--keep", "0.5", "--seconds", "0.2"]
    assert main([*arguments, "--length", "16", "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert "measuring the dense model and its parts: " in captured.err
    found = json.loads(captured.out)
    dense, half = found["models"]
    assert half["bytes"] < dense["bytes"]
    assert half["predicted"] < dense["predicted"]
    assert 0.4 < half["macs"] < 0.9
    assert {unit["kind"]: unit["units"] for unit in found["units"]} == {
        "mlp": 192,
        "head": 8,
    }


def test_bench_tells_what_to_choose(
    folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    names = [f"model.layers.{k}.{what}" for k in range(2) for what in ("head", "mlp")]
    groups = tuple(
        GroupTimes(name, name.split(".")[-1], (0, 4), (0.0, 0.001)) for name in names
    )
    shared = tuple(SharedTime((name,), 0.001) for name in names)
    table = LatencyTable(0.005, groups, shared)
    monkeypatch.setattr(bench_verb, "measure_latency", lambda model, **sizes: table)
    monkeypatch.setattr(
        bench_verb,
        "_smaller",
        lambda model, table, shares, folder: [
            _file(folder / "dense.onnx", "dense", 0.005, 1.0),
            _file(folder / "small.onnx", "50% of the units", 0.003, 0.4),
        ],
    )
    monkeypatch.setattr(bench_verb, "onnx_latencies", lambda *sizes: [0.006, 0.0036])
    assert main(["bench", str(folder), "--keep", "0.5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["dense", "0.0", "6.00", "1.00", "1.00", "1.00"]
    assert lines[2][-5:] == ["0.0", "3.60", "0.60", "0.60", "0.40"]
    text = "\n".join(" ".join(line) for line in lines)
    assert "one of 8 mlp units saves about 250.00 microseconds, 5.0000% of" in text
    assert "20% of the latency is outside every gate" in text
    assert main(["bench", str(folder), "--keep", "0.5", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["length"], found["threads"]) == (2, 128, 1)
    assert found["floor"] == pytest.approx(0.2)
    assert found["units"][0]["seconds"] == pytest.approx(0.00025)


def _file(path: Path, name: str, predicted: float, macs: float) -> Any:
    path.touch()
    return bench_verb._File(name, path, predicted, macs)


def test_bench_help_teaches(capsys: Any) -> None:
    assert main(["bench", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "fgcompile bench my-model/ --length 64" in out
    assert "Budget(latency=0.70)" in out


def test_saved_config_makes_gates_that_fit(tmp_path: Path) -> None:
    config = GateConfig(kinds=("mlp",), budget=Budget(params=0.5, steps=7), noise=0.2)
    x = torch.zeros(2, 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    save_gates(insert_gates(model, (x,), config), tmp_path)
    assert saved_config(tmp_path) == config


def test_decoders_keep_equally_many_heads_unless_told_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lowered(*_: Any, uniform: bool | None, **__: Any) -> Any:
        asked.append(uniform)
        raise FgcompileError("seen")

    monkeypatch.setattr(sys.modules["fgcompile.cli.lower"], "lower_model", lowered)
    call = ["lower", str(folder), "--cache", "--out", str(tmp_path)]
    for more in ([], ["--uniform"], ["--no-uniform"]):
        assert main([*call, *more]) == 1
    assert asked == [None, True, False]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fgcompile lo", {"lower"}),
        ("fgcompile lower --targ", {"--target"}),
        ("fgcompile lower x --target ", {"fx", "module", "onnx", "openvino"}),
        ("fgcompile diff x y --format j", {"json"}),
    ],
)
def test_shell_completes_verbs_options_and_values(
    words: str, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("_FGCOMPILE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        main([])
    assert set(capsys.readouterr().out.split()) == offered


@pytest.mark.parametrize("verb", ["analyze", "lower", "diff", "bench"])
def test_help_of_each_verb_has_an_example(verb: str, capsys: Any) -> None:
    main([verb, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"Usage: fgcompile {verb}" in out
    assert f"Example: fgcompile {verb}" in out
