"""Every model of the zoo is captured, with symbolic sizes, and computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile.capture import capture, other_inputs
from fgcompile.capture.state import tracing_state
from fgcompile.program import Program
from fgcompile.zoo.__main__ import app
from fgcompile.zoo.models import Entry, entries
from fgcompile.zoo.survey import survey

pytest.importorskip("transformers")


@pytest.mark.parametrize("entry", list(entries()), ids=lambda entry: entry.name)
def test_captured_model_computes_the_same_at_other_sizes(entry: Entry) -> None:
    model = entry.build()
    program = capture(model, entry.example_inputs())
    assert_flat(program)
    assert_sizes_are_symbols(program)
    for inputs in (
        program.inputs,
        other_inputs(program, batch=3, length=7),
        other_inputs(program, batch=5, length=9, padded=True),
    ):
        assert_same(program, model, inputs)


def assert_flat(program: Program) -> None:
    kinds = {node.op for node in program.graph.nodes}
    assert kinds == {"placeholder", "get_attr", "call_function", "output"}
    for node in program.graph.nodes:
        assert node.op == "output" or "val" in node.meta
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable


def assert_sizes_are_symbols(program: Program) -> None:
    """The batch everywhere, and the length of tokens and of other sequences."""
    for node in program.placeholders:
        value = node.meta["val"]
        assert isinstance(value.shape[0], torch.SymInt), node
        if not value.is_floating_point():
            assert isinstance(value.shape[1], torch.SymInt), node


def assert_same(program: Program, model: nn.Module, inputs: dict[str, Any]) -> None:
    with tracing_state(model):
        expected = pytree.tree_leaves(model(**inputs))
    with torch.no_grad():
        got = pytree.tree_leaves(program(**inputs))
    names = program.output_names
    for name, one, other in zip(names, got, expected, strict=True):
        assert isinstance(one, Tensor)
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name


def test_models_are_generic_and_reproducible() -> None:
    entry = next(entries())
    first, second = entry.build(), entry.build()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dim() == 0 or (one != 0).float().mean() > 0.95
        assert one.numel() < 2 or one.std() > 1e-3


def test_names_are_unique_and_some_models_are_kept_out_of_development() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names))
    assert sum(entry.unseen for entry in entries()) >= 15


def run(*arguments: str) -> int:
    """The exit status of `python -m fgcompile.zoo ARGUMENTS`."""
    result = app(list(arguments), standalone_mode=False)
    return int(result or 0)


def test_survey_prints_sizes_and_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--capture", "plain-mixer", "bert") == 0
    mixer, bert = capsys.readouterr().out.splitlines()
    assert mixer.split()[0] == "plain-mixer"
    assert mixer.endswith("pixels[b 3 16 16]")
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    assert bert.endswith(" ".join(("0.0e+00", *(f"{name}[b t]" for name in inputs))))


def test_survey_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("brt") == 2
    assert capsys.readouterr().out.startswith("unknown: brt\n  Choose from: bert, ")


def test_survey_reports_a_failure_as_a_row() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    row = next(survey([Entry("branch", Branch, lambda: {"x": torch.ones(2, 3)})]))
    assert "FAILED cannot trace Branch: its control flow" in str(row)
