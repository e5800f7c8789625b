"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.mutants.models import Case
from tests.mutants.patching import Make


@dataclass(frozen=True)
class Mutant:
    """One function of fgcompile, broken in a way in which code is really wrong.

    Attributes:
        name: What is wrong, in a few words.
        place: The function, "module:name".
        make: Makes the broken function from the right one.
        case: A model that exercises it, and its inputs.
        target: What the model is lowered to.
        cache: Whether with a key-value cache.
        proof: Whether the proof of `passes/origins.py` is on. Off for mistakes that it
            undoes by keeping the units: without it, running the model must find them.
        captured: Whether the mistake is in the capture.
    """

    name: str
    place: str
    make: Make
    case: Callable[[], Case]
    target: str = "fx"
    cache: bool = False
    proof: bool = True
    captured: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "-")
