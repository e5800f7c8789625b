"""A checkpoint lowered tensor by tensor is the one that is lowered in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fgcompile
from fgcompile import GateConfig, gates, insert_gates, load_gates, lower, save_gates
from fgcompile.checkpoint import streaming
from fgcompile.checkpoint.streaming import lower_checkpoint, shards
from fgcompile.cli import main
from fgcompile.errors import ExportError, FormatError
from fgcompile.zoo.models import entry

ROOT = Path(__file__).parents[2]
CONFIG = GateConfig(kinds=("mlp", "head"))


@pytest.fixture(scope="module", params=["llama:tied", "bert"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Any:
    """A checkpoint folder, its gates' folder, and the module lowered in memory."""
    return make_pair(request.param, tmp_path_factory)


def make_pair(name: str, tmp_path_factory: Any, half: bool = False) -> Any:
    """That, with weights in bfloat16 and many files if asked for."""
    model: Any = entry(name).build()
    folder = tmp_path_factory.mktemp("dense")
    if half:
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    else:
        model.save_pretrained(folder)
    insert_gates(model, config=CONFIG)
    torch.manual_seed(0)
    for depth, gate in enumerate(gates(model).values()):
        gate.close(torch.randperm(gate.size)[: gate.size // (2 + depth % 2)])
    gate_folder = save_gates(model, tmp_path_factory.mktemp("gates"))
    return model, folder, gate_folder, lower(model, "module")


def stream(pair: Any, out: Path, **options: Any) -> Any:
    """The streamed model, in `out`."""
    model, folder, gate_folder, _ = pair

    def gate(skeleton: Any) -> None:
        insert_gates(skeleton, config=CONFIG)
        load_gates(skeleton, gate_folder)

    return lower_checkpoint(
        folder,
        type(model),
        type(model).config_class(**model.config.to_dict()),
        gate,
        out,
        **options,
    )


def test_streamed_weights_are_those_lowered_in_memory(
    pair: Any, tmp_path: Path
) -> None:
    stream(pair, tmp_path / "small")
    want = pair[3].model.state_dict()
    found = load_file(tmp_path / "small" / "model.safetensors")
    assert found.keys() <= want.keys()
    assert all(torch.equal(found[name], want[name]) for name in found)
    loaded: Any = fgcompile.load(tmp_path / "small")
    ids = torch.tensor([[3, 5, 7, 9]])
    torch.testing.assert_close(loaded(ids)[0], pair[3].model(ids)[0])


def test_bfloat16_weights_in_many_files_are_those_lowered_in_memory(
    tmp_path_factory: Any, tmp_path: Path
) -> None:
    pair = make_pair("llama", tmp_path_factory, half=True)
    assert len(list(pair[1].glob("*.safetensors"))) > 3
    stream(pair, tmp_path)
    want, found = pair[3].model.state_dict(), load_file(tmp_path / "model.safetensors")
    assert found.keys() == want.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name], want[name]) for name in found)
    loaded: Any = fgcompile.load(tmp_path)
    assert loaded.dtype == torch.bfloat16
    ids = torch.tensor([[3, 5, 7, 9]])
    assert torch.equal(loaded(ids)[0], pair[3].model(ids)[0])


def test_several_shards_load_like_one(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    seen = []
    stream(pair, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert seen[-1][0] == seen[-1][1] == len(seen)
    loaded: Any = fgcompile.load(tmp_path)
    ids = torch.tensor([[3, 5, 7, 9]])
    torch.testing.assert_close(loaded(ids)[0], pair[3].model(ids)[0])


def test_analysis_takes_no_memory_for_matrices(pair: Any, tmp_path: Path) -> None:
    shrunk = stream(pair, tmp_path / "small")
    program = dict(shrunk.program.graph_module.named_parameters())
    module = dict(shrunk.model.named_parameters())
    for name, parameter in (*program.items(), *module.items()):
        one_row = max(parameter.shape) * parameter.element_size()
        assert parameter.untyped_storage().nbytes() <= one_row, name


@pytest.mark.parametrize("pair", ["bert"], indirect=True)
def test_bar_counts_tensors_on_standard_error(
    pair: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    arguments = ["--target", "module", "--out", str(tmp_path / "small")]
    assert main(["lower", str(pair[1]), *arguments]) == 0
    printed = capsys.readouterr()
    assert "100%" in printed.err
    assert f"lowering {pair[1]} to module: " in printed.err
    assert "100%" not in printed.out


KILLED = """
import os, pathlib, signal, sys
from fgcompile.checkpoint import streaming
from fgcompile.cli import lower, main

def killed(*arguments, progress, **options):
    def tell(done, total):
        if done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return streaming.lower_checkpoint(*arguments, progress=tell, **options)

sys.modules["fgcompile.cli.lower"].lower_checkpoint = killed
streaming.shards.SHARD_BYTES = 20_000
main(sys.argv[1:])
"""


@pytest.mark.parametrize("pair", ["bert"], indirect=True)
def test_killed_run_leaves_nothing_that_loads_and_the_next_completes(
    pair: Any, tmp_path: Path
) -> None:
    model, folder, gate_folder, in_memory = pair
    out = tmp_path / "small"
    arguments = ["--gates", str(gate_folder), "--target", "module", "--out", str(out)]
    call = ["lower", str(folder), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *call],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert any(list(path.glob("part-*")) for path in left), "killed too early"
    assert not out.exists()
    for path in left:
        with pytest.raises(FormatError):
            fgcompile.load(path)
        with pytest.raises(OSError, match=r"no file named|config"):
            type(model).from_pretrained(path)
    assert main(call) == 0
    loaded: Any = fgcompile.load(out)
    ids = torch.tensor([[3, 5, 7, 9]])
    torch.testing.assert_close(loaded(ids)[0], in_memory.model(ids)[0])


def test_nothing_is_written_if_the_result_differs(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = streaming.lower._selected

    def wrong(tensor: Any, kept: Any) -> Any:
        return real(tensor, kept) * (1.5 if kept else 1.0)

    monkeypatch.setattr(streaming.lower, "_selected", wrong)
    with pytest.raises(ExportError, match="cannot express the smaller model"):
        stream(pair, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_sizes_is_refused(pair: Any, tmp_path: Path) -> None:
    model = pair[0]
    config = model.config.to_dict() | {"intermediate_size": 80}
    with pytest.raises(FormatError, match="has shape"):
        lower_checkpoint(
            pair[1], type(model), type(model).config_class(**config), None, tmp_path
        )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc to read memory from")
def test_memory_is_bounded_and_a_killed_run_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import large_checkpoint, record

    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    large_checkpoint.main(1.5, tmp_path, kill=True)
    found = record.read(large_checkpoint.RESULT)
    assert found["peak_gb"] <= found["limit_gb"] < 1.6 * found["checkpoint_gb"]
    assert found["lowered_gb"] < 0.7 * found["checkpoint_gb"]
    assert found["left_by_the_killed_run"] == []
