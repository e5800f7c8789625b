"""Corrects the attributes that a module's code reads, until it runs as it should.

Which number means which size follows from `roles`, mostly; where it does not, the
candidates are tried, the likely ones first, and running the model decides.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator

from torch import nn

from fgcompile.targets.module.roles import Choice
from fgcompile.targets.module.slots import Slot

logger = logging.getLogger(__name__)

Attributes = dict[str, dict[str, int]]
"""Numbers by module path and slot, as `str(slot)`."""

_TRIALS = 400


def correct_attributes(
    model: nn.Module, choices: list[Choice], works: Callable[[], str | None]
) -> tuple[Attributes, str | None]:
    """Sets the slots of `choices` in `model` to the first numbers that work.

    Args:
        model: Its parameters have their new shapes already.
        choices: From `choices` of the roles.
        works: What is wrong with `model` as it is, None if nothing.

    Returns:
        What differs from before, and what is wrong with the most likely numbers if
        none works; the model has those then.
    """
    original = _numbers(model, choices)
    failure: str | None = None
    for trial in itertools.islice(_assignments(choices), _TRIALS):
        _apply(model, choices, trial)
        problem = works()
        if problem is None:
            return _changed(model, choices, original), None
        failure = failure or problem
        logger.info("attributes %s: %s", trial, problem)
    _apply(model, choices, next(_assignments(choices)))
    return _changed(model, choices, original), failure


def apply_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Sets every slot in `attributes`.

    Raises:
        AttributeError: If a module or slot does not exist.
    """
    for path, numbers in attributes.items():
        module = model.get_submodule(path)
        for text, number in numbers.items():
            Slot.parse(text).write(module, number)


def _assignments(choices: list[Choice]) -> Iterator[tuple[int, ...]]:
    """Which option of each choice: all first ones, then what departs from them."""
    first = (0,) * len(choices)
    yield first
    departures = [
        (k, option)
        for k, choice in enumerate(choices)
        for option in range(1, len(choice.options))
    ]
    for count in (1, 2, 3):
        for several in itertools.combinations(departures, count):
            if len({k for k, _ in several}) == count:
                trial = list(first)
                for k, option in several:
                    trial[k] = option
                yield tuple(trial)


def _apply(model: nn.Module, choices: list[Choice], trial: tuple[int, ...]) -> None:
    for choice, option in zip(choices, trial, strict=True):
        for path, number in zip(choice.modules, choice.options[option], strict=True):
            choice.slot.write(model.get_submodule(path), number)


def _numbers(model: nn.Module, choices: list[Choice]) -> dict[tuple[str, Slot], int]:
    return {
        (path, choice.slot): choice.slot.read(model.get_submodule(path))
        for choice in choices
        for path in choice.modules
    }


def _changed(
    model: nn.Module, choices: list[Choice], original: dict[tuple[str, Slot], int]
) -> Attributes:
    changed: Attributes = {}
    for (path, slot), number in original.items():
        now = slot.read(model.get_submodule(path))
        if now != number:
            changed.setdefault(path, {})[str(slot)] = now
    return changed
