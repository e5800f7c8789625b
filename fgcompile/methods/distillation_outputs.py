"""What of a model's output is compared: logits, hidden states, tokens that count."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.hooks import IGNORED

DECODER, ENCODER, OTHER = (
    "decoder_hidden_states",
    "encoder_hidden_states",
    "hidden_states",
)
"""Names that transformers gives to hidden states."""


@dataclass(frozen=True)
class Masks:
    """Tokens that count, of what a model reads and of what it writes, if known.

    They are the same except in an encoder-decoder. There a label that losses skip
    does not count either, as the decoder's inputs are made of labels.
    """

    encoder: Tensor | None
    decoder: Tensor | None

    @classmethod
    def of(cls, model: nn.Module, given: Mapping[str, Any]) -> Masks:
        """The masks of a call of `model` with the arguments `given`."""
        mask = given.get("attention_mask")
        if not is_encoder_decoder(model):
            return cls(mask, mask)
        decoder, labels = given.get("decoder_attention_mask"), given.get("labels")
        if decoder is None and isinstance(labels, Tensor):
            decoder = labels != IGNORED
        return cls(mask, decoder)

    def at(self, model: nn.Module, path: str) -> Tensor | None:
        """The mask of what the module `path` of `model` returns."""
        find = getattr(model, "get_encoder", None)
        encoder = find() if find is not None and is_encoder_decoder(model) else None
        module = model.get_submodule(path)
        inside = encoder is not None and any(m is module for m in encoder.modules())
        return self.encoder if inside else self.decoder


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a decoder has inputs of its own, which may be made of labels."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return True
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns.

    Raises:
        GateError: If it returns none that could be told.
    """
    found = output if isinstance(output, Tensor) else _entry(output, "logits")
    if not isinstance(found, Tensor):
        raise GateError(
            f"no logits in an output of type {type(output).__name__}\n"
            "  Return a tensor or a mapping with 'logits', or set logits=0."
        )
    return found


def state_pairs(
    student: Any, teacher: Any, masks: Masks
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Hidden states in two outputs, with the tokens that count.

    Raises:
        GateError: If one has none, or as many as the other has not.
    """
    own, other = _states(student), _states(teacher)
    counts = [{name: len(found[name]) for name in found} for found in (own, other)]
    if counts[0] != counts[1]:
        first, second = (
            ", ".join(f"{n} {name}" for name, n in each.items()) for each in counts
        )
        raise GateError(
            f"numbers of hidden states differ: {first} of the student, {second} of "
            "the teacher\n"
            "  Pair modules of both with DistillationConfig(layers={student's: "
            "teacher's, ...}), or set hidden=0."
        )
    return [
        (mine, its, masks.encoder if name == ENCODER else masks.decoder)
        for name in own
        for mine, its in zip(own[name], other[name], strict=True)
    ]


def _states(output: Any) -> dict[str, Sequence[Tensor]]:
    named = ((name, _entry(output, name)) for name in (DECODER, ENCODER, OTHER))
    found = {name: states for name, states in named if states is not None}
    if not found:
        raise GateError(
            f"no hidden states in an output of type {type(output).__name__}\n"
            "  Return a mapping (return_dict=True), name modules to compare with "
            "DistillationConfig(layers=[...]), or set hidden=0."
        )
    return found


def _entry(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)
