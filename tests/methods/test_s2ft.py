"""S2FT: selection, partial back-propagation, and what is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fgcompile import GateConfig, analyze, gates, insert_gates
from fgcompile.errors import GateError
from fgcompile.methods import (
    Permutation,
    S2ftConfig,
    extract_adapter,
    find_s2ft,
    insert_s2ft,
    remove_s2ft,
)
from tests.gates.models import bert, bert_batch
from tests.methods.models import MODELS, ids, llama, with_biases

HALF = S2ftConfig(heads=0.5, channels=0.25)
LAYER = "bert.encoder.layer.0"


def small_bert() -> Any:
    return with_biases(bert(num_hidden_layers=1))


def train(model: Any, steps: int, parameters: list[nn.Parameter] | None = None) -> None:
    own = parameters or [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(own, 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model(**bert_batch(step)).loss.backward()
        optimizer.step()


# -- selection ----------------------------------------------------------------------


SEED = 1
"""Under which the selected heads are not the first ones."""


def is_moved(one: Permutation) -> bool:
    return not torch.equal(one.order, torch.arange(len(one.order)))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_and_the_selected_are_in_front(name: str) -> None:
    model = MODELS[name]()
    before = model(ids()).logits
    names = [n for n, _ in model.named_parameters()]
    few = S2ftConfig(heads=1.0 if "MQA" in name else 0.5, channels=0.25, seed=SEED)
    insert_s2ft(model, few)
    container = find_s2ft(model)
    assert container is not None
    moved = {one.parameter for one in container.permutations if is_moved(one)}
    attention = {n for n in moved if "attn" in n or "attention" in n}
    assert moved - attention, "channels stay where they are"
    assert bool(attention) == ("MQA" not in name), "one key head has nowhere to go"
    assert torch.allclose(model(ids()).logits, before, atol=1e-5)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["fgcompile_s2ft.blocks.0.block", "fgcompile_s2ft.blocks.1.block"]
    assert [n for n, _ in model.named_parameters() if "s2ft" not in n] == names
    remove_s2ft(model, fuse_updates=False)
    assert torch.equal(model(ids()).logits, before)


@pytest.mark.parametrize("rows", [False, True])
def test_a_checkpoint_shares_no_memory(rows: bool, tmp_path: Path) -> None:
    model = insert_s2ft(small_bert(), S2ftConfig(heads=0.5, channels=0.25, rows=rows))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()


def planted(model: Any, channels: list[int], scale: float) -> None:
    """Makes a few channels of the MLP read large or small by its output matrix."""
    down = model.bert.encoder.layer[0].output.dense
    down.weight.data[:, channels] *= scale


def selected(model: Any, name: str) -> list[int]:
    adapter = extract_adapter(model)
    return adapter.entries[f"{LAYER}.{name}.weight", "columns"].indices.tolist()


@pytest.mark.parametrize("largest", [True, False])
def test_channels_are_selected_by_weight(largest: bool) -> None:
    model = small_bert()
    planted(model, [5, 9, 40], 50.0 if largest else 0.001)
    config = S2ftConfig(heads=0, channels=3 / 48, by="weight", largest=largest)
    insert_s2ft(model, config)
    assert selected(model, "output.dense") == [5, 9, 40]


@pytest.mark.parametrize("largest", [True, False])
def test_channels_are_selected_by_activation(largest: bool) -> None:
    model = small_bert()
    up = model.bert.encoder.layer[0].intermediate.dense
    up.bias.data.fill_(1.0)
    up.bias.data[[7, 11]] = 9.0 if largest else -9.0  # gelu(-9) is 0
    config = S2ftConfig(heads=0, channels=2 / 48, by="activation", largest=largest)
    insert_s2ft(model, config, calibration=[bert_batch()])
    assert selected(model, "output.dense") == [7, 11]


def test_activation_is_the_norm_over_all_tokens() -> None:
    model = small_bert()
    seen: list[Tensor] = []
    dense = model.bert.encoder.layer[0].output.dense
    handle = dense.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batches = [bert_batch(seed) for seed in range(2)]
    for batch in batches:
        model(**batch)
    handle.remove()
    norms = torch.cat([x.reshape(-1, 48) for x in seen]).norm(dim=0)
    config = S2ftConfig(heads=0, channels=0.25, by="activation")
    insert_s2ft(model, config, calibration=batches)
    smallest = norms.argsort()[:12].sort().values
    assert selected(model, "output.dense") == smallest.tolist()


def test_product_weighs_activations_by_weights() -> None:
    model = small_bert()
    up = model.bert.encoder.layer[0].intermediate.dense
    up.bias.data.fill_(1.0)
    up.bias.data[[7, 11]] = 20.0
    planted(model, [11], 1e-4)
    planted(model, [3], 30.0)
    config = S2ftConfig(heads=0, channels=2 / 48, by="product", largest=True)
    insert_s2ft(model, config, calibration=[bert_batch()])
    assert selected(model, "output.dense") == [3, 7]


@pytest.mark.parametrize("largest", [True, False])
def test_units_are_selected_by_gradient(largest: bool) -> None:
    model = small_bert()
    model(**bert_batch()).loss.backward()
    down = model.bert.encoder.layer[0].output.dense.weight.grad
    out = model.bert.encoder.layer[0].attention.output.dense.weight.grad
    model.zero_grad()
    channels = down.norm(dim=0).argsort(descending=largest)[:12]
    heads = out.view(32, 4, 8).norm(dim=(0, 2)).argsort(descending=largest)[:2]
    config = S2ftConfig(heads=0.5, channels=0.25, by="gradient", largest=largest)
    insert_s2ft(model, config, calibration=[bert_batch()])
    assert selected(model, "output.dense") == channels.sort().values.tolist()
    columns = (8 * heads.sort().values[:, None] + torch.arange(8)).flatten()
    assert selected(model, "attention.output.dense") == columns.tolist()
    assert all(p.grad is None for p in model.parameters())


def test_random_selection_has_a_seed_and_equal_counts_per_layer() -> None:
    found = []
    for seed in (0, 0, 1):
        model = insert_s2ft(bert(), S2ftConfig(heads=0.5, channels=0.25, seed=seed))
        adapter = extract_adapter(model)
        found.append({k: e.indices.tolist() for k, e in adapter.entries.items()})
    assert found[0] == found[1] != found[2]
    sizes = [len(indices) for indices in found[0].values()]
    assert sizes == [16, 12, 16, 12]


@pytest.mark.parametrize("calibration", [None, [], iter(())])
def test_selection_by_data_needs_data(calibration: Any) -> None:
    config = S2ftConfig(heads=1, by="activation")
    with pytest.raises(GateError, match="selection by activation needs calibration"):
        insert_s2ft(small_bert(), config, calibration=calibration)


def test_padding_is_not_measured() -> None:
    base, channels = small_bert(), []
    for filler in (0, 7):
        batch = bert_batch()
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][:, 3:] = 0
        batch["input_ids"][:, 3:] = filler
        model = copy.deepcopy(base)
        config = S2ftConfig(heads=0, channels=0.25, by="activation")
        insert_s2ft(model, config, calibration=[batch])
        channels.append(selected(model, "output.dense"))
    cut = {"input_ids": bert_batch()["input_ids"][:, :3]}
    model = insert_s2ft(copy.deepcopy(base), config, calibration=[cut])
    assert channels[0] == channels[1] == selected(model, "output.dense")


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_batch_that_is_a_tensor_is_one_input(by: Any) -> None:
    bases = []
    x = torch.linspace(-1, 1, 56).view(1, 7, 8)
    for batch in (x, (x,), [x]):
        config = S2ftConfig(channels=0.25, by=by)
        model = insert_s2ft(
            chain(), config, (x,), calibration=[batch], loss=lambda y: y.square().sum()
        )
        bases.append([e.indices.tolist() for e in entries(model)])
    assert bases[0] == bases[1] == bases[2]


def entries(model: nn.Module) -> list[Any]:
    return list(extract_adapter(model).entries.values())


def test_gradient_needs_a_loss() -> None:
    config = S2ftConfig(channels=0.25, by="gradient")
    batch = {"input_ids": bert_batch()["input_ids"]}
    with pytest.raises(GateError, match=r"needs a loss.*\n  Put labels .* loss="):
        insert_s2ft(small_bert(), config, calibration=[batch])
    x = (torch.randn(2, 8),)
    for loss in (None, lambda y: y):
        with pytest.raises(GateError, match="selection by gradient needs a loss"):
            insert_s2ft(chain(), config, x, calibration=[x], loss=loss)


def test_unknown_criterion_is_refused() -> None:
    with pytest.raises(GateError, match=r"by='gradients'\): expected one of random, w"):
        S2ftConfig(by="gradients")  # type: ignore[arg-type]


class Unread(nn.Module):
    """Its hidden units are read by a product that no module makes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Parameter(torch.randn(8, 16))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        return self.out(x + nn.functional.linear(hidden, self.down))


def test_units_that_no_module_reads_are_named() -> None:
    with pytest.raises(GateError, match="no module of the model multiplies a weight"):
        insert_s2ft(Unread(), S2ftConfig(channels=0.5), (torch.randn(2, 8),))


class Fused(nn.Module):
    """One matrix makes a gate and a value for every hidden unit."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(16, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(x + self.down(gate.sigmoid() * value))


def test_rows_that_lie_apart_are_refused_and_columns_are_not() -> None:
    x = (torch.randn(2, 8),)
    match = r"no slice of a dim of 32\n  Set rows=False .*, or channels=0"
    with pytest.raises(GateError, match=match):
        insert_s2ft(Fused(), S2ftConfig(channels=0.25, rows=True), x)
    assert len(entries(insert_s2ft(Fused(), S2ftConfig(channels=0.25), x))) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_removing_untrained_blocks_leaves_every_bit(dtype: torch.dtype) -> None:
    model = small_bert().to(dtype)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(
            dtype
        )
    before = [p.detach().clone() for p in model.parameters()]
    remove_s2ft(insert_s2ft(model, S2ftConfig(0.5, 0.25, rows=True)))
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_blocks_are_where_their_weights_are() -> None:
    class Spread(nn.Module):
        """Its first parameter is on another device, as in a model that is spread."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(1, device="meta"))
            self.layers = chain()

        def forward(self, x: Tensor) -> Any:
            return self.layers(x)

    x = torch.randn(2, 8)
    model = insert_s2ft(Spread(), S2ftConfig(channels=0.25), (x,))
    assert {e.block.device.type for e in entries(model)} == {"cpu"}
    model(x).sum().backward()


def test_few_key_heads_leave_channels_alone_and_nothing_is_an_error() -> None:
    model = insert_s2ft(llama(2), S2ftConfig(heads=0.1, channels=0.25))
    assert list(extract_adapter(model).entries) == [
        ("model.layers.0.mlp.down_proj.weight", "columns")
    ]
    with pytest.raises(GateError, match="selects nothing"):
        insert_s2ft(llama(2), S2ftConfig(heads=0.1, channels=0.0))


# -- partial back-propagation -------------------------------------------------------


def test_slice_gradient_is_the_slice_of_the_full_gradient() -> None:
    model = insert_s2ft(small_bert(), S2ftConfig(0.5, 0.25, rows=True))
    container = find_s2ft(model)
    assert container is not None
    sides = [(b.matrix.parameter.split(".")[-2], b.side) for b in container.each()]
    assert sides == [
        ("value", "rows"),
        ("dense", "columns"),
        ("dense", "rows"),
        ("dense", "columns"),
    ]
    for block in container.each():
        model.get_parameter(block.matrix.parameter).requires_grad_(True)
    model(**bert_batch()).loss.backward()
    for block in container.each():
        full = model.get_parameter(block.matrix.parameter).grad
        assert full is not None
        part = full.narrow(block.dim, 0, len(block.base))
        assert block.block.grad is not None
        assert torch.allclose(block.block.grad, part, atol=1e-7)


def test_gradient_of_the_input_uses_the_whole_matrix_and_the_update() -> None:
    model = insert_s2ft(small_bert(), S2ftConfig(0.5, 0.25, rows=True))
    train(model, 3)
    grads: list[Any] = []
    for _ in range(2):
        x = torch.linspace(-1, 1, 2 * 3 * 32).view(2, 3, 32).requires_grad_()
        model.bert.encoder.layer[0](x)[0].square().sum().backward()
        grads.append(x.grad)
        remove_s2ft(model) if find_s2ft(model) else None
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    model = insert_s2ft(small_bert(), S2ftConfig(0.5, 0.25, rows=True))
    container = find_s2ft(model)
    assert container is not None
    for block in container.each():
        outputs, inputs = block.matrix.shape
        block.block.data = torch.randn_like(block.block)
        wide = block.to(torch.float64)
        wide.block.data = wide.block.data.double()
        y = torch.randn(2, outputs, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, inputs, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda y, x, b=wide: b(y, x), (y, x))


class Saved:
    """Bytes that autograd saves in a forward, parameters aside."""

    def __init__(self, model: nn.Module) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


def test_only_the_selected_activations_are_saved() -> None:
    config = S2ftConfig(heads=0, channels=0.25)
    model = insert_s2ft(small_bert(), config)
    dense = model.bert.encoder.layer[0].output.dense
    x = torch.randn(4, 6, 48)
    saved = Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        dense(x)
    assert sum(saved.storages.values()) == 4 * 6 * 12 * 4
    remove_s2ft(model)
    saved = Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        dense(x)
    assert sum(saved.storages.values()) == 4 * 6 * 48 * 4


def test_optimizer_state_is_that_of_the_slices() -> None:
    model = insert_s2ft(small_bert(), HALF)
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(own)
    model(**bert_batch()).loss.backward()
    optimizer.step()
    moments = sum(s["exp_avg"].numel() for s in optimizer.state.values())
    assert moments == 32 * 16 + 32 * 12


def test_everything_outside_the_slices_is_bit_identical_after_training() -> None:
    model = small_bert()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    insert_s2ft(model, HALF)
    train(model, 4)
    expected = model(**bert_batch()).logits
    adapter = extract_adapter(model)
    remove_s2ft(model)
    assert torch.allclose(model(**bert_batch()).logits, expected, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name, _ in adapter.entries}
    for (name, _), entry in adapter.entries.items():
        rest = torch.ones(entry.shape[1], dtype=torch.bool)
        rest[entry.indices] = False
        parameter = model.get_parameter(name)
        assert torch.equal(parameter[:, rest], before[name][:, rest])
        assert not torch.equal(parameter[:, ~rest], before[name][:, ~rest])


def test_training_equals_that_of_the_same_entries_in_the_full_matrices() -> None:
    model, reference = small_bert(), small_bert()
    reference.load_state_dict(model.state_dict())
    insert_s2ft(model, HALF)
    masks = {}
    for (name, _), entry in extract_adapter(model).entries.items():
        mask = torch.zeros(entry.shape)
        mask[:, entry.indices] = 1.0
        masks[name] = mask
        reference.get_parameter(name).register_hook(lambda g, m=mask: g * m)
    train(model, 5)
    train(reference, 5, [reference.get_parameter(name) for name in masks])
    remove_s2ft(model)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_checkpoint_brings_its_order_along() -> None:
    base = small_bert()
    state = {n: p.detach().clone() for n, p in base.named_parameters()}
    model = insert_s2ft(copy.deepcopy(base), HALF)
    train(model, 2)
    other = S2ftConfig(HALF.heads, HALF.channels, seed=7)
    twin = insert_s2ft(copy.deepcopy(base), other)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(**bert_batch()).logits, model(**bert_batch()).logits)
    remove_s2ft(twin, fuse_updates=False)
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter, state[name])


def test_bfloat16_model_trains_float32_updates() -> None:
    model = insert_s2ft(small_bert().bfloat16(), HALF)
    own = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in own} == {torch.float32}
    train(model, 2)
    assert all(p.detach().any() for p in own)


def test_autocast_trains() -> None:
    model = insert_s2ft(small_bert(), S2ftConfig(0.5, 0.25, rows=True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**bert_batch()).loss
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.any() and g.dtype == torch.float32 for g in grads)


def test_gates_scale_the_input_of_the_update_as_well() -> None:
    model = insert_gates(small_bert(), config=GateConfig(noise=0.0, kinds=("mlp",)))
    gates(model)[f"{LAYER}.mlp"].close(range(48))
    insert_s2ft(model, S2ftConfig(heads=0, channels=0.25))
    container = find_s2ft(model)
    assert container is not None
    container.each()[0].block.data.fill_(1.0)
    dense = model.bert.encoder.layer[0].output.dense
    assert torch.equal(dense(torch.randn(1, 48)), dense.bias[None])


def test_inserting_twice_is_refused() -> None:
    model = insert_s2ft(small_bert(), HALF)
    with pytest.raises(GateError, match="has S2FT blocks already"):
        insert_s2ft(model, HALF)
    with pytest.raises(GateError, match="has no S2FT blocks"):
        remove_s2ft(small_bert())


def test_analysis_of_a_trained_model_is_possible() -> None:
    model = insert_s2ft(small_bert(), HALF)
    kinds = {group.kind for group in analyze(model).groups}
    assert {"mlp", "head"} <= kinds
