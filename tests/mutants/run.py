"""Lowering with a broken compiler: is it noticed before anything is written?"""

from __future__ import annotations

import contextlib
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
from tests.mutants.mutant import Mutant
from tests.mutants.patching import broken

WRONG = 1e-12
"""Relative difference in float64 from which an output is wrong."""


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
    try:
        lowered = _lower(mutant, model, inputs, verify=False)
        with torch.no_grad():
            with tracing_state(model):
                want = pytree.tree_leaves(model(**inputs))
            got = pytree.tree_leaves(lowered(**inputs))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return _difference(want, got)


def _difference(want: list[Any], got: list[Any]) -> str:
    for one, other in zip(want, got, strict=False):
        if not isinstance(one, Tensor) or one.shape != other.shape:
            return "another shape"
        one, other = one.detach().double(), other.detach().double()
        difference = float((one - other).abs().max() / one.abs().max())
        if not difference <= WRONG:
            return f"{difference:.1g}"
    return ""
