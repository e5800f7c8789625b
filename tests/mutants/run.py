"""Lowering with a broken compiler: is it noticed before anything is written?"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile import lower
from fgcompile.capture.state import tracing_state
from fgcompile.errors import FgcompileError
from fgcompile.lowering import Lowered
from fgcompile.targets.decoder import OnnxDecoder
from tests.mutants.mutant import Mutant
from tests.mutants.patching import broken

WRONG = 1e-6
"""Relative difference from which an output is wrong: rounding is below."""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        damage: What it does where nothing is verified: a relative difference of the
            outputs, or the error that its own code runs into. "" if nothing changes.
        error: What `lower` raised, None if it did not.
        written: Files that were left where the model should be written.
    """

    damage: str
    error: FgcompileError | None
    written: tuple[str, ...]

    @property
    def killed(self) -> bool:
        """Whether it does harm, and was stopped before it did."""
        return bool(self.damage) and self.error is not None and not self.written

    @property
    def first_line(self) -> str:
        """Of the error."""
        return str(self.error).partition("\n")[0] if self.error is not None else ""


def run(mutant: Mutant) -> Outcome:
    """Lowers the mutant's model, once unverified and once as users do."""
    model, inputs = mutant.case()
    with _mutated(mutant):
        damage = _damage(mutant, model, inputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "out"
            error = None
            try:
                _lower(mutant, model, inputs, path=path)
            except FgcompileError as found:
                error = found
            written = tuple(sorted(p.name for p in Path(folder).rglob("*")))
    return Outcome(damage, error, written)


@contextlib.contextmanager
def _mutated(mutant: Mutant) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(broken(mutant.place, mutant.make))
        if not mutant.proof:
            always = "fgcompile.passes.origins:first_difference"
            stack.enter_context(broken(always, lambda right: lambda shrinkage: None))
        yield


def _lower(
    mutant: Mutant, model: nn.Module, inputs: dict[str, Tensor], **options: Any
) -> Lowered:
    if mutant.cache:
        options["cache"] = True
    return lower(model, mutant.target, example_inputs=inputs, **options)  # type: ignore[arg-type]


def _damage(mutant: Mutant, model: nn.Module, inputs: dict[str, Tensor]) -> str:
    """What happens without verification, at the example inputs and larger ones."""
    try:
        lowered = _lower(mutant, model, inputs, verify=False)
        largest = 0.0
        for each in (inputs, {name: _larger(value) for name, value in inputs.items()}):
            with tracing_state(model):
                want = pytree.tree_leaves(model(**each))
            got = _in_two_steps(lowered, **each) if mutant.cache else lowered(**each)
            for one, other in zip(want, pytree.tree_leaves(got), strict=False):
                largest = max(largest, _difference(one, other), key=_badness)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"{largest:.1g}" if _badness(largest) > WRONG else ""


def _larger(value: Tensor) -> Tensor:
    """One row more, and where there is a sequence, one position more."""
    value = torch.cat([value, value[:1].flip(-1)])
    return torch.cat([value, value[:, :1]], 1) if value.dim() in (2, 3) else value


def _in_two_steps(lowered: Lowered, input_ids: Tensor) -> Tensor:
    """Logits of a decoder that is given its last tokens with a cache."""
    run, half = lowered._run, input_ids.shape[1] // 2
    assert isinstance(run, OnnxDecoder)
    first = run(input_ids[:, :half])
    second = run(input_ids[:, half:], past=run.present(first))
    return torch.cat([first["logits"], second["logits"]], 1)


def _difference(want: Tensor, got: Tensor) -> float:
    want, got = want.detach().double(), got.detach().double()
    return float((want - got).abs().max() / want.abs().max())


def _badness(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference
