"""An ONNX decoder in onnxruntime: one call, or greedy text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgcompile.targets.decoder.cached import Cache, CacheLayer
from fgcompile.targets.decoder.write import cache_names
from fgcompile.targets.onnx import onnx_session


class OnnxDecoder:
    """A file that `write_decoder` wrote, callable like the model it came from."""

    def __init__(
        self, path: str | Path, layers: Sequence[CacheLayer], threads: int = 0
    ) -> None:
        """Opens `path`; `threads=0` lets onnxruntime choose."""
        self.session = onnx_session(path, threads)
        self.layers = tuple(layers)
        self._inputs = {value.name for value in self.session.get_inputs()}
        self._past = cache_names(layers, "past")

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past: Cache | None = None,
    ) -> dict[str, Tensor]:
        """Logits and the new cache, by output name.

        Args:
            input_ids: New tokens, `[b s]`.
            attention_mask: Of old and new tokens, `[b p+s]`; all ones by default.
            position_ids: `[b s]`; by default those that the mask shows are counted.
            past: Keys and values of each layer; none by default.
        """
        batch, length = input_ids.shape
        past = past or [layer.empty(batch) for layer in self.layers]
        total = past[0][0].shape[2] + length
        if attention_mask is None:
            attention_mask = torch.ones(batch, total, dtype=torch.long)
        if position_ids is None:
            position_ids = positions_of(attention_mask)[:, -length:]
        feed = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            **dict(zip(self._past, (t for pair in past for t in pair), strict=True)),
        }
        return self._run(feed)

    def greedy(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """`input_ids` [b s] and the likeliest tokens after them, `[b s+new_tokens]`."""
        outputs = self(input_ids)
        for step in range(new_tokens):
            latest = outputs["logits"][:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, latest], dim=1)
            if step < new_tokens - 1:
                past = self.present(outputs)
                mask = torch.ones_like(input_ids)
                outputs = self(latest, mask, past=past)
        return input_ids

    def present(self, outputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The cache among the outputs of a call, as the next call takes it."""
        names = cache_names(self.layers, "present")
        return [
            (outputs[key], outputs[value])
            for key, value in zip(names[::2], names[1::2], strict=True)
        ]

    def _run(self, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays = {
            name: np.ascontiguousarray(tensor.detach().cpu().numpy())
            for name, tensor in feed.items()
            if name in self._inputs
        }
        names = [value.name for value in self.session.get_outputs()]
        results = self.session.run(names, arrays)
        return {
            name: torch.from_numpy(result)
            for name, result in zip(names, results, strict=True)
        }


def positions_of(mask: Tensor) -> Tensor:
    """Position of every token `[b s]`; hidden ones count for nothing."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
