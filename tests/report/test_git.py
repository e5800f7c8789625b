"""Real git: the textconv driver, the report on a branch, the hook, the action."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from fgcompile.cli import main
from tests.report.models import Encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one committed model, and the working tree pruned."""
    for name in list(os.environ):
        if name.startswith(("GIT_", "GITHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    git("config", "user.name", "a")
    git("config", "user.email", "a@example.com")
    onnx.save(Encoder().build(), "model.onnx")
    git("add", "-A")
    git("commit", "-q", "-m", "model")
    onnx.save(Encoder(channels={1: range(7)}).build(), "model.onnx")
    return tmp_path


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_git_shows_models_as_text_after_setup(repository):
    assert "Binary files" in git("diff")
    assert main(["git-setup"]) == 0
    text = git("diff")
    assert "-- bias float32[24]" in text
    assert "+- bias float32[7]" in text
    assert "encoder.layer.0" not in "".join(
        line for line in text.splitlines(True) if line[0] in "+-"
    )
    git("commit", "-qam", "pruned")
    assert "+- bias float32[7]" in git("log", "-p", "-1")


def test_setup_can_be_repeated_and_undone(repository):
    attributes = repository / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("*.png binary")
    before = (repository / ".git" / "config").read_text()
    main(["git-setup"])
    once = attributes.read_text()
    main(["git-setup"])
    assert attributes.read_text() == once
    assert once.startswith("*.png binary\n")
    main(["git-setup", "--undo"])
    assert attributes.read_text().strip() == "*.png binary"
    assert (repository / ".git" / "config").read_text() == before
    assert "Binary files" in git("diff")
    assert main(["git-setup", "--undo"]) == 0


def test_shared_setup_writes_the_attributes_that_are_committed(repository):
    main(["git-setup", "--shared"])
    assert "*.onnx diff=fgcompile" in (repository / ".gitattributes").read_text()
    assert "+- bias float32[7]" in git("diff", "--", "model.onnx")
    main(["git-setup", "--undo"])
    assert not (repository / ".gitattributes").exists()


def test_a_file_that_is_no_model_does_not_stop_git(repository):
    main(["git-setup"])
    (repository / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec")
    text = git("diff")
    assert "+not readable as a model: model.onnx" in text or "+not readable" in text
    assert "+sha256 " in text


def test_external_data_is_not_needed_for_a_text(repository):
    model = Encoder().build()
    onnx.save(model, "model.onnx", save_as_external_data=True, location="model.data")
    main(["git-setup"])
    assert "values not read" in git("diff")


def test_setup_outside_of_a_repository_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["git-setup"]) == 1
    assert "Run this inside a git repository." in capsys.readouterr().err


def test_changed_reports_on_the_models_of_a_branch(repository, capsys):
    assert main(["changed", "HEAD", "--exit-code"]) == 2
    text = capsys.readouterr().out
    assert "`model.onnx`: 1 group shrank" in text
    assert "24 -> 7" in text


def test_changed_reads_external_data_of_the_base_commit(repository, capsys):
    os.makedirs("deep")
    options: Any = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(Encoder().build(), "deep/m.onnx", location="m.data", **options)
    git("add", "-A")
    git("commit", "-qm", "external")
    os.remove("deep/m.data")
    kept = Encoder(channels={0: [3, 4]}).build()
    onnx.save(kept, "deep/m.onnx", location="m.data", **options)
    assert main(["changed", "HEAD", "--models", "deep/*.onnx"]) == 0
    assert "24 -> 2" in capsys.readouterr().out


def test_changed_follows_no_name_that_no_file_has(repository, capsys):
    model = Encoder().build()
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "a\x00b"
    Path("model.onnx").write_bytes(model.SerializeToString())
    git("commit", "-qam", "odd")
    onnx.save(Encoder().build(), "model.onnx")
    assert main(["changed", "HEAD"]) == 1
    assert "cannot be found" in capsys.readouterr().err


def test_changed_without_a_change_says_so(repository, capsys):
    git("checkout", "-q", "--", "model.onnx")
    assert main(["changed", "HEAD", "--exit-code"]) == 0
    assert "No model changed." in capsys.readouterr().out


def test_changed_with_an_unknown_commit_is_an_error(repository, capsys):
    assert main(["changed", "no-such-commit"]) == 1
    assert "git diff failed" in capsys.readouterr().err


def run_step(script: str, folder: Path, **variables: str) -> str:
    """Run a script of the composite action with a fake `gh` on the path."""
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RUNNER_TEMP": str(folder),
            "GITHUB_OUTPUT": str(folder / "outputs"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
            **variables,
        },
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def fake_gh(folder: Path, text: str) -> None:
    path = folder / "gh"
    path.write_text(f"#!/usr/bin/env bash\necho \"$@\" >>'{folder}/calls'\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def runner(tmp_path_factory):
    return tmp_path_factory.mktemp("runner")


def test_the_action_writes_report_summary_and_outputs(repository, runner):
    result = run_step(
        "action-report.sh",
        runner,
        BASE="HEAD",
        MODELS="*.onnx",
        BUDGETS="params=-50%\n",
        MAX_CHARS="9000",
    )
    assert result.startswith(
        "0 ::error title=fgcompile model.onnx::budget params -50%25"
    )
    report = runner / "fgcompile-report.md"
    assert "24 -> 7" in report.read_text(encoding="utf-8")
    assert (runner / "outputs").read_text().splitlines() == [
        "differs=true",
        "breaking=false",
        "within-budget=false",
        f"report={report}",
    ]
    assert "24 -> 7" in (runner / "summary").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("answer", "differs", "expected"),
    [
        ("echo 41", "true", "--method PATCH repos/o/r/issues/comments/41"),
        ("true", "true", "--method POST repos/o/r/issues/7/comments"),
        ("true", "false", None),
    ],
)
def test_the_action_keeps_one_comment(runner, answer, differs, expected):
    fake_gh(runner, f'case "$*" in *--paginate*) {answer} ;; esac')
    (runner / "report.md").write_text("<!-- fgcompile-diff -->\nbody\n")
    result = run_step("action-comment.sh", runner, **COMMENT, DIFFERS=differs,
                      REPORT=str(runner / "report.md"))  # fmt: skip
    assert result.startswith("0")
    calls = (runner / "calls").read_text()
    if expected is None:
        assert "--method" not in calls
    else:
        assert expected in calls
        (body,) = [w for w in calls.split() if w.startswith("body=@")]
        text = Path(body.removeprefix("body=@")).read_text()
        assert text == "<!-- fgcompile-diff:models -->\nbody\n"


@pytest.mark.parametrize("answer", ["exit 1", 'case "$*" in *POST*) exit 1 ;; esac'])
def test_a_fork_without_write_access_falls_back_to_the_summary(runner, answer):
    fake_gh(runner, answer)
    (runner / "report.md").write_text("<!-- fgcompile-diff -->\nbody\n")
    result = run_step("action-comment.sh", runner, **COMMENT, DIFFERS="true",
                      REPORT=str(runner / "report.md"))  # fmt: skip
    assert result.startswith("0 ::notice::")
    assert "see the job summary" in result


COMMENT = {"REPOSITORY": "o/r", "NUMBER": "7", "KEY": "models", "GH_TOKEN": "t"}


@pytest.mark.parametrize(
    ("fail_on", "differs", "breaking", "within", "code"),
    [
        ("never", "true", "true", "false", "0"),
        ("any", "true", "false", "true", "1"),
        ("any", "false", "false", "true", "0"),
        ("budget", "true", "true", "true", "0"),
        ("budget", "true", "false", "false", "1"),
        ("breaking", "true", "true", "true", "1"),
        ("breaking", "true", "false", "true", "0"),
        ("sometimes", "false", "false", "true", "1"),
    ],
)
def test_the_action_fails_where_it_was_asked_to(
    runner, fail_on, differs, breaking, within, code
):
    result = run_step(
        "action-gate.sh",
        runner,
        FAIL_ON=fail_on,
        DIFFERS=differs,
        BREAKING=breaking,
        WITHIN_BUDGET=within,
    )
    assert result.startswith(code)


def test_the_published_hook_and_action_name_what_exists():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {hook["entry"] for hook in hooks} == {"fgcompile twin --exit-code"}
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    for step in action["runs"]["steps"]:
        if "GITHUB_ACTION_PATH" in step["run"]:
            name = step["run"].split("/")[-1].rstrip('"')
            assert (ROOT / "scripts" / name).is_file()
            script = (ROOT / "scripts" / name).read_text()
            assert all(key in script for key in step["env"] if key != "GH_TOKEN")
