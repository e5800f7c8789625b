"""S2FT adapters: files, fusing, switching, and several of them in one batch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.errors import FormatError, GateError
from fgcompile.methods import (
    S2ftAdapter,
    S2ftConfig,
    S2ftEntry,
    extract_adapter,
    find_s2ft,
    fuse,
    insert_s2ft,
    remove_s2ft,
    restore,
    serve_adapters,
    switch,
    unfuse,
)
from tests.methods.models import gpt2, ids, llama


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: Any, seed: int) -> Any:
    """Blocks as after some training."""
    container = find_s2ft(model)
    assert container is not None
    generator = torch.Generator().manual_seed(seed)
    for block in container.each():
        block.block.data = 0.1 * torch.randn(block.block.shape, generator=generator)
    return model


def trained(base: Any, seed: int, rows: bool = True) -> tuple[S2ftAdapter, Tensor]:
    """An adapter of `base`, and what the model that it was trained in computes."""
    model = copy.deepcopy(base)
    config = S2ftConfig(heads=0.5, channels=0.25, rows=rows, seed=seed)
    moved(insert_s2ft(model, config), seed)
    return extract_adapter(model), model(ids()).logits


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(2, attention_bias=True),
    "gpt2": gpt2,
}


@pytest.mark.parametrize("name", MODELS)
def test_adapter_in_base_order_makes_the_base_what_was_trained(name: str) -> None:
    base = MODELS[name]()
    adapter, expected = trained(base, seed=1)
    assert not torch.allclose(base(ids()).logits, expected, atol=1e-2)
    fuse(base, adapter)
    assert torch.allclose(base(ids()).logits, expected, atol=1e-5)


def test_removing_with_fusing_is_the_same_as_fusing_the_adapter() -> None:
    base = llama(2)
    model = moved(insert_s2ft(copy.deepcopy(base), S2ftConfig(0.5, 0.25)), 0)
    fuse(base, extract_adapter(model))
    remove_s2ft(model)
    for ours, theirs in zip(model.parameters(), base.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_and_columns_that_cross_are_both_added() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 6)
            self.third = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.second(torch.relu(self.first(x))))
            return x + self.third(hidden)

    base, x = Chain(), torch.randn(5, 4)
    model = copy.deepcopy(base)
    insert_s2ft(model, S2ftConfig(channels=0.5, rows=True, seed=2), (x,))
    moved(model, 0)
    adapter, expected = extract_adapter(model), model(x)
    assert {("second.weight", "rows"), ("second.weight", "columns")} <= set(
        adapter.entries
    )
    before = weights(base)
    old = fuse(base, adapter)
    assert torch.allclose(base(x), expected, atol=1e-6)
    with serve_adapters(base, []):
        pass
    restore(base, old)
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fusing_and_unfusing_stay_within_the_rounding_bound(dtype: torch.dtype) -> None:
    base = llama(2).to(dtype)
    for parameter in base.parameters():  # entries that use all digits of the dtype
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    before = weights(base)
    adapter, _ = trained(base, seed=1)
    fuse(base, adapter)
    unfuse(base, adapter)
    moved_back = 0
    for (name, _), entry in adapter.entries.items():
        weight, old = base.get_parameter(name).detach(), before[name]
        update = torch.zeros(entry.shape, dtype=torch.float64)
        update.index_copy_(entry.dim, entry.indices, entry.block.double())
        larger = torch.maximum(old.double().abs(), (old.double() + update).abs())
        # Of an entry that an update is rounded from, a unit is at most eps times it;
        # the sum is rounded to float32 before bfloat16.
        unit = torch.finfo(dtype).eps * larger * (1 + 2**-10)
        error = (weight.double() - old.double()).abs()
        assert (error <= unit).all()
        assert torch.equal(weight[update == 0], old[update == 0])
        moved_back += int((error > 0).sum())
    assert moved_back > 0, "nothing was rounded, so nothing is shown"


def test_model_with_blocks_is_none_that_an_adapter_fits() -> None:
    base = llama(2)
    adapter, _ = trained(base, seed=1)
    replaced = fuse(copy.deepcopy(base), adapter)
    model = insert_s2ft(base, S2ftConfig(0.5, 0.25))
    before = weights(model)
    for verb, what in ((fuse, adapter), (unfuse, adapter), (restore, replaced)):
        with pytest.raises(GateError, match=r"still has .*\n  Call remove_s2ft"):
            verb(model, what)
    with pytest.raises(GateError, match="still has S2FT blocks"):
        serve_adapters(model, [adapter])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    fuse(remove_s2ft(model), adapter)


def test_kept_slices_restore_the_weights_bit_by_bit() -> None:
    base = llama(2)
    before = weights(base)
    old = fuse(base, trained(base, seed=1)[0])
    assert any(not torch.equal(p, before[n]) for n, p in base.named_parameters())
    restore(base, old)
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())


def test_switching_is_unfusing_one_and_fusing_the_other() -> None:
    base = llama(2)
    first, _ = trained(base, seed=1)
    second, expected = trained(base, seed=2)
    fuse(base, first)
    switch(base, first, second)
    assert torch.allclose(base(ids()).logits, expected, atol=1e-5)


# -- several adapters in one batch ----------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_parallel_adapters_equal_sequential_ones(name: str) -> None:
    base = MODELS[name]()
    plain = base(ids()).logits
    first, one = trained(base, seed=1)
    second, two = trained(base, seed=2, rows=False)
    with serve_adapters(base, [first, second]) as serving:
        assert torch.equal(base(ids()).logits, plain)
        serving.use([1, 0, -1, 0])
        got = base(ids()).logits
        expected = torch.stack([two[0], one[1], plain[2], one[3]])
        assert torch.allclose(got, expected, atol=1e-5)
        serving.use([1, 1, 1, 1])
        assert torch.allclose(base(ids()).logits, two, atol=1e-5)
    assert torch.equal(base(ids()).logits, plain)


def test_adapters_of_other_sizes_share_a_batch() -> None:
    base = llama(2)
    big, expected = trained(base, seed=1)
    model = copy.deepcopy(base)
    moved(insert_s2ft(model, S2ftConfig(heads=0, channels=0.1)), 3)
    small = extract_adapter(model)
    with serve_adapters(base, [small, big]) as serving:
        serving.use([1, 0, 1, 0])
        got = base(ids()).logits
    assert torch.allclose(got[::2], expected[::2], atol=1e-5)
    assert torch.allclose(got[1::2], model(ids()).logits[1::2], atol=1e-5)


def test_wrong_numbers_of_rows_or_adapters_are_refused() -> None:
    base = llama(2)
    adapter, _ = trained(base, seed=1)
    with serve_adapters(base, [adapter]) as serving:
        with pytest.raises(GateError, match="there is no adapter 1; they are 0 to 0"):
            serving.use([0, 1])
        serving.use([0, 0, 0])
        with pytest.raises(GateError, match=r"batch has 4 rows, .* chosen for 3"):
            base(ids())


# -- files ----------------------------------------------------------------------------


def test_saved_adapter_comes_back(tmp_path: Path) -> None:
    adapter, _ = trained(llama(2), seed=1)
    adapter.save(tmp_path / "a")
    twin = S2ftAdapter.load(tmp_path / "a")
    assert list(twin.entries) == list(adapter.entries)
    for key, entry in adapter.entries.items():
        other = twin.entries[key]
        assert (other.dim, other.side, other.shape) == (
            entry.dim,
            entry.side,
            entry.shape,
        )
        assert torch.equal(other.indices, entry.indices)
        assert torch.equal(other.block, entry.block)
    manifest = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["method"] == "s2ft"


def test_adapter_holds_only_the_update(tmp_path: Path) -> None:
    adapter, _ = trained(llama(2), seed=1, rows=False)
    adapter.save(tmp_path)
    size = (tmp_path / "adapter.safetensors").stat().st_size
    # Half of two key heads are 16 columns, a quarter of 48 channels 12; 32 outputs.
    assert size - (16 + 12) * (32 * 4 + 8) < 600


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    index, block = torch.tensor([1]), torch.ones(2, 1)
    entry = S2ftEntry(1, "columns", (2, 3), index, block)
    S2ftAdapter({("w", "columns"): entry}).save(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else b"{}" + content)
    with pytest.raises(FormatError):
        S2ftAdapter.load(tmp_path)


def test_adapter_of_another_model_is_refused_by_the_first_difference() -> None:
    adapter, _ = trained(llama(2), seed=1)
    other = llama(2, intermediate_size=40)
    before = weights(other)
    with pytest.raises(GateError, match=r"mlp\.\w+\.weight has shape .*, the adapter"):
        fuse(other, adapter)
    with pytest.raises(GateError, match="has no parameter model"):
        fuse(gpt2(), adapter)
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())
