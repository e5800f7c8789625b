"""A smaller model comes back from disk as the class that it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fgcompile
from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.checkpoint import MANIFEST
from fgcompile.checkpoint.per_layer import per_layer_config
from fgcompile.errors import ExportError, FormatError
from fgcompile.targets.verify import outputs_of
from fgcompile.zoo.models import entry

TOKENS = torch.tensor([[1, 5, 9, 3], [2, 2, 7, 4]])


class Mlp(nn.Module):
    """Four in, eight hidden, two out; weights twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.same = self.down

    def forward(self, x: Tensor) -> Tensor:
        return self.same(torch.relu(self.up(x)))


def lowered_mlp() -> Any:
    torch.manual_seed(0)
    model = insert_gates(Mlp().eval(), (torch.randn(2, 4),))
    next(iter(gates(model).values())).close([1, 4, 6])
    return lower(model, "module")


def lowered(name: str, kinds: tuple[str, ...], ragged: bool, **options: Any) -> Any:
    """A zoo model with half of its units closed, or another part in every layer."""
    model = insert_gates(entry(name).build(), config=GateConfig(kinds=kinds))
    torch.manual_seed(2)
    for depth, gate in enumerate(gates(model).values()):
        share = gate.size // (2 + depth % 3) if ragged else gate.size // 2
        gate.close(torch.randperm(gate.size)[:share])
    return lower(model, "module", **options)


@pytest.fixture(scope="module")
def ragged_llama() -> Any:
    """Layers that differ."""
    return lowered("llama", ("mlp", "head"), ragged=True)


def sizes(model: nn.Module) -> dict[str, list[int]]:
    """Shape of every parameter."""
    return {name: list(p.shape) for name, p in model.named_parameters()}


def same_outputs(first: nn.Module, second: nn.Module) -> bool:
    """Whether both give equal logits for the tokens."""
    inputs = {"input_ids": TOKENS}
    want, got = outputs_of(first, inputs), outputs_of(second, inputs)
    return all(torch.equal(w, g) for w, g in zip(want, got, strict=True))


def test_layers_that_differ_come_back_in_a_new_process(
    tmp_path: Path, ragged_llama: Any
) -> None:
    folder = ragged_llama.save(tmp_path / "small")
    code = (
        "import sys, torch, fgcompile\n"
        "model = fgcompile.load(sys.argv[1])\n"
        f"out = model(torch.tensor({TOKENS.tolist()})).logits\n"
        "print(type(model).__module__, type(model).__name__)\n"
        "torch.save(out, sys.argv[2])\n"
    )
    call = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.pt")]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    cls = type(ragged_llama.model)
    assert done.stdout.split() == [cls.__module__, cls.__name__]
    got = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(
        got, ragged_llama.model(TOKENS).logits, rtol=0, atol=1e-6
    )


def test_loaded_model_generates_with_its_cache(
    tmp_path: Path, ragged_llama: Any
) -> None:
    loaded: Any = fgcompile.load(ragged_llama.save(tmp_path))
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": True}
    want = ragged_llama.model.generate(TOKENS, **options)
    assert torch.equal(loaded.generate(TOKENS, **options), want)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", ("mlp",)),  # whose class forbids six of eight heads
        ("qwen3", ("mlp", "head")),
        ("gpt2", ("mlp",)),
        ("bert", ("mlp",)),
    ],
)
def test_stock_loader_reads_layers_that_agree(
    tmp_path: Path, name: str, kinds: tuple[str, ...]
) -> None:
    result = lowered(name, kinds, ragged=True, uniform=True)
    result.save(tmp_path)
    stock: Any = type(result.model).from_pretrained(tmp_path).eval()
    assert sizes(stock) == sizes(result.model)
    assert same_outputs(stock, result.model)


def test_configuration_changes_in_nothing_but_the_sizes(tmp_path: Path) -> None:
    result = lowered("qwen3", ("mlp", "head"), ragged=False)
    result.save(tmp_path)
    model: Any = entry("qwen3").build()
    dense = model.config.to_dict()
    found = json.loads((tmp_path / "config.json").read_text("utf-8"))
    changed = {k: v for k, v in found.items() if k in dense and dense[k] != v}
    assert changed == {
        "architectures": ["Qwen3ForCausalLM"],
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def test_layers_that_differ_are_in_the_configuration(tmp_path: Path) -> None:
    lowered("qwen3", ("mlp",), ragged=True).save(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert found["per_layer_config"] == {
        "0": {"intermediate_size": 48},
        "1": {"intermediate_size": 64},
    }
    assert found["intermediate_size"] == 96


def test_sizes_of_layers_are_told_as_what_they_are(ragged_llama: Any) -> None:
    """Six heads of size four are not eight of size three, whatever fits the shapes."""
    made = ragged_llama._module
    found = per_layer_config(made, made.history.config)
    assert found is not None
    assert found.to_dict()["per_layer_config"] == {
        "0": {
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "1": {
            "intermediate_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
    }


def test_an_entry_that_one_of_two_stacks_contradicts_is_not_written(
    tmp_path: Path,
) -> None:
    result = lowered("t5", ("mlp",), ragged=True)
    result.save(tmp_path)
    ups = {s[0] for n, s in sizes(result.model).items() if ".wi." in n}
    assert len(ups) > 1
    found = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert "per_layer_config" not in found
    assert found["d_ff"] == 96


def test_heads_come_back_where_the_class_must_have_them() -> None:
    result = lowered("bert", ("mlp", "head"), ragged=True, uniform=True)
    found = {tuple(s) for n, s in sizes(result.model).items() if "query.weight" in n}
    assert found == {(32, 32)}
    notes = {note.subject: note.text for note in result.report.notes}
    assert notes["encoder.layer.0.attention.head"] == (
        "2 units stay that could go: no configuration says 3 of 4"
    )
    assert notes["encoder.layer.1.mlp"] == (
        "16 units stay that could go: all layers keep equally many"
    )


def test_a_model_that_no_configuration_builds_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ragged = lowered("bert", ("mlp",), ragged=True).model
    with caplog.at_level("WARNING"):
        again = lower(ragged, "module", uniform=True)
    text = "no configuration of BertModel builds this model"
    assert text in caplog.text
    told = [note for note in again.report.notes if note.text.startswith(text)]
    assert [note.level for note in told] == ["warning"]
    assert "encoder.layer.0.intermediate.dense.weight" in told[0].text


def test_uniform_revives_the_fewest_units() -> None:
    ragged = sizes(lowered("llama", ("mlp",), ragged=True).model)
    even = sizes(lowered("llama", ("mlp",), ragged=True, uniform=True).model)
    ups = sorted(shape[0] for name, shape in ragged.items() if "up_proj" in name)
    assert ups == [48, 64]
    assert {s[0] for n, s in even.items() if "up_proj" in n} == {64}


def test_a_class_of_the_user_is_filled_in_place(tmp_path: Path) -> None:
    result = lowered_mlp()
    fgcompile.save(result, tmp_path)
    dense = Mlp()
    loaded = fgcompile.load(tmp_path, dense)
    x = torch.randn(3, 4)
    assert loaded is dense
    assert loaded.get_submodule("same") is loaded.get_submodule("down")
    assert torch.equal(loaded(x), result.model(x))
    with pytest.raises(FormatError, match=r"Mlp.*\n.*model=Mlp"):
        fgcompile.load(tmp_path)


def test_a_folder_tells_what_every_lowering_took(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    first = lowered_mlp().save(tmp_path / "first")
    for number, once in enumerate((lowered_mlp().model, fgcompile.load(first, Mlp()))):
        model = insert_gates(once, (torch.randn(2, 4),))
        next(iter(gates(model).values())).close([1, 3])
        result = lower(model, "module")
        folder = result.save(tmp_path / str(number))
        kept = json.loads((folder / MANIFEST).read_text("utf-8"))["kept"]
        assert kept["up.weight"] == {"0": [0, 3, 7]}
        assert torch.equal(fgcompile.load(folder, Mlp())(x), result.model(x))


def test_no_pickle_is_written(tmp_path: Path, ragged_llama: Any) -> None:
    ragged_llama.save(tmp_path)
    suffixes = {file.suffix for file in tmp_path.iterdir()}
    assert suffixes == {".json", ".safetensors"}


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _other_shape(folder: Path) -> None:
    file = folder / MANIFEST
    text = json.loads(file.read_text("utf-8"))
    text["shapes"]["up.weight"] = [4, 4]
    file.write_text(json.dumps(text), "utf-8")


def _unknown_version(folder: Path) -> None:
    file = folder / MANIFEST
    file.write_text(file.read_text("utf-8").replace('version": 1', 'version": 99'))


def _cut_manifest(folder: Path) -> None:
    file = folder / MANIFEST
    file.write_text(file.read_text("utf-8")[:80], "utf-8")


def _no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _escaping(folder: Path) -> None:
    file = folder / MANIFEST
    text = file.read_text("utf-8")
    file.write_text(text.replace('"model.safetensors"', '"../model.safetensors"'))


def _strange_attribute(folder: Path) -> None:
    file = folder / MANIFEST
    text = json.loads(file.read_text("utf-8"))
    text["attributes"] = {"up": {"__class__.__name__": 3}}
    file.write_text(json.dumps(text), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "not the file that the manifest names"),
        (_other_shape, "does not fit Mlp"),
        (_unknown_version, "schema version 99"),
        (_cut_manifest, "cannot read"),
        (_no_manifest, "holds no fgcompile.json"),
        (_escaping, "is missing"),
        (_strange_attribute, "does not fit Mlp"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Any, message: str) -> None:
    lowered_mlp().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(FormatError, match=message):
        fgcompile.load(tmp_path, Mlp())


def test_a_failing_save_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = lowered_mlp()
    folder = result.save(tmp_path / "model")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgcompile.checkpoint.save.save_model", full)
    with pytest.raises(ExportError, match="No space left"):
        result.save(folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_other_files_of_the_folder_stay_and_old_weights_go(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("old")
    lowered_mlp().save(tmp_path)
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {"tokenizer.json", "model.safetensors", MANIFEST}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="cannot write"):
        lowered_mlp().save(tmp_path / "model")
