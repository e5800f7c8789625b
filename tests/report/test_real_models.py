"""Trained models, exported by torch.onnx and changed by us and by other tools."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fgcompile.report import diff
from tests.report.golden import assert_golden
from tests.report.models import Encoder
from tests.report.pruning import choose, export_onnx, prune_bert, prune_llama

pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # torch's and onnxruntime's own
]

ROOT = Path(__file__).parents[2]
MEASURED = """
import re, sys
from pathlib import Path
from fgcompile.cli import main
assert main(["diff", *sys.argv[1:]]) == 0
# Not getrusage: a child inherits the peak of the process that forked it.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
HEADS = [choose(12, count, seed) for seed, count in enumerate((10, 6, 12, 8, 8, 8))]
CHANNELS = [
    choose(1536, count, 100 + seed)
    for seed, count in enumerate((921, 1000, 1536, 768, 768, 768))
]
OUTPUTS = ["last_hidden_state", "pooler_output"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def dense(load_minilm, folder) -> Path:
    return export_onnx(load_minilm(), folder / "dense.onnx", OUTPUTS)


@pytest.fixture(scope="module")
def pruned(load_minilm, folder) -> Path:
    model = load_minilm()
    prune_bert(model, HEADS, CHANNELS)
    return export_onnx(model, folder / "pruned.onnx", OUTPUTS)


def test_every_group_of_a_pruned_minilm_is_right_to_the_unit(dense, pruned):
    report = diff(dense, pruned)
    expected = {}
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        expected[f"{name}.attention.head"] = (12, HEADS[layer])
        expected[f"{name}.mlp"] = (1536, CHANNELS[layer])
    assert {g.name: (g.before, list(g.kept or ())) for g in report.groups} == {
        name: (size, kept)
        for name, (size, kept) in expected.items()
        if len(kept) < size
    }
    assert not report.nodes
    assert not report.interface
    assert_golden("minilm.md", report.to_markdown())
    assert_golden("minilm.txt", report.to_terminal(110))


def test_the_sizes_of_a_model_stripped_of_provenance_are_right(dense, pruned):
    models = []
    for path in (dense, pruned):
        model = onnx.load(path)
        for node in model.graph.node:
            del node.metadata_props[:]
            node.name = ""
        models.append(model)
    groups = diff(*models).groups
    kept = (
        [len(h) for h in HEADS if len(h) < 12],
        [len(c) for c in CHANNELS if len(c) < 1536],
    )
    assert [g.after for g in groups if g.kind == "head"] == kept[0]
    assert [g.after for g in groups if g.kind == "mlp"] == kept[1]


def test_a_pair_pruned_by_onnxsim_is_right(dense, folder):
    onnxsim = pytest.importorskip("onnxsim")
    if not hasattr(onnxsim, "apply_structured_pruning"):
        pytest.skip("this onnxsim does not prune")
    other = onnxsim.apply_structured_pruning(onnx.load(dense), 0.4)
    widths = {
        tuple(numpy_helper.to_array(tensor).shape)
        for tensor in other.graph.initializer
        if 922 in tensor.dims
    }
    assert widths == {(384, 922), (922,), (922, 384)}
    groups = diff(dense, other).groups
    assert [(g.name, g.before, g.after) for g in groups] == [
        (f"encoder.layer.{layer}.mlp", 1536, 922) for layer in range(6)
    ]
    assert all(g.kept is not None for g in groups)


def test_dynamic_quantisation_keeps_every_layer_in_its_place(dense, folder):
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = folder / "quantised.onnx"
    quantization.quantize_dynamic(dense, path, per_channel=True)
    report = diff(dense, path)
    assert not report.groups
    assert not report.interface
    changed = {c.name: c.dtype_after for c in report.parameters if c.dtype_before}
    names = {
        f"encoder.layer.{layer}.{part}.weight"
        for layer in range(6)
        for part in ("intermediate.dense", "output.dense", "attention.output.dense")
    }
    assert names <= changed.keys()
    assert {changed[name] for name in names} == {"int8"}


def test_an_opset_change_touches_attention_only(load_minilm, dense, folder):
    path = export_onnx(
        load_minilm(), folder / "opset23.onnx", OUTPUTS, opset_version=23
    )
    report = diff(dense, path)
    assert [(c.kind, c.before, c.after) for c in report.interface] == [
        ("opset", "20", "23")
    ]
    assert {c.module.rpartition(".")[2] for c in report.nodes} == {"self"}
    assert not report.parameters
    assert not report.groups


def test_the_same_model_exported_twice_is_no_change(load_minilm, dense, folder):
    again = export_onnx(load_minilm(), folder / "again.onnx", OUTPUTS)
    assert diff(dense, again).same


def test_a_pruned_minilm_agrees_as_module_and_as_file(load_minilm, dense, pruned):
    before, after = load_minilm(), load_minilm()
    prune_bert(after, HEADS, CHANNELS)
    modules = diff(before, after)
    files = diff(dense, pruned)
    assert [(g.name, g.before, g.after, g.kept) for g in modules.groups] == [
        (g.name, g.before, g.after, g.kept) for g in files.groups
    ]
    assert modules.verdict.macs == files.verdict.macs


def test_key_value_groups_of_a_pruned_stories260k_are_right(load_stories260k, folder):
    heads = [[0, 2], [1, 3], [0, 1, 3], [0, 1, 2, 3], [2, 3]]
    channels = [choose(172, 172 - 30 * layer, layer) for layer in range(5)]
    before, after = load_stories260k(), load_stories260k()
    prune_llama(after, heads, channels)
    expected = [
        (f"model.layers.{layer}.{kind}", size, tuple(kept))
        for layer in range(5)
        for kind, size, kept in (
            ("mlp", 172, channels[layer]),
            ("self_attn.head", 4, heads[layer]),
        )
        if len(kept) < size
    ]
    report = diff(before, after)
    assert [(g.name, g.before, g.kept) for g in report.groups] == expected
    assert_golden("stories260k.md", report.to_markdown())
    files = []
    for name, model in (("before", before), ("after", after)):
        model.config.use_cache = False
        files.append(export_onnx(model, folder / f"stories-{name}.onnx", ["logits"]))
    exported = diff(*files)
    assert [(g.name, g.before, g.kept) for g in exported.groups] == expected


def test_a_pair_of_24_layers_and_300_megabytes_is_quick(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of memory is read from /proc, which is not there")
    large = {"layers": 24, "hidden": 512, "head": 64, "width": 2048}
    heads = {layer: choose(8, 8 - layer % 4, layer) for layer in range(24)}
    channels = {layer: choose(2048, 1500 - layer, layer) for layer in range(24)}
    paths = [tmp_path / name / "model.onnx" for name in ("before", "after")]
    for path, kept in zip(
        paths, ({}, {"heads": heads, "channels": channels}), strict=True
    ):
        path.parent.mkdir()
        options: Any = {**large, **kept}
        onnx.save(
            Encoder(**options).build(),
            path,
            save_as_external_data=True,
            location="model.data",
        )
    assert (paths[0].parent / "model.data").stat().st_size > 300_000_000
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert time.perf_counter() - start < 20
    assert int(done.stdout.splitlines()[-1]) * 1024 < 1_500_000_000
    report = diff(*paths)
    assert len(report.to_html()) < 1_000_000
    assert len(report.to_markdown()) < 65_536
    kept_units = {g.name: g.kept for g in report.groups}
    for layer in range(24):
        name = f"encoder.layer.{layer}"
        assert kept_units[f"{name}.mlp"] == tuple(channels[layer])
        assert kept_units.get(f"{name}.attention.head", tuple(range(8))) == tuple(
            heads[layer]
        )


def test_values_that_were_trained_on_are_not_called_kept(dense, pruned):
    model = onnx.load(pruned)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(values * 0.999, tensor.name))
    report = diff(dense, model)
    kinds = {group.kind: group.kept is not None for group in report.groups}
    # Biases did not change, so the kept units can still be read off them.
    assert kinds == {"head": True, "mlp": True}
    assert sum(change.values_changed for change in report.parameters) > 0
