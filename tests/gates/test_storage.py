"""Gates on disk: round trips, refusals and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgcompile.errors import ExportError, FormatError, GateError
from fgcompile.gates import (
    GateConfig,
    attach,
    gate_parameters,
    gates,
    load_gates,
    penalty,
    save_gates,
    status,
)
from tests.gates.models import bert, bert_specs, budgeted, mlp, mlp_specs


def trained(config: GateConfig | None = None) -> nn.Module:
    model = attach(mlp(), mlp_specs(), config or budgeted(0.5, steps=8))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        (model(torch.randn(2, 8)).pow(2).sum() + penalty(model)).backward()
        optimizer.step()
    gates(model)["hidden"].close([2])
    return model


def test_gates_come_back_as_they_were(tmp_path: Path) -> None:
    model = trained()
    folder = save_gates(model, tmp_path / "new" / "gates")
    twin = attach(mlp(), mlp_specs(), budgeted(0.5, steps=8))
    load_gates(twin, folder)
    ours, theirs = gates(model)["hidden"], gates(twin)["hidden"]
    assert torch.equal(ours.eval().value(), theirs.eval().value())
    assert torch.equal(ours.closed, theirs.closed)
    assert status(model) == status(twin)


def test_manifest_is_plain_json_with_a_version(tmp_path: Path) -> None:
    save_gates(trained(GateConfig.paper_finegates_glue()), tmp_path)
    manifest = json.loads((tmp_path / "gates.json").read_text(), parse_constant=int)
    assert manifest["schema_version"] == 1
    (described,) = manifest["gates"]
    assert (described["name"], described["kind"]) == ("hidden", "mlp")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gates.json",
        "gates.safetensors",
    ]


def test_saving_again_replaces(tmp_path: Path) -> None:
    model = trained()
    save_gates(model, tmp_path)
    gates(model)["hidden"].close(range(16))
    save_gates(model, tmp_path)
    twin = attach(mlp(), mlp_specs(), budgeted(0.5, steps=8))
    load_gates(twin, tmp_path)
    assert not gates(twin)["hidden"].open.any()


def test_failed_write_leaves_the_old_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained()
    save_gates(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExportError, match="No space left"):
        save_gates(trained(), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: attach(bert(), bert_specs(), budgeted(0.5, steps=8)),
            "gate 0 has name 'hidden', in the model it is 'bert.encoder.layer.0",
        ),
        (
            lambda: attach(mlp(12), mlp_specs(12), budgeted(0.5, steps=8)),
            "gate 0 has size 16, in the model it is 12",
        ),
        (lambda: attach(mlp(), mlp_specs()), "objective.final is only in"),
        (
            lambda: attach(
                mlp(), mlp_specs(), budgeted(0.5, steps=8, gate="hard_concrete")
            ),
            "gate is 'finegates', in the model it is 'hard_concrete'",
        ),
    ],
    ids=["architecture", "size", "config", "parametrisation"],
)
def test_other_gates_are_refused_by_the_first_difference(
    tmp_path: Path, make: Any, text: str
) -> None:
    save_gates(trained(), tmp_path)
    model = make()
    before = [p.detach().clone() for p in gate_parameters(model)]
    with pytest.raises(GateError, match=text):
        load_gates(model, tmp_path)
    pairs = zip(before, gate_parameters(model), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_model_without_gates_is_refused(tmp_path: Path) -> None:
    save_gates(trained(), tmp_path)
    with pytest.raises(GateError, match="has no gates"):
        load_gates(mlp(), tmp_path)


@pytest.mark.parametrize("name", ["gates.json", "gates.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "empty"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    save_gates(trained(), tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-9], "garbage": b"\x80\x04K.", "empty": b""}.get(damage, b"")
    )
    if damage == "missing":
        path.unlink()
    model = attach(mlp(), mlp_specs(), budgeted(0.5, steps=8))
    with pytest.raises(FormatError, match=name.replace(".", r"\.")):
        load_gates(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 99}, "schema version 99, this release reads 1"),
        ({"gates": [{"name": "hidden"}]}, "a gate lacks its name, kind or size"),
        ({"gates": 3}, "is damaged"),
        ({"config": 3}, "is damaged"),
        ({"sha256": "0"}, "its digest is not the one in gates.json"),
    ],
)
def test_foreign_manifests_are_refused(tmp_path: Path, change: Any, text: str) -> None:
    save_gates(trained(), tmp_path)
    path = tmp_path / "gates.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = attach(mlp(), mlp_specs(), budgeted(0.5, steps=8))
    with pytest.raises(FormatError, match=text):
        load_gates(model, tmp_path)
