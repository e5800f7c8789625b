"""A decoder's file against the model: prefill, steps, and several tokens at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.capture.state import tracing_state
from fgcompile.errors import VerifyError
from fgcompile.targets.decoder.cached import token_names
from fgcompile.targets.decoder.run import OnnxDecoder, positions_of
from fgcompile.targets.forms import ROUNDING
from fgcompile.targets.verify import TOLERANCE, Comparison, largest_difference

# Batch size, number of hidden tokens at the left of the second row, and how many
# tokens each call takes: first the prompt, then single tokens and bunches.
_CASES = (
    (1, 0, (9, 1, 1, 1, 4)),
    (3, 5, (12, 1, 1, 3, 1)),
    (2, 1, (2, 1, 1)),
    (1, 0, (1, 1, 33)),
)


def verify_decoder(
    model: nn.Module,
    run: OnnxDecoder,
    name: str = "the ONNX decoder",
    scale: float = ROUNDING,
) -> Comparison:
    """Compares the logits of `run`, fed piece by piece, with those of `model`.

    Args:
        model: What the file should equal, gated or not; it reads all tokens at once,
            without a cache.
        run: The file.
        name: What the file is called in errors.
        scale: Factor on the tolerance.

    Raises:
        VerifyError: If a shape differs, a logit is not finite, or the difference is
            above the tolerance.
    """
    largest = Comparison(0.0, 0.0, 0)
    for seed, (batch, hidden, lengths) in enumerate(_CASES):
        ids, mask = _tokens(model, batch, hidden, sum(lengths), seed)
        want = _all_at_once(model, ids, mask)
        if want is None:
            continue
        got = _piece_by_piece(run, ids, mask, lengths)
        where = f"{name}, {batch} x {lengths} tokens"
        found = _compare(want, got, mask.bool(), where, scale)
        largest = Comparison(
            max(largest.absolute, found.absolute),
            max(largest.relative, found.relative),
            largest.cases + 1,
        )
    if not largest.cases:
        raise VerifyError(
            f"{type(model).__name__} fails on random tokens, so nothing was verified\n"
            "  Check that it runs on its tokens 3, 4, ... without a cache."
        )
    return largest


def _tokens(
    model: Any, batch: int, hidden: int, length: int, seed: int
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(min(3, size - 1), size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, :hidden] = 0
    return ids, mask


def _all_at_once(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor | None:
    """Logits `[b s v]`; None where the model takes no such length."""
    given = {"input_ids": ids, "attention_mask": mask}
    if not bool(mask.all()):
        # Where nothing is hidden, the model's own count is what the file must match.
        given["position_ids"] = positions_of(mask)
    call: Callable[..., Any] = functools.partial(model, use_cache=False)
    try:
        with tracing_state(model):
            taken = given.keys() & set(token_names(model))
            outputs = call(**{name: given[name] for name in taken})
    except (IndexError, RuntimeError):
        return None
    logits = outputs.logits
    assert isinstance(logits, Tensor)
    return logits.detach()


def _piece_by_piece(
    run: OnnxDecoder, ids: Tensor, mask: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    past, seen, logits = None, 0, []
    for length in lengths:
        end = seen + length
        outputs = run(ids[:, seen:end], mask[:, :end], past=past)
        past, seen = run.present(outputs), end
        logits.append(outputs["logits"])
    return torch.cat(logits, dim=1)


def _compare(
    want: Tensor, got: Tensor, shown: Tensor, where: str, scale: float
) -> Comparison:
    if want.shape != got.shape:
        raise VerifyError(
            f"the decoder's logits have shape {list(got.shape)}, the model's "
            f"{list(want.shape)}\n  at {where}"
        )
    difference, magnitude = largest_difference(want[shown], got[shown])
    relative = difference / max(magnitude, 1e-3)
    if not relative <= TOLERANCE[want.dtype] * scale:
        raise VerifyError(
            f"the decoder's logits differ by {difference:.3g}, {relative:.3g} of "
            f"their magnitude {magnitude:.3g}\n  at {where}\n"
            "  Nothing was written. This is a bug in fgcompile: please report it."
        )
    return Comparison(difference, relative, 1)
