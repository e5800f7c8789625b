"""Language models for onnxruntime: prefill and decode in one graph, with a cache.

Names and shapes are those that onnxruntime-genai and optimum expect:

    input_ids [batch_size, sequence_length]
    attention_mask [batch_size, total_sequence_length]
    position_ids [batch_size, sequence_length]
    past_key_values.N.key, .value [batch_size, heads, past_sequence_length, head_size]
    -> logits [batch_size, sequence_length, vocabulary]
    -> present.N.key, .value [batch_size, heads, total_sequence_length, head_size]

Heads and head sizes are numbers, and may differ from layer to layer.
"""

from __future__ import annotations

from fgcompile.targets.decoder.cached import CacheLayer, cache_layers
from fgcompile.targets.decoder.folder import (
    write_decoder_companions,
    write_genai_config,
)
from fgcompile.targets.decoder.form import DecoderForm
from fgcompile.targets.decoder.run import OnnxDecoder
from fgcompile.targets.decoder.verify import verify_decoder
from fgcompile.targets.decoder.write import write_decoder

__all__ = [
    "CacheLayer",
    "DecoderForm",
    "OnnxDecoder",
    "cache_layers",
    "verify_decoder",
    "write_decoder",
    "write_decoder_companions",
    "write_genai_config",
]
