"""From a checkpoint on disk and gates to a smaller checkpoint on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fgcompile.capture import default_inputs
from fgcompile.capture.state import silence
from fgcompile.checkpoint.load import shrink
from fgcompile.checkpoint.manifest import MANIFEST
from fgcompile.checkpoint.save import (
    Same,
    manifest_of,
    write_configuration,
    write_manifest,
)
from fgcompile.checkpoint.streaming.layerwise import layerwise_outputs
from fgcompile.checkpoint.streaming.shards import Checkpoint, write_shards
from fgcompile.checkpoint.streaming.standin import (
    factors_of,
    show_zeros,
    skeleton,
)
from fgcompile.errors import ExportError, FormatError, VerifyError
from fgcompile.gates import container_of, remove_gates
from fgcompile.gates.fold import plan_folds
from fgcompile.targets.companions import copy_sentence_modules
from fgcompile.targets.files import staged_folder
from fgcompile.targets.module import LoweredModule, shrink_module
from fgcompile.targets.verify import TOLERANCE, largest_difference

Progress = Callable[[int, int], None]
"""Called with the number of tensors written and their total."""
Gate = Callable[[nn.Module], object]
"""Inserts the gates into a model, with their trained values."""

_VERIFIED_TOKENS = 5


def lower_checkpoint(
    folder: Path,
    cls: Any,
    config: Any,
    gate: Gate | None,
    out: Path,
    *,
    uniform: bool = False,
    progress: Progress = lambda done, total: None,
) -> LoweredModule:
    """Writes the model in `folder`, without its closed units, into `out`.

    The result is what target "module" saves. Of the weights, memory holds one shard
    of the output and two tensors: the analysis needs none, and verification runs both
    models one module at a time.

    Args:
        folder: With safetensors files.
        cls: The transformers class of the model.
        config: Its configuration.
        gate: Puts gates into a model of that class.
        out: Folder to write; it appears whole.
        uniform: Whether all layers keep equally many units.
        progress: Told after every tensor.

    Returns:
        The smaller model, with stand-ins for its parameters.

    Raises:
        FormatError: If the checkpoint is damaged or does not fit the class.
        VerifyError: If the result computes something else. Nothing is written then.
        ExportError: If the class cannot express it, or `out` cannot be written.
    """
    checkpoint = Checkpoint(folder)
    model = skeleton(cls, config, folder)
    names = _stored_names(model, checkpoint, folder)
    factors = _factors(model, gate) if gate is not None else {}
    inputs = default_inputs(model, length=_VERIFIED_TOKENS)
    show_zeros(model, factors)
    shrunk = shrink_module(model, inputs, uniform, values=False)

    def dense(name: str) -> Tensor:
        return _multiplied(checkpoint[names[name]], factors.get(name, {}))

    def small(name: str) -> Tensor:
        return _selected(dense(name), shrunk.program.kept.get(name, {}))

    outputs = _verify(skeleton(cls, config), dense, shrunk, small, inputs)

    def same(other: Any, resized: bool) -> bool:
        model = skeleton(cls, other)
        if resized:
            shrink(model, manifest_of(shrunk))
        try:
            found = layerwise_outputs(model, small, inputs)
        except Exception:  # as its sizes do not fit
            return False
        return all(map(_close, outputs, found))

    with staged_folder(out, ("*.safetensors*", MANIFEST)) as target:
        stored = {names[name]: name for name in reversed(list(names))}
        write_shards(target, _smaller(checkpoint, stored, small, progress))
        _write_rest(folder, target, shrunk, same)
    return shrunk


def _factors(model: nn.Module, gate: Gate) -> dict[str, dict[int, Tensor]]:
    gate(model)
    folds = plan_folds(model, container_of(model))
    remove_gates(model)
    return factors_of(model, folds)


def _stored_names(
    model: nn.Module, checkpoint: Checkpoint, folder: Path
) -> dict[str, str]:
    """Name in the checkpoint of every parameter; tied ones share a tensor."""
    together: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        together.setdefault(id(parameter), []).append(name)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, str] = {}
    for names in together.values():
        options = [o for n in names for o in (n, prefix + n, n.removeprefix(prefix))]
        stored = next((o for o in options if o in checkpoint.files), None)
        shape = tuple(model.get_parameter(names[0]).shape)
        if stored is None or checkpoint.shapes[stored] != shape:
            has = "none" if stored is None else list(checkpoint.shapes[stored])
            raise FormatError(
                f"{folder} does not fit {type(model).__name__}: parameter {names[0]} "
                f"has shape {list(shape)} in the model and {has} in the files\n"
                "  Save the checkpoint again with save_pretrained of this class."
            )
        found |= dict.fromkeys(names, stored)
    return found


def _multiplied(tensor: Tensor, factors: dict[int, Tensor]) -> Tensor:
    for dim, values in factors.items():
        if bool((values != 1).any()):
            shape = [1] * tensor.dim()
            shape[dim] = -1
            tensor = tensor * values.view(shape).to(tensor.dtype)
    return tensor


def _selected(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index)
    return tensor


def _smaller(
    checkpoint: Checkpoint,
    names: dict[str, str],
    small: Callable[[str], Tensor],
    progress: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint; what is no parameter stays as it is."""
    for done, stored in enumerate(checkpoint.files, 1):
        name = names.get(stored)
        yield stored, checkpoint[stored] if name is None else small(name)
        progress(done, len(checkpoint.files))


def _verify(
    original: nn.Module,
    dense: Callable[[str], Tensor],
    shrunk: LoweredModule,
    small: Callable[[str], Tensor],
    inputs: dict[str, Any],
) -> list[Tensor]:
    """Outputs of the smaller model, which are those of the original."""
    want = layerwise_outputs(original, dense, inputs)
    got = layerwise_outputs(shrunk.model, small, inputs)
    name = type(original).__name__
    if not all(bool(w.isfinite().all()) for w in want):
        raise VerifyError(
            f"{name} computes NaN or infinity, or reads weights outside the module "
            "that holds them, so nothing can be compared\n"
            '  Load it and use fgcompile.lower(model, "module"), or repair it.'
        )
    for w, g in zip(want, got, strict=True):
        difference, magnitude = largest_difference(w, g)
        if not _close(w, g):
            raise ExportError(
                f"{name} cannot express the smaller model: its outputs differ by "
                f"{difference:.2g} at magnitude {magnitude:.2g}\n"
                '  Nothing was written. Lower it to "fx" or "onnx" instead.'
            )
    return got


def _close(want: Tensor, got: Tensor) -> bool:
    difference, magnitude = largest_difference(want, got)
    bound = TOLERANCE.get(want.dtype, 0.0) * max(magnitude, 1e-3)
    return want.shape == got.shape and difference <= bound


def _write_rest(folder: Path, target: Path, shrunk: LoweredModule, same: Same) -> None:
    """Configuration, tokenizer, pooling and manifest."""
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".jinja") and not (
            file.name.endswith(".index.json") or file.name in (MANIFEST, "config.json")
        ):
            (target / file.name).write_bytes(file.read_bytes())
    copy_sentence_modules(folder, target)
    with silence():
        write_configuration(target, shrunk, same)
    write_manifest(target, shrunk)
