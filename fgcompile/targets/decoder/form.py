"""A decoder with its cache, as one of the forms that a model is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fgcompile.targets.decoder.cached import CacheLayer
from fgcompile.targets.decoder.run import OnnxDecoder
from fgcompile.targets.decoder.verify import verify_decoder
from fgcompile.targets.decoder.write import write_decoder
from fgcompile.targets.forms import ROUNDING, TOKENS, Run
from fgcompile.targets.onnx import OPSET, read_onnx
from fgcompile.targets.verify import Comparison


@dataclass(frozen=True)
class DecoderForm:
    """Prefill and decode in one ONNX file."""

    model: nn.Module
    layers: Sequence[CacheLayer]
    opset: int = OPSET

    def write(self, file: Path) -> None:
        write_decoder(self.model, self.layers, file, self.opset)

    def read(self, file: Path) -> Any:
        return read_onnx(file)

    def open(self, file: Path, threads: int = 0) -> Run:
        return OnnxDecoder(file, self.layers, threads)

    def compare(self, run: Run, name: str, scale: float = ROUNDING) -> Comparison:
        assert isinstance(run, OnnxDecoder)
        return verify_decoder(self.model, run, name, scale)

    def timed_inputs(self) -> dict[str, Any]:
        return {"input_ids": torch.full((1, TOKENS), 3)}
