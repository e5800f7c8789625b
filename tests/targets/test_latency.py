"""Measuring: what runs, what is remembered, and whether predictions hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fgcompile
from fgcompile import Budget, GateConfig, gates, insert_gates, measure_latency
from fgcompile.compiler import analyze
from fgcompile.errors import ExportError, FormatError
from fgcompile.gates import LatencyTable, container_of
from fgcompile.passes.base import parameter_count
from fgcompile.program import Program
from fgcompile.targets.latency import measure as measuring
from fgcompile.targets.latency.cache import cache_file, cache_folder, recall
from fgcompile.targets.latency.files import _Run, onnx_latencies
from fgcompile.targets.latency.measure import Setting, measure
from fgcompile.targets.latency.parts import write_parts
from fgcompile.targets.latency.region import make_region
from fgcompile.targets.timing import median_times, undisturbed_clock
from tests.targets.spinning import SPINNING, time_after

INPUTS = (torch.zeros(2, 8),)


def mlp(width: int = 64) -> nn.Sequential:
    """Two blocks that are alike, and a last matrix."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    blocks = [
        nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8), nn.Tanh())
        for _ in range(2)
    ]
    return nn.Sequential(*blocks, nn.Linear(8, 5)).eval()


def by_size(files: Sequence[Path]) -> list[float]:
    """A clock by which a model takes as long as it has weights."""
    import onnx

    return [
        1e-6 + 1e-9 * sum(len(t.raw_data) for t in onnx.load(f).graph.initializer)
        for f in files
    ]


class Fake:
    """Writes no ONNX, and has a clock by which time is the number of weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[int] = []
        monkeypatch.setattr(measuring, "write_onnx", self.write)
        monkeypatch.setattr(measuring, "write_parts", self.write_parts)
        monkeypatch.setattr(measuring, "_clock", lambda setting: self.clock)

    def write(self, program: Program, file: Path) -> None:
        file.write_text(str(parameter_count(program)), "utf-8")

    def write_parts(self, programs: Sequence[Program], folder: Path) -> list[Path]:
        files = [folder / f"{number}" for number in range(len(programs))]
        for program, file in zip(programs, files, strict=True):
            self.write(program, file)
        return files

    def clock(self, files: Sequence[Path]) -> list[float]:
        self.read.append(len(files))
        return [1.0 + int(file.read_text("utf-8")) for file in files]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGCOMPILE_CACHE", str(tmp_path / "cache"))


def hidden(analysis: Any) -> list[str]:
    """The hidden channels of both blocks; what is between blocks is left alone."""
    names = ["0.mlp", "1.mlp"]
    assert analysis.by_name.keys() > set(names)
    return names


# -- what is measured ---------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(48, 20), (64, 64), (16, 33)])
def test_prediction_is_what_the_lowered_model_takes(
    fake: Fake, sizes: tuple[int, int]
) -> None:
    model = mlp()
    analysis = analyze(model, INPUTS)
    names = hidden(analysis)
    table = measure(analysis, names, Setting())
    assert fake.read == [1 + 5]  # the dense model; two groups that are alike
    insert_gates(model, INPUTS, GateConfig(kinds=("mlp",)))
    kept = dict(zip(names, sizes, strict=True))
    for name, size in kept.items():
        gates(model)[name].close(range(64 - size))
    lowered = fgcompile.lower(model, verify=False).program
    assert table.predict(kept) == pytest.approx(1 + parameter_count(lowered))


def test_shared_convolutions_are_predicted_together(fake: Fake) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 1, bias=False), nn.ReLU()),
        *(nn.Conv2d(16, 24, 1, bias=False), nn.ReLU(), nn.Conv2d(24, 8, 1)),
    ).eval()
    inputs = (torch.zeros(2, 3, 4, 4),)
    analysis = analyze(model, inputs)
    names = [g.name for g in analysis.groups if g.kind == "conv"][:2]
    assert [analysis.by_name[name].size for name in names] == [16, 24]
    table = measure(analysis, names, Setting())
    exact = 1 + 3 * 8 + 8 * 12 + 12 * 8 + 8
    assert table.predict({names[0]: 8, names[1]: 12}) == pytest.approx(exact)


@pytest.mark.parametrize(
    "name", [pytest.param("bert", marks=pytest.mark.slow), "llama"]
)
def test_parts_compute_what_their_regions_do(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    from fgcompile.zoo.models import entry

    analysis = analyze(entry(name).build())
    head = next(g.name for g in analysis.groups if g.kind == "head")
    region = make_region(analysis, head, 1, 6)
    programs = [region.keeping(kept) for kept in (0, 1, region.size)]
    for program, file in zip(programs, write_parts(programs, tmp_path), strict=True):
        session = onnxruntime.InferenceSession(str(file))
        feed = {
            port.name: program.inputs[port.name.split("_", 2)[2]].numpy()
            for port in session.get_inputs()
        }
        (got,), (want,) = session.run(None, feed), program(**program.inputs)
        torch.testing.assert_close(torch.from_numpy(got), want.detach())


def test_a_region_has_what_its_units_have_and_no_more() -> None:
    pytest.importorskip("transformers")
    from fgcompile.zoo.models import entry

    analysis = analyze(entry("llama").build())
    head = next(g for g in analysis.groups if g.kind == "head")
    region = make_region(analysis, head.name, 1, 6)
    sizes = [parameter_count(region.keeping(kept)) for kept in range(region.size + 1)]
    assert sizes == [int(kept * head.parameters[0]) for kept in range(head.size + 1)]


def test_times_grow_with_the_units_whatever_the_noise() -> None:
    assert measuring._rising([1.0, 3.0, 2.0, 5.0]) == (0.0, 1.5, 1.5, 4.0)


def test_parts_that_take_longer_than_the_whole_are_a_warning(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model = mlp(16)
    analysis = analyze(model, INPUTS)

    seconds = [1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(fake, "clock", lambda files: seconds)
    measure(analysis, hidden(analysis), Setting())
    assert "took 800% of the time of the whole" in caplog.text


def test_time_stands_still_for_others_on_one_thread_only() -> None:
    import time

    assert undisturbed_clock(2) is time.perf_counter
    if sys.platform == "linux":
        slept, worked = median_times(
            [lambda: time.sleep(0.01), lambda: sum(range(300_000))],
            0.0,
            undisturbed_clock(1),
        )
        assert slept < 0.3 * worked


def test_threads_of_one_file_do_not_disturb_another(tmp_path: Path) -> None:
    fgcompile.lower(mlp(512), "onnx", tmp_path / "m.onnx", example_inputs=INPUTS)
    assert time_after(_Run(tmp_path / "m.onnx", 4096, 1, threads=2)) < SPINNING


# -- what is remembered -------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(fake: Fake) -> None:
    analysis = analyze(mlp(16), INPUTS)
    names = hidden(analysis)
    first = measure(analysis, names, Setting())
    # Another model of these shapes, as in another process.
    again = measure(analyze(mlp(16), INPUTS), names, Setting())
    assert (again, len(fake.read)) == (first, 1)
    (file,) = cache_folder().iterdir()
    file.write_text(file.read_text("utf-8")[:100], "utf-8")
    assert measure(analysis, names, Setting()) == first
    measure(analysis, names, Setting(), fresh=True)
    assert len(fake.read) == 3


def test_every_fact_has_a_file_of_its_own() -> None:
    analysis, wide = analyze(mlp(16), INPUTS), analyze(mlp(32), INPUTS)
    names = hidden(analysis)
    facts = [
        measuring._facts(analysis, names, Setting()),
        measuring._facts(wide, names, Setting()),
        measuring._facts(analysis, names[:1], Setting()),
        *(measuring._facts(analysis, names, Setting(*s)) for s in ((2, 128), (1, 9))),
        measuring._facts(analysis, names, Setting(threads=2)),
    ]
    assert len({cache_file(found) for found in facts}) == 6


def test_a_cache_that_cannot_be_written_is_no_error(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FGCOMPILE_CACHE", str(tmp_path / "file"))
    analysis = analyze(mlp(16), INPUTS)
    table = measure(analysis, hidden(analysis), Setting())
    assert recall(cache_file(measuring._facts(analysis, [], Setting()))) is None
    assert table.groups[0].units == (0, 4, 8, 12, 16)


# -- the verbs ----------------------------------------------------------------------


def test_insert_gates_measures_what_its_budget_limits(fake: Fake) -> None:
    model = mlp(16)
    budget = Budget(latency=0.7, batch=3, threads=2)
    insert_gates(model, INPUTS, GateConfig(kinds=("mlp",), budget=budget))
    found = container_of(model).config.budget
    assert isinstance(found, Budget)
    table = found.measured
    assert isinstance(table, LatencyTable)
    assert (table.batch, table.length, table.threads) == (3, 128, 2)
    assert table.runtime.startswith("onnxruntime ")
    assert len(fake.read) == 1


def test_a_table_from_elsewhere_is_used_as_it_is(fake: Fake) -> None:
    table = measure_latency(mlp(16), INPUTS, ("mlp",))
    table = LatencyTable.from_json(table.to_json())
    budget = Budget(latency=0.7, measured=table)
    model = insert_gates(mlp(16), INPUTS, GateConfig(kinds=("mlp",), budget=budget))
    assert container_of(model).config.budget == budget
    assert len(fake.read) == 1


def test_a_missing_runtime_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    budget = Budget(latency=0.7)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
    with pytest.raises(
        ExportError, match=r"onnxruntime\n.*pip install fgcompile\[onnx"
    ):
        insert_gates(model, INPUTS, GateConfig(kinds=("mlp",), budget=budget))


@pytest.mark.slow
def test_a_size_that_the_model_does_not_take_is_told() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    with pytest.raises(FormatError, match=r"cannot run dense\.onnx on 1 rows of 64"):
        measure_latency(model, kinds=("mlp",), length=64)


# -- the clock on the wall ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_latency_of_a_lowered_model_is_as_predicted(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from benchmarks.latency_budget.case import close_by_budget
    from benchmarks.shapes import build

    model = build(f"small-{name}")
    table = measure_latency(model)
    fgcompile.lower(model, "onnx", tmp_path / "dense.onnx", verify=False)
    budget = Budget(latency=0.6, measured=table)
    insert_gates(model, config=GateConfig(budget=budget))
    kept = close_by_budget(model)
    fgcompile.lower(model, "onnx", tmp_path / "small.onnx", verify=False)
    files = [tmp_path / "dense.onnx", tmp_path / "small.onnx"]
    dense, small = onnx_latencies(files, seconds=5, clock=undisturbed_clock(1))
    assert table.predict(kept) / table.seconds <= 0.6 + 1e-6
    # Wide, for a machine that does other things; the benchmark tells the real error.
    assert small / dense == pytest.approx(0.6, rel=0.25)
