"""`lower`: from a gated or sparse model to a smaller one that computes the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fgcompile.capture import capture
from fgcompile.capture.state import one_at_a_time
from fgcompile.capture.trace import check_is_module
from fgcompile.checkpoint import MANIFEST, save_module
from fgcompile.errors import ExportError, VerifyError
from fgcompile.gates import find_container, gates, remove_gates
from fgcompile.gates.status import check_ran, warn_of_missed_budget
from fgcompile.passes.eliminate_dead_code import eliminate_dead_code
from fgcompile.passes.fold_gates import GATE
from fgcompile.passes.merge_low_rank import merge_low_rank
from fgcompile.passes.pipeline import eliminate
from fgcompile.program import Program, size_range
from fgcompile.report import GraphDiff, Note, Verification
from fgcompile.report.lowering import lowering_report
from fgcompile.targets.artifact import Artifact, make_artifact
from fgcompile.targets.captured import verify_captured
from fgcompile.targets.companions import copy_companions, write_companions
from fgcompile.targets.decoder import (
    DecoderForm,
    OnnxDecoder,
    cache_layers,
    write_decoder_companions,
)
from fgcompile.targets.exported import save_program
from fgcompile.targets.files import staged, staged_folder
from fgcompile.targets.forms import Form, OnnxForm, OpenVinoForm
from fgcompile.targets.module import Kept, LoweredModule, lower_to_module
from fgcompile.targets.onnx import OPSET
from fgcompile.targets.precise import verify_precisely
from fgcompile.targets.verify import (
    Comparison,
    remembered_outputs,
    verify_equal,
)

Target = Literal["fx", "module", "onnx", "openvino"]

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
_CACHED = ("head", "qk", "vo")
"""Kinds of groups whose sizes a key-value cache has."""

_RUNTIMES = {"onnx": "onnxruntime", "openvino": "OpenVINO"}


@dataclass
class Lowered:
    """A smaller model that computes what the gated one does.

    Attributes:
        target: What it was lowered to.
        program: The lowered program; its parameters are the smaller ones.
        comparison: What verification saw, None if it was switched off; with int8
            weights, what it saw of the file with float32 weights.
    """

    target: Target
    program: Program
    comparison: Comparison | None
    _read: Callable[[], Any]
    _before: Program
    _run: Callable[..., Any]
    _closed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _artifact: Artifact | None = field(default=None, repr=False)
    _module: LoweredModule | None = field(default=None, repr=False)

    @cached_property
    def model(self) -> Any:
        """What was made; a file is read when this is first asked for.

        A GraphModule ("fx"), an nn.Module of the original class ("module"), an ONNX
        ModelProto ("onnx"; for files with external data, its path), or an
        openvino.Model ("openvino").
        """
        return self._read()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs for the inputs that the model's forward takes."""
        return self._run(*args, **kwargs)

    @property
    def rounding(self) -> Comparison | None:
        """How far int8 weights are from float32 ones; None without `quantization`."""
        return None if self._artifact is None else self._artifact.rounded

    @cached_property
    def report(self) -> GraphDiff:
        """What changed, for code review.

        With `quantization`, the dense model is exported and quantised as well when this
        is first read, so that both stand side by side.
        """
        kept = Kept() if self._module is None else self._module.kept
        report = lowering_report(
            _without_gates(self._before),
            self.program,
            {n: shut for n, shut in self._closed.items() if n not in kept.even},
            self._verified(),
            kept.texts,
            _title(self._before),
        )
        more = (*_agreements(kept), *_limits(self._before))
        report = replace(report, notes=report.notes + more)
        if self._artifact is None:
            return report
        return replace(
            report,
            notes=report.notes + self._artifact.notes,
            variants=self._artifact.variants(),
        )

    def _verified(self) -> Verification | None:
        if self.comparison is None:
            return None
        method = _RUNTIMES.get(self.target, "fx")
        return Verification(self.comparison.absolute, method=method)

    def save(self, path: str | Path) -> Path:
        """Writes the model to `path`, atomically; returns the file.

        A path with the target's suffix names the file, any other a folder, in which
        the file is called `model.onnx` ("onnx") or `model.pt2` ("fx"). A module is
        always a folder, which `load` reads.

        Raises:
            ExportError: If it cannot be written.
        """
        return save_lowered(self, Path(path))


@one_at_a_time
def lower(
    model: nn.Module,
    target: Target = "fx",
    path: str | Path | None = None,
    *,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    verify: bool = True,
    opset: int = OPSET,
    quantization: Literal["int8"] | None = None,
    cache: bool = False,
    uniform: bool | None = None,
) -> Lowered:
    """A model without the dims that are dead in `model`, verified to be equal.

    Dead is whatever provably cannot reach an output: closed gate units, zero rows,
    columns, heads or channels left by any tool, and all that depends on them.
    `model` itself is not changed. Calls from several threads wait for each other.

    Args:
        model: With or without gates; an nn.Module or FX GraphModule.
        target: "fx" for a GraphModule, "onnx" for an ONNX model, "module" for a model
            of the same class, which keeps what a graph could do without but the
            class's code could not; the report says what and why. "openvino" for an
            OpenVINO model.
        path: Where to write it; nothing is written unless verification passed.
        example_inputs: As for `insert_gates`; not needed for transformers models, nor
            if gates were inserted with some.
        verify: Compare with `model` on several batch sizes, lengths and paddings,
            and the written file in its runtime.
        opset: ONNX opset.
        quantization: "int8" rounds the weights of an ONNX file, and its activations
            while it runs. Such a file is close, not equal: `rounding` and the report
            say how close, beside what rounding does to the dense model.
        cache: Writes a decoder with its key-value cache as inputs and outputs, in the
            names that onnxruntime-genai and optimum expect; only for "onnx".
        uniform: For target "module" and with `cache`: whether all layers keep equally
            many units, so that one configuration describes them, as other loaders and
            engines expect. By default only the heads of a model with `cache` do.

    Returns:
        The lowered model, callable like `model`, with a report.

    Raises:
        FgcompileError: A leaf says what: GateError for gates whose penalty never ran
            though they were trained, CaptureError for models that cannot be traced,
            VerifyError for weights with NaN or a result that differs, ExportError for
            an unknown target or a path that cannot be written.
    """
    if target not in get_args(Target):
        raise ExportError(
            f"unknown target {target!r}\n"
            '  Targets are "fx" (GraphModule), "module" (same class), "onnx" (file for '
            'onnxruntime) and "openvino".'
        )
    check_options(target, quantization, cache)
    if path is not None and target != "module":
        _destination(target, Path(path))
    check_is_module(model)
    container = find_container(model)
    if container is not None:
        # What the optimizer did last is part of the model that is lowered.
        container.settle()
        check_ran(container)
        warn_of_missed_budget(container)
    program = capture(model, _inputs_of(model, example_inputs))
    _check_weights(program)
    with remembered_outputs(program):
        result = _lowered(
            *(model, program, target, verify),
            opset=opset,
            quantize=quantization is not None,
            cache=cache,
            uniform=uniform,
        )
    if container is not None:
        result._closed = {name: ~gate.open for name, gate in gates(model).items()}
    if path is not None:
        _save_or_discard(result, path)
    return result


def _lowered(
    model: nn.Module,
    program: Program,
    target: Target,
    verify: bool,
    *,
    opset: int,
    quantize: bool,
    cache: bool,
    uniform: bool | None,
) -> Lowered:
    if target == "module":
        return _lower_to_module(model, program, verify, bool(uniform))
    if target == "fx":
        return _lower_to_fx(program, verify)
    if cache:
        kinds: bool | tuple[str, ...] = _CACHED if uniform is None else uniform
        return _lower_to_decoder(model, program, verify, opset, quantize, kinds)
    return _lower_to_file(program, target, verify, opset, quantize)


def check_options(target: Target, quantization: str | None, cache: bool) -> None:
    """Refuses what `target` has no use for.

    Raises:
        ExportError: Names the option.
    """
    if quantization not in (None, "int8"):
        raise ExportError(
            f"unknown quantization {quantization!r}\n"
            '  "int8" is what there is, or None.'
        )
    for name, asked in (("quantization", quantization), ("cache", cache)):
        if asked and target != "onnx":
            raise ExportError(
                f"{name}={asked!r} is for ONNX files, not for target {target!r}\n"
                f'  Lower to "onnx", or without {name}.'
            )


def _agreements(kept: Kept) -> Iterator[Note]:
    """What stays so that layers agree, and whether that is enough."""
    if kept.unfit is not None:
        yield Note(kept.unfit, level="warning")
    for name, text in kept.even.items():
        yield Note(text, name, "warning")


def _limits(program: Program) -> Iterator[Note]:
    """What the sizes of inputs must be, where the model's code chooses by them."""
    for node in program.placeholders:
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            low, high = size_range(size)
            if not isinstance(size, int) and low:
                most = "" if high == math.inf else f" and at most {high}"
                yield Note(
                    f"dim {dim} must be at least {low}{most}: the model's code does "
                    "something else below, and the file does not check it",
                    f"input {node.target}",
                    "warning",
                )


def _title(program: Program) -> str:
    model = program.user_model
    return "" if model is None else type(model).__name__


def _without_gates(program: Program) -> Program:
    """`program` with every gate open for good.

    Low-rank updates are in the weights, as their ranks are no groups of the model.
    """
    plain = program.copy()
    for node in plain.graph.nodes:
        if getattr(getattr(node.target, "_schema", None), "name", "") == GATE:
            node.replace_all_uses_with(node.args[0])
    merge_low_rank(plain)
    eliminate_dead_code(plain)
    return plain


def _inputs_of(model: nn.Module, example_inputs: Any) -> Any:
    """The inputs that gates were inserted with, unless others are given."""
    if example_inputs is not None:
        return example_inputs
    return getattr(find_container(model), "example_inputs", None)


def _check_weights(program: Program) -> None:
    for node in program.graph.nodes:
        if node.op != "get_attr" or not program.is_parameter(node):
            continue
        tensor = program.parameter(node)
        if tensor.is_meta:
            raise VerifyError(
                f"parameter {node.target} is on the meta device and has no values\n"
                "  Load the weights before lowering; analyze() needs none."
            )
        # A finite sum has finite terms, in a tenth of the time of looking at each.
        if not tensor.is_floating_point() or torch.isfinite(tensor.detach().sum()):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise VerifyError(
                f"parameter {node.target} holds {bad} of {tensor.numel()} values that "
                "are NaN or infinite\n"
                "  Equality cannot be verified. Repair the checkpoint or training."
            )


def _compared(
    program: Program, lowered: Program, candidate: Callable[..., Any]
) -> Comparison:
    """What verification sees of `candidate`, which computes what `lowered` does.

    Raises:
        VerifyError: If the model, `program` and `candidate` are not all equal.
    """
    verify_captured(program)
    verify_precisely(program, lowered)
    return verify_equal(program, candidate)


def _lower_to_fx(program: Program, verify: bool) -> Lowered:
    lowered = eliminate(program)
    comparison = _compared(program, lowered, lowered) if verify else None
    module = lowered.graph_module
    return Lowered("fx", lowered, comparison, lambda: module, program, lowered)


def _lower_to_module(
    model: nn.Module, program: Program, verify: bool, uniform: bool
) -> Lowered:
    made = lower_to_module(model, program.inputs, uniform)
    comparison = _compared(program, made.program, made) if verify else None
    return Lowered(
        *("module", made.program, comparison, lambda: made.model, program, made.model),
        _module=made,
    )


def _lower_to_file(
    program: Program, target: Target, verify: bool, opset: int, quantize: bool
) -> Lowered:
    lowered = eliminate(program)
    comparison = _compared(program, lowered, lowered) if verify else None
    if target == "openvino":
        forms: tuple[Form, Form] = (OpenVinoForm(program), OpenVinoForm(lowered))
        made = make_artifact(*forms, "model.xml", "OpenVINO", verify)
    else:
        forms = (OnnxForm(program, opset), OnnxForm(lowered, opset))
        dense = (lambda: OnnxForm(_without_gates(program), opset)) if quantize else None
        made = make_artifact(*forms, "model.onnx", "onnxruntime", verify, dense)
    return Lowered(
        *(target, lowered, made.comparison or comparison, made.read, program),
        *(made.run,),
        _artifact=made,
    )


def _lower_to_decoder(
    model: nn.Module,
    program: Program,
    verify: bool,
    opset: int,
    quantize: bool,
    uniform: bool | tuple[str, ...],
) -> Lowered:
    """Generation needs the code around the graph: it is the module that is written."""
    cache_layers(model)
    small = lower_to_module(model, program.inputs, uniform)
    comparison = _compared(program, small.program, small) if verify else None
    layers = cache_layers(small.model)

    def dense() -> Form:
        plain = copy.deepcopy(model)
        if find_container(plain) is not None:
            remove_gates(plain)
        return DecoderForm(plain, cache_layers(plain), opset)

    made = make_artifact(
        DecoderForm(model, layers, opset),
        DecoderForm(small.model, layers, opset),
        *("model.onnx", "onnxruntime", verify),
        dense if quantize else None,
    )
    return Lowered(
        *("onnx", small.program, made.comparison or comparison, made.read, program),
        *(made.run,),
        _module=small,
        _artifact=made,
    )


def _save_or_discard(lowered: Lowered, path: str | Path) -> None:
    """Saves; if that fails, temporary files go at once, not with the traceback."""
    try:
        lowered.save(path)
    except BaseException:
        if lowered._artifact is not None:
            lowered._artifact.discard()
        raise


def save(lowered: Lowered, path: str | Path) -> Path:
    """Writes a lowered model; `load` reads those of target "module".

    Args:
        lowered: From `lower`.
        path: As for `Lowered.save`.

    Returns:
        The file or folder.

    Raises:
        ExportError: If it cannot be written.
    """
    return lowered.save(path)


def save_lowered(lowered: Lowered, path: Path) -> Path:
    """Writes the model of `lowered` to `path`; see `Lowered.save`."""
    if lowered.target == "module":
        assert lowered._module is not None
        with staged_folder(path, ("*.safetensors*", MANIFEST)) as folder:
            save_module(folder, lowered._module, lowered._before.inputs)
            copy_companions(lowered._module.model, folder)
        return path
    target, name = _destination(lowered.target, path)
    with staged(target) as folder:
        if lowered._artifact is not None:
            lowered._artifact.copy(folder / name)
            if path == target:
                _save_companions(lowered, folder / name)
        else:
            save_program(lowered.program, folder / name)
    return target / name


def _save_companions(lowered: Lowered, file: Path) -> None:
    """What loaders of folders expect beside `file`."""
    if isinstance(lowered._run, OnnxDecoder):
        assert lowered._module is not None
        write_decoder_companions(lowered._module.model, lowered._run.layers, file)
    elif lowered._before.user_model is not None:
        write_companions(lowered._before.user_model, file.parent)


def _destination(target: Target, path: Path) -> tuple[Path, str]:
    """Folder and name of the file that `path` means."""
    suffix = _SUFFIXES.get(target, ".pt2")
    if path.suffix and path.suffix != suffix:
        raise ExportError(
            f"cannot write target {target} to a {path.suffix} file: {path}\n"
            f"  Name a {suffix} file or a folder."
        )
    if path.suffix == suffix:
        return path.parent, path.name
    return path, f"model{suffix}"
