"""The same model comes out, whichever way leads to it."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.zoo.plain import AttentionBlock
from tests.gates.models import bert
from tests.targets.test_module import Block
from tests.targets.test_module import X as ROWS
from tests.test_layout import OPTIONAL

X = torch.linspace(-1, 1, 160).view(2, 5, 16)
CLOSED = {"mlp": [0, 3, 5], "head": [1]}
Parameters = dict[str, torch.Tensor]


def block() -> nn.Module:
    torch.manual_seed(0)
    return AttentionBlock(16, 4, 12).eval()


def closed(model: nn.Module, *kinds: str, x: torch.Tensor = X) -> nn.Module:
    """`model` with gates of these kinds, closed in this order."""
    insert_gates(model, (x,), GateConfig(kinds=kinds))
    found = {gate.kind: gate for gate in gates(model).values()}
    for kind in kinds:
        found[kind].close(CLOSED[kind])
    return model


def parameters(lowered: Any) -> Parameters:
    return {
        name: p.detach() for name, p in lowered.program.graph_module.named_parameters()
    }


def assert_same(one: Parameters, other: Parameters) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_order_of_gates_does_not_matter() -> None:
    one = lower(closed(block(), "mlp", "head"))
    other = lower(closed(block(), "head", "mlp"))
    assert_same(parameters(one), parameters(other))
    assert torch.equal(one(X), other(X))


def test_order_of_closing_and_reopening_does_not_matter() -> None:
    model = closed(block(), "mlp", "head")
    mlp = next(gate for gate in gates(model).values() if gate.kind == "mlp")
    mlp.close([1, 2])
    mlp.reopen()
    mlp.close(CLOSED["mlp"][::-1])
    assert_same(
        parameters(lower(model)), parameters(lower(closed(block(), "head", "mlp")))
    )


@pytest.mark.parametrize("kinds", [("mlp", "head"), ("head", "mlp")])
def test_lowering_in_steps_is_lowering_at_once(kinds: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    once = lower(closed(copy.deepcopy(model), "mlp", "head", x=ROWS), "module")
    for kind in kinds:
        model = lower(closed(model, kind, x=ROWS), "module").model
    assert_same(dict(once.model.named_parameters()), dict(model.named_parameters()))
    torch.testing.assert_close(model(ROWS), once(ROWS))


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_fast_path_of_torch_does_not_matter() -> None:
    results = []
    for enabled in (True, False):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 12, batch_first=True)
        model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=enabled).eval()
        with fast_path(enabled):
            lowered = lower(closed(model, "mlp", "head"))
            torch.testing.assert_close(lowered(X), model(X), rtol=0, atol=1e-5)
        results.append(parameters(lowered))
    assert_same(*results)


def test_kernel_of_attention_does_not_matter() -> None:
    pytest.importorskip("transformers")
    results = []
    for kernel in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = bert(num_hidden_layers=1, attn_implementation=kernel)
        insert_gates(model, config=GateConfig(kinds=("head", "qk", "vo")))
        for gate in gates(model).values():
            gate.close([1])
        results.append(parameters(lower(model)))
    assert_same(*results)


ALONE = """
import sys, torch
sys.modules.update(dict.fromkeys({blocked!r}))
from tests.lowering.test_same_result import block, closed, parameters
from fgcompile import lower
torch.save(parameters(lower(closed(block(), "mlp", "head"))), {file!r})
"""


def test_optional_packages_do_not_matter(tmp_path: Any) -> None:
    file = str(tmp_path / "parameters.pt")
    blocked = [name for name in OPTIONAL if name != "google"]
    code = ALONE.format(blocked=blocked, file=file)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    here = parameters(lower(closed(block(), "mlp", "head")))
    assert_same(torch.load(file), here)
