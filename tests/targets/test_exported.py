"""A saved program runs in a process that knows neither fgcompile nor transformers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, lower
from tests.end_to_end.closing import batches, random_half, worst_difference

RUN = """
import sys, torch
file, inputs, outputs = sys.argv[1:]
module = torch.export.load(file).module()
results = [module(**each) for each in torch.load(inputs)]
assert not {"fgcompile", "transformers"} & sys.modules.keys()
torch.save([[t for t in r.values()] for r in results], outputs)
"""
REAL = pytest.mark.parametrize(
    ("name", "causal"), [("load_minilm", False), ("load_stories260k", True)]
)


def in_new_process(file: Path, inputs: list[dict[str, Tensor]]) -> Any:
    """Outputs for each of `inputs`, of a program that returns a mapping."""
    given, found = file.with_name("inputs.pt"), file.with_name("outputs.pt")
    torch.save(inputs, given)
    command = [sys.executable, "-c", RUN, str(file), str(given), str(found)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(found)


class Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.down(self.up(x).relu())}


def pruned(model: Any) -> Any:
    tokens = torch.full((2, 16), 3)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    insert_gates(model, inputs, GateConfig(kinds=("mlp", "head")))
    random_half(model, 0)
    return model


def test_program_runs_where_only_torch_is_known(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    model = insert_gates(Mapping().eval(), (x,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close([0, 2, 5])
    file = lower(model).save(tmp_path / "small.pt2")
    ((found,),) = in_new_process(file, [{"x": x}])
    torch.testing.assert_close(found, model(x)["y"].detach())


@pytest.mark.slow
@REAL
def test_real_models_run_where_only_torch_is_known(
    name: str, causal: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = pruned(request.getfixturevalue(name)())
    inputs = list(batches(model.config.vocab_size))
    outputs = iter(in_new_process(lower(model).save(tmp_path / "m.pt2"), inputs))

    def loaded(**_: Any) -> dict[int, Tensor]:
        return dict(enumerate(next(outputs)))

    assert worst_difference(model, loaded, iter(inputs), causal) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns of itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@REAL
def test_compiled_ahead_of_time_it_computes_the_same(
    name: str, causal: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = pruned(request.getfixturevalue(name)())
    exported = torch.export.load(lower(model).save(tmp_path / "program.pt2"))
    package = tmp_path / "library.pt2"
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
    compiled = torch._inductor.aoti_load_package(str(package))
    inputs = batches(model.config.vocab_size)
    assert worst_difference(model, compiled, inputs, causal) < 1e-5
