"""Every kind of model can be compared with every other."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fgcompile
from fgcompile.analysis.coupling import find_groups
from fgcompile.capture import capture
from fgcompile.errors import CaptureError, FormatError
from fgcompile.report import diff, summarize
from fgcompile.report.cost import count_macs
from tests.report.models import Encoder

# torch's own exporter warns about its own code.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

KEPT = [0, 2, 3, 9]
INPUTS = {"x": torch.zeros(2, 5, 8)}


class Mlp(nn.Module):
    def __init__(self, keep: list[int] | None = None) -> None:
        super().__init__()
        rows = list(range(12)) if keep is None else keep
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Linear(8, len(rows))
        self.down = nn.Linear(len(rows), 8)
        self.up.weight.data = torch.randn(12, 8, generator=generator)[rows]
        self.up.bias.data = torch.randn(12, generator=generator)[rows]
        self.down.weight.data = torch.randn(8, 12, generator=generator)[:, rows]
        self.down.bias.data = torch.randn(8, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Renamed(nn.Module):
    """The same model under a name of the caller's choice."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, Mlp())

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def program_of(model: nn.Module) -> torch.export.ExportedProgram:
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return torch.export.export(model, (), INPUTS, dynamic_shapes={"x": dims})


def onnx_of(model: nn.Module, path: Path) -> Path:
    pytest.importorskip("onnxscript")
    exported = torch.onnx.export(program_of(model), dynamo=True, verbose=False)
    exported.save(path)
    return path


@pytest.fixture
def sources(tmp_path):
    """The same model in every form, before and after pruning."""

    def forms(model: nn.Module, name: str) -> dict[str, object]:
        folder = tmp_path / name
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        torch.export.save(program_of(model), tmp_path / f"{name}.pt2")
        program = capture(model, INPUTS)
        return {
            "module": model,
            "program": program,
            "graph module": program.graph_module,
            "exported": program_of(model),
            "pt2": tmp_path / f"{name}.pt2",
            "folder": folder,
            "safetensors": folder / "model.safetensors",
            "lowered": fgcompile.lower(model, example_inputs=INPUTS),
        }

    return forms(Mlp().eval(), "before"), forms(Mlp(KEPT).eval(), "after")


GRAPHS = ["module", "program", "graph module", "exported", "pt2", "lowered"]
WEIGHTS = ["folder", "safetensors"]


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_of_any_kind_agree_with_the_module(sources, kind):
    before, after = sources
    assert diff(before["module"], before[kind], example_inputs=INPUTS).same
    report = diff(before["module"], after[kind], example_inputs=INPUTS)
    (group,) = report.groups
    assert (group.kind, group.before, group.after, group.kept) == (
        "mlp",
        12,
        4,
        tuple(KEPT),
    )
    assert not report.nodes


def test_a_lowered_onnx_model_is_compared_as_onnx(tmp_path):
    only_mlp = fgcompile.GateConfig(kinds=("mlp",))
    gated = fgcompile.insert_gates(Mlp().eval(), INPUTS, only_mlp)
    for gate in fgcompile.gates(gated).values():
        gate.close([unit for unit in range(12) if unit not in KEPT])
    lowered = fgcompile.lower(gated, "onnx", tmp_path / "out")
    files = diff(onnx_of(Mlp().eval(), tmp_path / "before.onnx"), lowered)
    assert [(g.before, g.after, g.kept) for g in files.groups] == [(12, 4, tuple(KEPT))]
    assert diff(lowered, tmp_path / "out").same
    own = lowered.report
    assert [(g.before, g.after, g.kept) for g in own.groups] == [(12, 4, tuple(KEPT))]
    assert own.verdict.verified is not None
    assert own.verdict.verified.max_difference < 1e-5


@pytest.mark.parametrize("kind", WEIGHTS)
def test_saved_weights_are_compared_by_parameters(sources, kind):
    before, after = sources
    same = diff(before["module"], before[kind], example_inputs=INPUTS)
    assert same.same
    report = diff(before[kind], after[kind])
    assert [change.name for change in report.parameters] == [
        "down.weight",
        "up.bias",
        "up.weight",
    ]
    assert "holds no graph" in report.notes[0].text
    assert report.verdict.macs.after is None


def test_a_module_agrees_with_its_own_onnx_file(sources, tmp_path):
    before = sources[0]
    report = diff(
        before["module"],
        onnx_of(Mlp().eval(), tmp_path / "a.onnx"),
        example_inputs=INPUTS,
    )
    assert not report.parameters
    assert not report.groups
    assert report.verdict.parameters.delta == 0
    assert report.verdict.macs.delta == 0
    pruned = diff(
        before["module"],
        onnx_of(Mlp(KEPT).eval(), tmp_path / "b.onnx"),
        example_inputs=INPUTS,
    )
    assert [(g.before, g.after, g.kept) for g in pruned.groups] == [
        (12, 4, tuple(KEPT))
    ]


def test_exported_onnx_pairs_agree_with_the_modules(tmp_path):
    paths = [
        onnx_of(Mlp(keep).eval(), tmp_path / f"{number}.onnx")
        for number, keep in enumerate((None, KEPT))
    ]
    (group,) = diff(*paths).groups
    assert (group.name, group.before, group.after) == ("mlp", 12, 4)
    assert {m.parameter for m in group.members} == {
        "up.weight",
        "up.bias",
        "down.weight",
    }


def test_groups_carry_the_names_of_the_coupling_analysis():
    model = Mlp().eval()
    names = {group.name for group in find_groups(capture(model, INPUTS)).groups}
    (group,) = diff(model, Mlp(KEPT).eval(), example_inputs=INPUTS).groups
    assert group.name in names


def test_macs_agree_with_the_cost_analysis():
    program = capture(Mlp().eval(), INPUTS)
    expected = 1 * 5 * (8 * 12 + 12 * 8)
    assert count_macs(summarize(program, shapes={"x": (1, 5, 8)})) == expected


def test_stated_shapes_change_macs_only():
    path = onnx_model = Encoder().build()
    short = diff(path, onnx_model, shapes={"input_ids": (1, 16)})
    long = diff(path, onnx_model, shapes={"input_ids": (2, 32)})
    assert short.verdict.macs_shape == "input_ids[1, 16]"
    assert (long.verdict.macs.after or 0) > 4 * (short.verdict.macs.after or 0)
    assert short.verdict.parameters == long.verdict.parameters


def test_a_module_without_inputs_is_compared_by_parameters_and_says_so():
    report = diff(Mlp(), Mlp(KEPT))
    assert len(report.parameters) == 3
    assert "without example_inputs Mlp was not traced" in report.notes[0].text


def test_weights_on_the_meta_device_are_compared_by_shape():
    before, after = Mlp().eval().to("meta"), Mlp(KEPT).eval().to("meta")
    inputs = {"x": torch.zeros(2, 5, 8, device="meta")}
    (group,) = diff(before, after, example_inputs=inputs).groups
    assert (group.before, group.after, group.kept) == (12, 4, None)


def test_half_precision_weights_are_compared_by_their_bits():
    before, after = Mlp().to(torch.bfloat16), Mlp().to(torch.bfloat16)
    assert diff(before, after).same
    after.up.bias.data[3] += 1
    assert [c.name for c in diff(before, after).parameters] == ["up.bias"]


def test_a_slice_to_the_end_is_the_same_however_it_is_written():
    class Tail(nn.Module):
        def __init__(self, end: int) -> None:
            super().__init__()
            self.end = end

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.slice(x, 2, 3, self.end)

    far, exact, short = Tail(1 << 62), Tail(8), Tail(7)
    assert diff(far, exact, example_inputs=INPUTS).same
    assert not diff(far, short, example_inputs=INPUTS).same


def test_a_tied_tensor_counts_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert diff(model, model).verdict.parameters.after == 16
    traced = diff(model, model, example_inputs=(torch.zeros(2, 4),))
    assert traced.verdict.parameters.after == 16


def test_a_renamed_module_is_no_change():
    before, after = Renamed("first").eval(), Renamed("second").eval()
    assert diff(before, copy.deepcopy(before), example_inputs=INPUTS).same
    assert diff(before, after, example_inputs=INPUTS).same


def test_external_data_is_only_mapped_when_values_are_needed(tmp_path):
    model = Encoder().build()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data")
    assert diff(path, Encoder().build()).same


def test_an_object_that_holds_no_model_is_refused():
    with pytest.raises(CaptureError, match="cannot read a model from an object of"):
        diff(3, Mlp())


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(FormatError, match="is a pickle, which runs code"):
        diff(path, path)


def test_a_folder_with_several_models_asks_which(tmp_path):
    for name in ("a", "b"):
        onnx.save(Encoder().build(), tmp_path / f"{name}.onnx")
    with pytest.raises(FormatError, match=r"2 models\n  a\.onnx, b\.onnx"):
        diff(tmp_path, tmp_path)


def test_a_folder_with_one_onnx_file_is_that_model(tmp_path):
    onnx.save(Encoder().build(), tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text("{}")
    assert diff(tmp_path, Encoder().build()).same
