"""`lower(model, "onnx", cache=True)`: text of the gated model, from a smaller file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgcompile import GateConfig, gates, insert_gates, lower

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

PROMPT = torch.tensor([[1, 403, 407, 261, 378]])
CLOSED_HEADS = ([0], [1, 2], [3], [0, 2], [1])
"""Key-value heads that are closed in each layer, of four."""


def gated(model: Any) -> Any:
    """Unequal heads in the layers, and channels at random."""
    insert_gates(model, config=GateConfig(kinds=("mlp", "head")))
    heads = [g for n, g in gates(model).items() if n.endswith("head")]
    channels = [g for n, g in gates(model).items() if n.endswith("mlp")]
    generator = torch.Generator().manual_seed(3)
    for layer, closed in enumerate(CLOSED_HEADS):
        heads[layer].close(closed)
        order = torch.randperm(channels[layer].size, generator=generator)
        channels[layer].close(order[: 30 + 10 * layer])
    return model


def text_of(model: Any) -> list[int]:
    with torch.no_grad():
        tokens: Tensor = model.generate(
            PROMPT, max_new_tokens=100, do_sample=False, eos_token_id=None
        )
    return tokens[0].tolist()


def written_by(lowered: Any) -> list[int]:
    """The same text, from the ONNX file."""
    return lowered._run.greedy(PROMPT, 100)[0].tolist()


def heads_of(lowered: Any) -> list[int]:
    shapes = {v.name: v.type.tensor_type.shape for v in lowered.model.graph.input}
    names = [f"past_key_values.{layer}.key" for layer in range(5)]
    return [shapes[name].dim[1].dim_value for name in names]


@pytest.fixture(scope="module")
def model(load_stories260k: Any) -> Any:
    return gated(load_stories260k())


def test_text_is_that_of_the_gated_model(model: Any, tmp_path: Path) -> None:
    lowered = lower(model, "onnx", tmp_path / "out", cache=True)
    assert written_by(lowered) == text_of(model)
    assert (lowered.report.verdict.parameters.ratio or 0) < -0.2
    assert heads_of(lowered) == [3] * 5
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("model.onnx", "config.json", "generation_config.json", "genai_config.json"),
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_key_value_heads"] == 3


@pytest.mark.slow
def test_heads_may_differ_from_layer_to_layer(model: Any) -> None:
    lowered = lower(model, "onnx", cache=True, uniform=False)
    assert heads_of(lowered) == [3, 2, 3, 2, 3]
    assert written_by(lowered) == text_of(model)


@pytest.mark.slow
def test_int8_decoder_is_measured_token_by_token(model: Any) -> None:
    lowered = lower(model, "onnx", cache=True, quantization="int8")
    assert lowered.rounding is not None
    assert lowered.comparison is not None
    assert lowered.comparison.relative < 1e-5 < lowered.rounding.relative
    names = [variant.name for variant in lowered.report.variants]
    assert names[-1] == "lowered int8"
    logits = lowered(PROMPT)["logits"]
    assert logits.shape == (1, 5, 512)


@pytest.mark.slow
@pytest.mark.parametrize("uniform", [None, False])
def test_genai_generates_the_same_text(
    model: Any, uniform: bool | None, tmp_path: Path
) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    lower(model, "onnx", tmp_path / "out", cache=True, uniform=uniform)
    loaded = genai.Model(str(tmp_path / "out"))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=105)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(PROMPT[0].tolist())
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)] == text_of(model)
