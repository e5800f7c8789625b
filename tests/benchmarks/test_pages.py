"""Tables say what the results say, and the committed ones are made from them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import catalogue, limit, pages
from benchmarks.cells import Parameters, Record, Result
from benchmarks.machine import machine, versions
from benchmarks.store import write

SECONDS = {
    "torch.export": 1.0,
    "torch.onnx.export": 3.0,
    "capture": 1.5,
    "analyse": 0.25,
    "insert": 2.0,
    "eliminate": 2.5,
    "export": 4.0,
    "verify": 0.5,
    "lower": 8.0,
}


def stages() -> Result:
    return {
        "parameters": 20_000_000,
        "weight_megabytes": 80.0,
        "seconds": SECONDS,
        "megabytes": dict.fromkeys(SECONDS, 100.0),
    }


def latency(cell: Parameters) -> Result:
    dense = {"parameters": 100, "mac_ratio": 1.0, "milliseconds": 50.0, "ratio": 1.0}
    shared = {"parameters": 70, "mac_ratio": 0.6, "milliseconds": 33, "ratio": 0.66}
    fine = {"parameters": 60, "mac_ratio": 0.5, "milliseconds": 45, "ratio": 0.9}
    fine["promised_mac_ratio"] = 0.61
    found: Result = {
        "threads": 1,
        "files": "0123",
        "variants": {"dense": dense, "shared": shared, "finegates": fine},
        "over": 1.1,
        "profile": {
            "dense": {"MatMul": 40.0, "Add": 1.0},
            "pruned": {"MatMul": 24.5, "Sum": 2.0, "Add": 0.5},
            "excess": {"Sum": 2.0, "MatMul": 0.5, "Add": -0.1},
        },
    }
    if "gathers" in limit.variants(cell):
        found["variants"]["gathers"] = fine | {"ratio": 1.2}
    return found


def tool(seconds: float, removed: int) -> Result:
    return {
        "version": "",
        "runs": True,
        "seconds": seconds,
        "process_seconds": 11.0,
        "megabytes": 300.0,
        "megabytes_of_file": 200.0,
        "note": "",
        "difference": 1e-6,
        "exact": True,
        "removed": removed,
        "removable": 40,
        "latency_ratio": 0.55,
        "latency_ratio_to_ours": 0.57,
    }


def peers() -> Result:
    return {
        "fgcompile": tool(12.0, 40),
        "fgcompile, not verified": tool(8.0, 40),
        "torch-pruning": {
            "version": "1.2",
            "runs": False,
            "message": "no result after 120 s",
        },
        "script": tool(10.0, 40),
        "onnxsim": tool(15.0, 50) | {"exact": False},
    }


RESULTS: dict[str, Any] = {
    "limit": latency,
    "peers": lambda cell: {"threads": 1, "rows": peers()},
    "latency_budget": lambda cell: {
        "predicted": 0.6,
        "measured": 0.624,
        "error": 0.04,
        "dense_seconds": 0.05,
        "lowered_seconds": 0.0312,
        "seconds_to_measure": 40.0,
        "peak_memory_bytes": 2e9,
    },
    "compile": lambda cell: stages() if "model" in cell else stages() | {"groups": 9},
}


def results(folder: Path, name: str) -> list[Record]:
    """A file of made-up results for every cell."""
    facts = machine() | {"load_average": [0.1, 0.4]}
    cells = [cell.parameters for cell in catalogue.benchmark(name).cells(False)]
    records = [
        Record(cell, RESULTS[name](cell), "", 1.0, "2026-01-01", facts, versions())
        for cell in cells
    ]
    write(folder / f"{name}.json", records)
    return records


def test_committed_page_and_readme_are_what_the_results_give() -> None:
    page = pages.PAGE.read_text(encoding="utf-8")
    assert page == pages.page(), "run python -m benchmarks table"
    readme = pages.README.read_text(encoding="utf-8")
    assert readme == pages.with_tables(readme), "run python -m benchmarks table"
    for found, _ in pages.measured():
        pictures = re.findall(r"\]\((benchmarks/[\w-]+\.svg)\)", page)
        assert all((pages.PAGE.parent / picture).exists() for picture in pictures)
        assert f"<!-- benchmark {found.name} -->" in readme


@pytest.mark.parametrize(
    ("name", "row"),
    [
        (
            "limit",
            "| bert-base | 40 % | 1 x 128 | 1 | 50.00 | 70.0% | 0.600 | 0.660 | 1.100 "
            "| 0.610 | 1.200 | 0.900 |",
        ),
        (
            "peers",
            "| bert | fgcompile | yes | yes | 1.0e-06 | 100.0% | 12.0 | 11.0 | 300 "
            "| 200 | 0.550 | 0.570 |",
        ),
        (
            "latency_budget",
            "| llama-1b | 1 x 128 | 1 | 0.60 | 0.600 | 0.624 | +4.0% | 50.0 | 31.2 "
            "| 40 | 2.0 |",
        ),
        (
            "compile",
            "| minilm | 20.0 M | 1.00 s, 100 MB | 3.00 s, 100 MB | 1.50 s, 100 MB | "
            "0.25 s, 100 MB | 2.00 s, 100 MB | 2.50 s, 100 MB | 4.00 s, 100 MB | "
            "0.50 s, 100 MB | 8.00 s, 100 MB | 2.00 | 1.25 |",
        ),
    ],
)
def test_page_has_a_row_for_every_cell(name: str, row: str, tmp_path: Path) -> None:
    records = results(tmp_path, name)
    page = pages.page(tmp_path)
    assert row in page
    assert page.count("\n| ") >= len(records)
    assert "load average 0.1 to 0.4" in page


def test_page_says_how_much_of_it_is_missing(tmp_path: Path) -> None:
    records = results(tmp_path, "latency_budget")
    assert "So far" not in pages.page(tmp_path)
    write(tmp_path / "latency_budget.json", records[:2])
    assert f"So far 2 of {len(records)} cells were run." in pages.page(tmp_path)


def test_slow_cells_say_by_operator_why(tmp_path: Path) -> None:
    results(tmp_path, "limit")
    row = "| +2.40 | Sum +2.00 (0.00 to 2.00); MatMul +0.50 (40.00 to 24.50); Add -0.10"
    assert row in pages.page(tmp_path)


def test_states_of_the_compiler_are_told_where_they_differ(tmp_path: Path) -> None:
    records = results(tmp_path, "limit")
    assert "states of the compiler" not in pages.page(tmp_path)
    other = (records[0].result or {}) | {"files": "4567"}
    records[0] = replace(records[0], result=other)
    write(tmp_path / "limit.json", records)
    assert "by 2 states of the compiler: 0123, 4567." in pages.page(tmp_path)


def test_peers_that_fail_are_told_with_their_message(tmp_path: Path) -> None:
    results(tmp_path, "peers")
    page = pages.page(tmp_path)
    assert "| llama | torch-pruning | no result after 120 s |" in page


def test_ours_is_judged_against_every_peer_that_is_right(tmp_path: Path) -> None:
    results(tmp_path, "peers")
    page = pages.page(tmp_path)
    row = "| vit | script | yes | yes (1.00 x) | NO (1.20 x) | yes (0.80 x) |"
    assert row in page
    assert "| vit | onnxsim | yes |" in page  # it runs, and is wrong
    assert "| vit | onnxsim | yes | yes (" not in page


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_cells_that_failed_are_told(name: str, tmp_path: Path) -> None:
    records = results(tmp_path, name)
    records[-1] = replace(records[-1], result=None, error="no memory")
    write(tmp_path / f"{name}.json", records)
    assert f"\n| {records[-1].key} | no memory |\n" in pages.page(tmp_path)
    assert pages.with_tables("none", tmp_path) == "none"


def test_budgets_that_keep_their_word_are_counted(tmp_path: Path) -> None:
    results(tmp_path, "latency_budget")
    readme = "<!-- benchmark latency_budget -->\nold\n<!-- end latency_budget -->"
    for text in (pages.page(tmp_path), pages.with_tables(readme, tmp_path)):
        assert "6 of 6 are within 5% of what was predicted; median error 4.0%" in text


def test_growth_is_drawn_against_layers_and_width(tmp_path: Path) -> None:
    records = results(tmp_path, "compile")
    stages, growth = catalogue.benchmark("compile").plots(records, tmp_path)
    assert "dense exports" in stages.read_text()
    drawn = growth.read_text()
    for text in ("width 1024", "layers 16", ">60<", ">8000<"):
        assert text in drawn
    page = pages.page(tmp_path)
    assert f"(benchmarks/{growth.name})" in page
    assert f"(benchmarks/{stages.name})" in page


def test_readme_takes_tables_between_its_comments(tmp_path: Path) -> None:
    results(tmp_path, "limit")
    readme = "a\n<!-- benchmark limit -->\nold\n<!-- end limit -->\nb\n"
    new = pages.with_tables(readme, tmp_path)
    assert new.startswith("a\n")
    assert new.endswith("\nb\n")
    assert "old" not in new
    row = "| bert-base | 70.0% | 0.600 | 0.660 | 1.100 | 1.200 | 0.900 |"
    # One size, where 40 % are removed.
    assert new.count(row) == 1
    assert "model without 40 %\nof" in new
    assert "with 30% of them removed, 34% are saved" in new
    assert pages.with_tables(new, tmp_path) == new


def test_readme_has_a_place_for_every_table() -> None:
    readme = pages.README.read_text(encoding="utf-8")
    for name in catalogue.NAMES:
        assert f"<!-- benchmark {name} -->\n" in readme
        assert f"<!-- end {name} -->" in readme


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_pictures_are_the_same_for_the_same_numbers(name: str, tmp_path: Path) -> None:
    records, found = results(tmp_path, name), catalogue.benchmark(name)
    first = [file.read_bytes() for file in found.plots(records, tmp_path)]
    assert first == [file.read_bytes() for file in found.plots(records, tmp_path)]


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_cells_have_names_of_their_own(name: str) -> None:
    for smoke in (False, True):
        keys = [cell.key for cell in catalogue.benchmark(name).cells(smoke)]
        assert keys
        assert len(set(keys)) == len(keys)
