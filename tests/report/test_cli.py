"""The command line: formats, exit codes, limits, and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest

from fgcompile.cli import main
from fgcompile.report import GraphDiff, diff
from tests.report.models import Encoder, scrambled, with_mask

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(autouse=True)
def outside_of_actions(monkeypatch):
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pair(tmp_path):
    paths = [str(tmp_path / f"{name}.onnx") for name in ("before", "after")]
    onnx.save(Encoder().build(), paths[0])
    onnx.save(Encoder(channels={0: range(6)}).build(), paths[1])
    return paths


def test_without_exit_code_a_difference_is_no_failure(pair, capsys):
    assert main(["diff", *pair]) == 0
    assert "1 group shrank" in capsys.readouterr().out


def test_exit_code_tells_same_from_different_from_broken(pair, tmp_path):
    equal = str(tmp_path / "equal.onnx")
    onnx.save(scrambled(Encoder().build()), equal)
    assert main(["diff", pair[0], equal, "--exit-code"]) == 0
    assert main(["diff", *pair, "--exit-code"]) == 2
    assert main(["diff", pair[0], "gone.onnx", "--exit-code"]) == 1


def test_exit_code_counts_a_budget_of_equal_models(pair):
    arguments = ["diff", pair[0], pair[0], "--exit-code", "--budget"]
    assert main([*arguments, "params=+0%"]) == 0
    assert main([*arguments, "params=-1%"]) == 2


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("terminal", "after.onnx: 1 group shrank"),
        ("markdown", "<!-- fgcompile-diff -->"),
        ("json", '{\n  "schema_version": "1.1"'),
        ("html", "<!doctype html>"),
        ("svg", "<svg "),
        ("github", "<!-- fgcompile-diff -->"),
    ],
)
def test_every_format_is_written_to_a_file(pair, tmp_path, form, start):
    output = tmp_path / "report"
    assert main(["diff", *pair, "-f", form, "-o", str(output)]) == 0
    assert output.read_text(encoding="utf-8").lstrip().startswith(start)


def test_no_report_names_a_folder_of_this_machine(pair, tmp_path, capsys):
    for form in ("terminal", "markdown", "json", "html", "svg", "github"):
        main(["diff", *pair, "-f", form])
        text = capsys.readouterr().out
        assert str(tmp_path) not in text
        assert "/home/" not in text


def test_the_same_inputs_give_the_same_bytes_in_any_process(pair):
    texts = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "fgcompile.cli", "diff", *pair, "-f", "json"],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        texts.add(done.stdout)
    assert len(texts) == 1


def test_shapes_are_stated_by_input(pair, capsys):
    main(["diff", *pair, "-f", "json", "--shape", "input_ids=2x64"])
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["macs_shape"] == "input_ids[2, 64]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "speed=1"], 'cannot read the budget "speed=1"'),
        (["--shape", "ids=0x3"], 'cannot read the shape "ids=0x3"'),
        (["--shape", "3x3"], 'cannot read the shape "3x3"'),
        (["--format", "pdf"], "pdf"),
        (["--max-chars", "20"], "20"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_a_wrong_command_line_is_an_error_with_a_message(
    pair, capsys, arguments, message
):
    assert main(["diff", *pair, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""


def test_an_unreadable_place_for_the_report_is_an_error(pair, tmp_path, capsys):
    target = str(tmp_path / "no" / "such" / "folder")
    assert main(["diff", *pair, "-o", target]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_max_chars_is_kept_and_said(tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.onnx") for name in "ab"]
    onnx.save(Encoder(layers=12).build(), paths[0])
    pruned = {layer: range(4 + layer) for layer in range(12)}
    onnx.save(Encoder(layers=12, channels=pruned).build(), paths[1])
    for limit in (4000, 2000, 1000, 400, 200):
        main(["diff", *paths, "-f", "markdown", "--max-chars", str(limit)])
        text = capsys.readouterr().out
        assert len(text) <= limit
        assert text.startswith("<!-- fgcompile-diff -->")
        full = GraphDiff.to_markdown(diff(*paths))
        assert ("the JSON rendering has all" in text) == (len(full) > limit)


def test_in_actions_the_summary_and_the_outputs_are_written(
    pair, tmp_path, monkeypatch, capsys
):
    summary, outputs = tmp_path / "summary", tmp_path / "outputs"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
    main(["diff", *pair, "-f", "github", "--budget", "params=-90%"])
    assert "1 group shrank" in summary.read_text(encoding="utf-8")
    assert outputs.read_text().splitlines() == [
        "differs=true",
        "breaking=false",
        "within-budget=false",
    ]
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("::error title=fgcompile after.onnx::budget params -90%25")


def test_a_name_in_a_file_cannot_forge_a_workflow_command(tmp_path, capsys):
    model = with_mask(Encoder().build())
    model.graph.input[1].name = "x\n::error::forged"
    paths = [str(tmp_path / f"{name}.onnx") for name in "ab"]
    onnx.save(Encoder().build(), paths[0])
    onnx.save(model, paths[1])
    main(["diff", *paths, "-f", "github"])
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("::error::forged") for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        "</code><script>alert(1)</script>",
        "`|` @someone <img src=x>",
        "a```\n# b",
        "\x1b[2J",
    ],
)
def test_a_name_in_a_file_is_only_ever_text(tmp_path, capsys, name):
    model = with_mask(Encoder().build())
    model.graph.input[1].name = name
    paths = [str(tmp_path / f"{side}.onnx") for side in "ab"]
    onnx.save(Encoder().build(), paths[0])
    onnx.save(model, paths[1])
    for form in ("markdown", "html", "svg", "terminal"):
        main(["diff", *paths, "-f", form])
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert "\n# b" not in text
        if form in ("html", "svg"):
            assert "<script>alert" not in text
            assert "<img" not in text
        if form == "markdown":
            row = next(line for line in text.splitlines() if "| added |" in line)
            assert row.count("`") % 2 == 0
            assert row.replace("\\|", "").count("|") == 7


def test_twins_are_written_once(pair, capsys):
    assert main(["twin", *pair, "--exit-code"]) == 2
    assert main(["twin", *pair, "--exit-code"]) == 0
    twin = f"{pair[0]}.fg.md"
    with open(twin, "a", encoding="utf-8") as stream:
        stream.write("edited\n")
    assert main(["twin", *pair, "--check"]) == 2
    assert "stale" in capsys.readouterr().out
    with open(twin, encoding="utf-8") as stream:
        assert stream.read().endswith("edited\n")


def test_a_twin_shows_a_pruned_layer_in_few_lines(pair):
    main(["twin", *pair])
    texts = []
    for path in pair:
        with open(f"{path}.fg.md", encoding="utf-8") as stream:
            texts.append(set(stream.read().splitlines()))
    gone = sorted(texts[0] - texts[1])
    assert [line.split()[1] for line in gone if "float32" in line] == [
        "bias",
        "weight",
        "weight",
    ]
    assert len(gone) == 6
