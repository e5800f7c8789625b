"""What must hold for every program, on programs that nobody wrote."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from fgcompile.zoo.instructions import LARGEST, OPS, WEIGHTS, Instruction, Recipe
from fgcompile.zoo.programs import CLOSINGS, check

_NAMES = [name for name in OPS for _ in range(WEIGHTS[name])]

instructions = st.builds(
    Instruction,
    st.sampled_from(_NAMES),
    st.tuples(*[st.integers(0, LARGEST - 1)] * 10),
)
recipes = st.builds(
    Recipe,
    st.integers(0, LARGEST - 1),
    st.lists(instructions, min_size=1, max_size=12).map(tuple),
    st.integers(0, 1000),
)


def programs(count: int) -> settings:
    """Settings of a run over `count` programs, the same ones every time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """A random program may do what PyTorch warns about; that is not the property."""
    logging.disable(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@programs(60)
@given(recipes, st.sampled_from(CLOSINGS))
def test_a_lowered_random_program_is_equal(recipe: Recipe, closing: str) -> None:
    note(f"{recipe!r} closed by {closing}")
    check(recipe, closing)


@pytest.mark.slow
@programs(500)
@given(recipes, st.sampled_from(CLOSINGS))
def test_many_lowered_random_programs_are_equal(recipe: Recipe, closing: str) -> None:
    note(f"{recipe!r} closed by {closing}")
    check(recipe, closing)
