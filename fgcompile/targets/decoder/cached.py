"""A language model as a function of tensors: the cache is arguments and results."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.capture.state import tracing_state
from fgcompile.errors import ExportError
from fgcompile.targets.extras import require

Cache = Sequence[tuple[Tensor, Tensor]]

CACHE_NAMES = ("past_key_values", "cache")
"""What the cache is called, as argument and as output; transformers 5.24 renamed it."""


@dataclass(frozen=True)
class CacheLayer:
    """What one attention layer remembers of each token.

    Attributes:
        index: The layer's number in the model's cache.
        heads: Key-value heads [count].
        key_size: Entries of a key in one head.
        value_size: Entries of a value in one head.
    """

    index: int
    heads: int
    key_size: int
    value_size: int

    def empty(self, batch: int, length: int = 0) -> tuple[Tensor, Tensor]:
        """Zero keys and values of `length` tokens."""
        return (
            torch.zeros(batch, self.heads, length, self.key_size),
            torch.zeros(batch, self.heads, length, self.value_size),
        )


class CachedModel(nn.Module):
    """`model` with its cache laid open."""

    def __init__(self, model: nn.Module, layers: Sequence[CacheLayer]) -> None:
        """Shares the parameters of `model`."""
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.cache_name = _cache_name(model)

    def forward(
        self, tokens: dict[str, Tensor], past: Cache
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits `[b s v]`, and the cache with the new tokens added.

        Args:
            tokens: What `token_names` lists: `[b s]`, the mask `[b p+s]`.
            past: Keys and values of each layer, `[b h p d]`.
        """
        cache = _as_cache(self.layers, past)
        given = {**tokens, self.cache_name: cache, "use_cache": True}
        outputs = self.model(**given)
        present = getattr(outputs, self.cache_name).layers
        return outputs.logits, [
            (present[layer.index].keys, present[layer.index].values)
            for layer in self.layers
        ]


def token_names(model: nn.Module) -> list[str]:
    """What is given of every token; not all models take positions."""
    names = ["input_ids", "attention_mask", "position_ids"]
    taken = inspect.signature(model.forward).parameters
    return [name for name in names if name in taken]


def cache_layers(model: nn.Module) -> list[CacheLayer]:
    """What every layer of `model` caches, found by running it on two tokens.

    Raises:
        ExportError: If `model` is no decoder with a cache of keys and values.
    """
    require("hf", "transformers")
    name = _cache_name(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise _refusal(model, "its decoder reads an encoder as well")
    tokens = torch.ones(1, 2, dtype=torch.long)
    with tracing_state(model):
        outputs = model(input_ids=tokens, use_cache=True)
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.shape[:2] != tokens.shape:
        raise _refusal(model, "it returns no logits of every token")
    cached = getattr(getattr(outputs, name, None), "layers", None)
    found = [_layer(model, number, layer) for number, layer in enumerate(cached or ())]
    layers = [layer for layer in found if layer is not None]
    if not layers:
        raise _refusal(model, "it returns no keys and values")
    return layers


def _cache_name(model: nn.Module) -> str:
    """What `model` calls its cache.

    Raises:
        ExportError: If it takes none.
    """
    parameters = inspect.signature(model.forward).parameters
    names = [name for name in CACHE_NAMES if name in parameters]
    if not names or not {"input_ids", "use_cache"} <= parameters.keys():
        raise _refusal(model, f"its forward takes no {CACHE_NAMES[0]}")
    return names[0]


def _layer(model: nn.Module, index: int, layer: Any) -> CacheLayer | None:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None and not getattr(layer, "is_initialized", False):
        return None  # nothing attends in this layer
    if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 2:
        raise _refusal(model, f"layer {index} caches no keys and values per token")
    return CacheLayer(index, keys.shape[1], keys.shape[3], values.shape[3])


def _as_cache(layers: Sequence[CacheLayer], past: Cache) -> Any:
    """A transformers cache that holds `past`."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (keys, values) in zip(layers, past, strict=True):
        cache.update(keys, values, layer.index)
    return cache


def _refusal(model: nn.Module, reason: str) -> ExportError:
    return ExportError(
        f"cannot export {type(model).__name__} with a cache: {reason}\n"
        "  cache=True is for decoders that generate text token by token.\n"
        "  Lower without cache."
    )
