"""What other tools do with a model of target "module": it is a model of its class."""

from __future__ import annotations

import copy
import functools
import shutil
from typing import Any

import pytest
import torch

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.zoo.models import entry

IDS = torch.tensor([[1, 5, 9, 3, 7], [2, 2, 7, 4, 8]])


@pytest.fixture(scope="module")
def small() -> Any:
    """A Llama whose two layers have other numbers of heads and channels."""
    model = entry("llama").build()
    insert_gates(model, config=GateConfig(kinds=("mlp", "head")))
    for depth, gate in enumerate(gates(model).values()):
        gate.close(range(gate.size // (2 + depth % 3)))
    lowered: Any = lower(model, "module").model
    shapes = [layer.self_attn.q_proj.weight.shape for layer in lowered.model.layers]
    assert shapes[0] != shapes[1]
    return lowered


def test_it_compiles(small: Any) -> None:
    compiled = torch.compile(small, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, small(IDS).logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch, of itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_code_writes_the_same_text(small: Any) -> None:
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    want = small.generate(IDS, **options)
    model = copy.deepcopy(small)
    compiled = torch.compile(model.forward, dynamic=True)
    calls = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return compiled(*args, **kwargs)

    model.forward = forward
    # Generation looks up which arguments the model takes.
    functools.update_wrapper(forward, type(model).forward)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, small(IDS).logits)
    assert torch.equal(model.generate(IDS, **options), want)
    assert len(calls) == 1 + options["max_new_tokens"]


def test_it_is_exported_by_torch(small: Any) -> None:
    inputs = {"input_ids": IDS, "use_cache": False}
    program = torch.export.export(small, (), inputs, strict=False)
    with torch.no_grad():
        got = program.module()(**inputs).logits
        torch.testing.assert_close(got, small(**inputs).logits)


@pytest.mark.filterwarnings("ignore")  # peft and transformers, of each other
def test_adapters_of_peft_train_on_it_and_merge(small: Any) -> None:
    peft = pytest.importorskip("peft")
    before = {name: p.clone() for name, p in small.state_dict().items()}
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(small, lora)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = model.eval()(IDS).logits
    merged = model.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, trained, rtol=1e-4, atol=1e-5)
    changed = {n for n, p in merged.state_dict().items() if not p.equal(before[n])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj"}
