"""Decoders on ONNX: one graph for prefill and decode, as loaders expect it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgcompile.errors import ExportError, VerifyError
from fgcompile.targets.decoder import (
    OnnxDecoder,
    cache_layers,
    verify_decoder,
    write_decoder,
    write_genai_config,
)
from fgcompile.zoo.models import entry

transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

KEPT = ([0, 2], [1], [0, 1, 3])
"""Key-value heads that are left in each layer, of four."""

DECODERS = (
    *("gpt2:eager", "gpt_neox", "opt", "falcon:multi-query", "falcon:new-decoder"),
    *("llama:eager", "llama:tied", "mistral", "qwen2", "qwen3", "gemma2", "phi3"),
)


@dataclass
class Pruned:
    """A model, its file, and the file in onnxruntime."""

    model: Any
    file: Path
    run: OnnxDecoder


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(
        **{
            **dict(hidden_size=32, intermediate_size=48, vocab_size=61),
            **dict(num_hidden_layers=3, num_attention_heads=8),
            **dict(num_key_value_heads=4, initializer_range=0.3),
            **changes,
        }
    )
    return transformers.LlamaForCausalLM(config).eval()


def pruned_llama() -> Any:
    """Layers with 2, 1 and 3 key-value heads, and two query heads for each."""
    model = llama()
    for layer, kept in zip(model.model.layers, KEPT, strict=True):
        attention, size = layer.self_attn, layer.self_attn.head_dim
        heads = torch.tensor(kept)
        small = (heads[:, None] * size + torch.arange(size)).flatten()
        large = (heads[:, None] * 2 * size + torch.arange(2 * size)).flatten()
        for name, rows in (("q", large), ("k", small), ("v", small)):
            linear = getattr(attention, f"{name}_proj")
            linear.weight = nn.Parameter(linear.weight[rows])
        attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, large])
    return model


def exported(model: Any, path: Path) -> OnnxDecoder:
    layers = cache_layers(model)
    write_decoder(model, layers, path)
    return OnnxDecoder(path, layers, threads=1)


def shapes(values: Any) -> dict[str, list[Any]]:
    dims = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: [d.dim_param or d.dim_value for d in dims[name]] for name in dims}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: Any) -> Pruned:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("pruned") / "model.onnx"
    model = pruned_llama()
    return Pruned(model, file, exported(model, file))


def test_names_and_shapes_are_those_that_loaders_expect(pruned: Pruned) -> None:
    graph = onnx.load(pruned.file).graph
    past, present = {}, {}
    for layer, kept in enumerate(KEPT):
        for part in ("key", "value"):
            shape = ["batch_size", len(kept), "past_sequence_length", 4]
            past[f"past_key_values.{layer}.{part}"] = shape
            shape = ["batch_size", len(kept), "total_sequence_length", 4]
            present[f"present.{layer}.{part}"] = shape
    tokens = ["batch_size", "sequence_length"]
    assert shapes(graph.input) == {
        "input_ids": tokens,
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": tokens,
        **past,
    }
    assert shapes(graph.output) == {"logits": [*tokens, 61], **present}
    assert list(shapes(graph.output)) == ["logits", *present]


def test_layers_with_unequal_heads_compute_what_the_model_does(pruned: Pruned) -> None:
    assert [layer.heads for layer in pruned.run.layers] == [2, 1, 3]
    comparison = verify_decoder(pruned.model, pruned.run)
    assert comparison.cases == 4
    assert comparison.relative < 1e-5


def test_file_of_another_model_is_not_verified(pruned: Pruned) -> None:
    model = copy.deepcopy(pruned.model)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3] *= 1.01
    with pytest.raises(VerifyError, match="logits differ by"):
        verify_decoder(model, pruned.run)


def test_text_of_a_trained_model_is_the_same(stories260k: Any, tmp_path: Path) -> None:
    run = exported(stories260k, tmp_path / "model.onnx")
    prompt = torch.tensor([[1, 403, 407, 261, 378]])
    with torch.no_grad():
        want = stories260k.generate(
            prompt, max_new_tokens=100, do_sample=False, eos_token_id=None
        )
    assert run.greedy(prompt, 100).tolist() == want.tolist()


@pytest.mark.slow
def test_positions_are_asked_for_only_if_the_model_takes_them(tmp_path: Path) -> None:
    model = entry("bloom").build().eval()
    run = exported(model, tmp_path / "model.onnx")
    assert "position_ids" not in {value.name for value in run.session.get_inputs()}
    assert verify_decoder(model, run).relative < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_window_that_slides_hides_old_tokens(name: str, tmp_path: Path) -> None:
    model = sliding(name)
    run = exported(model, tmp_path / "model.onnx")
    assert verify_decoder(model, run).relative < 1e-5


def sliding(name: str) -> Any:
    config = transformers.AutoConfig.for_model(
        name,
        sliding_window=8,
        **dict(hidden_size=32, intermediate_size=48, vocab_size=61, head_dim=8),
        **dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_of_the_zoo_are_exported_with_their_cache(
    name: str, tmp_path: Path
) -> None:
    model = entry(name).build().eval()
    run = exported(model, tmp_path / "model.onnx")
    assert verify_decoder(model, run).relative < 1e-5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5", "its decoder reads an encoder as well"),
        ("bert", "it returns no logits of every token"),
        ("llama:classifier", "it returns no logits of every token"),
        ("vit", "its forward takes no past_key_values"),
    ],
)
def test_what_is_no_decoder_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        cache_layers(entry(name).build().eval())
    assert str(caught.value).endswith("Lower without cache.")


def test_genai_config_describes_the_file(tmp_path: Path) -> None:
    model = pruned_llama()
    write_genai_config(model, cache_layers(model), tmp_path / "small.onnx")
    found = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    decoder = found.pop("decoder")
    assert found == {
        **{"type": "decoder", "vocab_size": 61, "context_length": 2048},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    }
    assert decoder["filename"] == "small.onnx"
    sizes = {name: value for name, value in decoder.items() if type(value) is int}
    assert sizes == {
        **{"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 32},
        **{"num_key_value_heads": 2, "head_size": 4},
    }
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
