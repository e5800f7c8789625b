"""Every rendering of every kind of pair, byte by byte, and against the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fgcompile.report import GraphDiff, Note, Pinned, Variant, Verification, diff
from fgcompile.report.render_github import render_github
from fgcompile.report.render_twin import render_twin
from tests.report.golden import assert_golden
from tests.report.models import Encoder, scrambled, with_mask

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "schema" / "graph-diff-1.json").read_text()
)
KEPT_HEADS = {0: [0, 1, 3], 1: [2, 3], 2: [2, 3]}
KEPT_CHANNELS = {0: range(0, 24, 2), 1: range(5, 24), 2: range(5, 24)}

PAIRS: dict[str, Callable[[], tuple[onnx.ModelProto, onnx.ModelProto]]] = {
    "equal": lambda: (Encoder().build(), Encoder().build()),
    "renamed": lambda: (Encoder().build(), scrambled(Encoder().build())),
    "inserted": lambda: (Encoder().build(), Encoder(insert_after_gelu=[1]).build()),
    "pruned": lambda: (
        Encoder().build(),
        Encoder(heads=KEPT_HEADS, channels=KEPT_CHANNELS).build(),
    ),
    "quantised": lambda: (Encoder().build(), Encoder(quantised=True).build()),
    "opset": lambda: (Encoder().build(), Encoder(opset=21).build()),
    "interface": lambda: (Encoder().build(), with_mask(Encoder().build())),
}


@pytest.fixture(scope="module", params=sorted(PAIRS))
def case(request: Any) -> tuple[str, GraphDiff]:
    before, after = PAIRS[request.param]()
    return request.param, diff(before, after)


def test_markdown(case):
    name, report = case
    assert_golden(f"{name}.md", report.to_markdown())


def test_json(case):
    name, report = case
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)
    assert_golden(f"{name}.json", report.to_json())


def test_terminal(case):
    name, report = case
    text = report.to_terminal(width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert_golden(f"{name}.txt", text)


def test_html(case):
    name, report = case
    page = report.to_html()
    assert_golden(f"{name}.html", page[page.index("<main>") : page.index("<script>")])


def test_svg(case):
    name, report = case
    assert_golden(f"{name}.svg", report.to_svg())


def test_github(case):
    name, report = case
    text = render_github(report.with_budgets(["params=-30%", "bytes=1M"]), 65_536)
    assert_golden(f"{name}.github", text)


def test_a_full_report_follows_the_schema():
    before, after = PAIRS["pruned"]()
    report = diff(before, after, verified=Verification(1e-6, 1e-4, ("2x8",), "fx"))
    pin = Pinned("pooler", 16, "it is an output", "linear", "pooler", "m.py:3", "none")
    full = GraphDiff(
        **{
            **vars(report.with_budgets(["params=-10%", "diff=1e-5"])),
            "pinned": (pin,),
            "notes": (Note("2 of 5 closed units stay", "mlp", "warning"),),
            "variants": (
                Variant("dense float32", 4_000_000, 1.0),
                Variant("lowered int8", 812_345, 0.42, 0.031, "lowered float32"),
            ),
        }
    )
    document = json.loads(full.to_json())
    jsonschema.validate(document, SCHEMA)
    assert_golden("full.md", full.to_markdown())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "schema_version": "2.0"}, SCHEMA)


def test_twin_says_the_same_of_a_scrambled_model(tmp_path):
    texts = []
    for seed, model in enumerate((Encoder().build(), scrambled(Encoder().build()))):
        path = tmp_path / str(seed) / "model.onnx"
        path.parent.mkdir()
        onnx.save(model, path)
        texts.append(render_twin(path))
    assert texts[0] == texts[1]
    assert_golden("twin.md", texts[0])
