"""Example inputs of transformers models, made from facts and not from model names.

What an argument means is fixed by the library (`input_ids`, `pixel_values`,
`input_features` ...); sizes are in the configuration. Where a size is not, candidates
are tried on fake tensors, which costs no arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fgcompile.capture.state import configurations, tracing_state
from fgcompile.errors import CaptureError

LENGTH = 11  # tokens; a prime, so that no other size is likely to be equal
Shape = tuple[int, ...]


def is_transformers_model(model: nn.Module) -> bool:
    """Whether `model` is one of transformers' pretrained models."""
    return hasattr(model, "main_input_name") and hasattr(model, "config")


def default_inputs(
    model: nn.Module, batch: int = 2, length: int = LENGTH, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs that a transformers model's forward accepts.

    Args:
        model: A transformers model, on any device.
        batch: Size of dim 0 of every input.
        length: Tokens per row, cut to what the position table holds.
        seed: Same seed, same inputs.

    Raises:
        CaptureError: If no candidate fits.
    """
    arguments = inspect.signature(model.forward).parameters
    maker = _Maker(model, batch, length, seed)
    names = _wanted(model, arguments)
    unknown = [name for name in names if name not in maker.shapes]
    if unknown:
        raise _unknown(model, unknown)
    fixed = {name: maker.make(name, next(maker.shapes[name]())) for name in names}
    if all(name in _TOKENS for name in names):
        return fixed
    reason = ""
    for inputs in _combinations(maker, names):
        failure = _failure(model, inputs)
        if failure is None:
            return inputs
        reason = reason or failure
    raise _unknown(model, [name for name in names if name not in _TOKENS], reason)


_FEATURE_SIZES = (
    "num_mel_bins",
    "input_feat_per_channel",
    "feature_size",
    "feature_projection_input_dim",
)
OPTIONAL = ("token_type_ids",)
"""Inputs that are zeros to a model that is not given them."""

_TOKENS = ("input_ids", "attention_mask", *OPTIONAL, "decoder_input_ids")


def _wanted(model: Any, arguments: Mapping[str, inspect.Parameter]) -> list[str]:
    """Inputs of the main modality, of every tower, and of the decoder."""
    towers = {name for name in ("text_config", "vision_config") if _has(model, name)}
    names = [model.main_input_name]
    required = [n for n, p in arguments.items() if _is_required(p)]
    if names[0] not in arguments and required:
        # A tower of a model with several may have kept the name of another's input.
        names = required
    if len(towers) == 2 and {"input_ids", "pixel_values"} <= arguments.keys():
        names = ["input_ids", "pixel_values"]
    if "input_ids" in names and "attention_mask" in arguments:
        names.insert(names.index("input_ids") + 1, "attention_mask")
    segments = getattr(model.config, "type_vocab_size", 0) or 0
    if "input_ids" in names and segments > 1 and "token_type_ids" in arguments:
        names.append("token_type_ids")
    encodes = getattr(model.config, "is_encoder_decoder", False)
    if encodes and "decoder_input_ids" in arguments:
        names.append("decoder_input_ids")
    return names


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def _has(model: Any, name: str) -> bool:
    return getattr(model.config, name, None) is not None


class _Maker:
    """Shapes and values of the inputs that have a name."""

    def __init__(self, model: nn.Module, batch: int, length: int, seed: int) -> None:
        self.configs = _ordered_configurations(model)
        self.generator = torch.Generator().manual_seed(seed)
        sample = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.device = torch.device("cpu") if sample is None else sample.device
        self.dtype = torch.float32 if sample is None else sample.dtype
        self.batch, self.length = batch, self._cut(length)
        self.shapes: dict[str, Callable[[], Iterator[Shape]]] = {
            "input_ids": self._tokens,
            "attention_mask": self._tokens,
            "token_type_ids": self._tokens,
            "decoder_input_ids": self._decoder_tokens,
            "pixel_values": self._images,
            "input_features": self._spectrograms,
            "input_values": self._waveforms,
        }

    def make(self, name: str, shape: Shape) -> Tensor:
        if name == "attention_mask":
            return torch.ones(shape, dtype=torch.long, device=self.device)
        if name in _TOKENS:
            segments = (0, int(self.fact("type_vocab_size") or 2))
            low, high = segments if name in OPTIONAL else self._vocabulary()
            ids = torch.randint(low, high, shape, generator=self.generator)
            return ids.to(self.device)
        values = torch.randn(shape, generator=self.generator)
        return values.to(self.device, self.dtype)

    def fact(self, *names: str) -> Any:
        """First value found in the configurations, the model's own one first."""
        for config in self.configs:
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def _vocabulary(self) -> tuple[int, int]:
        """Range of ordinary tokens: special ones steer some models' outputs."""
        size = int(self.fact("vocab_size") or 2)
        special = [
            value
            for config in self.configs
            for key in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id")
            if isinstance(value := getattr(config, key, None), int)
        ]
        low = max((value + 1 for value in special if value < size // 4), default=0)
        high = min((v for v in special if size // 2 < v < size), default=size)
        return low, high

    def _cut(self, length: int) -> int:
        positions = [
            value
            for config in self.configs
            for key in (
                "max_position_embeddings",
                "n_positions",
                "max_target_positions",
            )
            if isinstance(value := getattr(config, key, None), int) and value > 4
        ]
        return min([length, *(value - 2 for value in positions)])

    def _tokens(self) -> Iterator[Shape]:
        yield self.batch, self.length

    def _decoder_tokens(self) -> Iterator[Shape]:
        yield self.batch, max(2, self.length - 2)

    def _images(self) -> Iterator[Shape]:
        channels = self.fact("num_channels", "in_channels", "in_chans") or 3
        size = self.fact("image_size", "img_size", "input_size")
        pairs = [tuple(size)[-2:]] if isinstance(size, (list, tuple)) else []
        pairs += [(n, n) for n in ([size] if isinstance(size, int) else [])]
        pairs += [(n, n) for n in (64, 224)]
        frames = self.fact("num_frames")
        for height, width in pairs:
            yield self.batch, channels, height, width
            if frames:
                yield self.batch, frames, channels, height, width

    def _spectrograms(self) -> Iterator[Shape]:
        bins = self.fact(*_FEATURE_SIZES) or 80
        frames = self.fact("max_source_positions", "max_length") or 64
        for count in (2 * frames, frames, 4 * frames):
            yield self.batch, bins, count
        for count in (frames, 64, 256):
            yield self.batch, count, bins

    def _waveforms(self) -> Iterator[Shape]:
        bins, frames = self.fact("num_mel_bins"), self.fact("max_length")
        if bins and frames:
            yield self.batch, frames, bins
        for samples in (401, 1601, 6401, 16001):
            yield self.batch, samples


def _ordered_configurations(model: Any) -> list[Any]:
    rest = [c for c in configurations(model) if c is not model.config]
    return [model.config, *rest]


def _combinations(maker: _Maker, names: list[str]) -> Iterator[dict[str, Tensor]]:
    free = [name for name in names if name not in _TOKENS]
    for name in free:
        for shape in maker.shapes[name]():
            shapes = {other: next(maker.shapes[other]()) for other in names}
            shapes[name] = shape
            yield {other: maker.make(other, shapes[other]) for other in names}


def _failure(model: nn.Module, inputs: dict[str, Tensor]) -> str | None:
    """Why the model cannot run on the inputs, or None if it can."""
    with tracing_state(model), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(value) for name, value in inputs.items()}
        try:
            model(**fake)
        except Exception as error:
            shapes = [f"{name}{list(value.shape)}" for name, value in inputs.items()]
            reason = str(error).strip().partition("\n")[0]
            return f"  {type(error).__name__}: {reason}\n  with {', '.join(shapes)}\n"
    return None


def _unknown(model: nn.Module, names: list[str], reason: str = "") -> CaptureError:
    return CaptureError(
        f"cannot make up inputs {names} for {type(model).__name__}\n{reason}"
        "  Pass example_inputs, as a dict of what its forward takes."
    )
