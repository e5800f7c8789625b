"""Makes a random program that fails smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fgcompile.capture import capture
from fgcompile.errors import FgcompileError
from fgcompile.printer import show
from fgcompile.zoo.instructions import BATCHES, Instruction, Recipe
from fgcompile.zoo.programs import PropertyError, build, check, make_inputs

_SHRINK_TRIES = 120


def shrink(recipe: Recipe, fails: Callable[[Recipe], bool]) -> Recipe:
    """The smallest recipe found that still fails, after `_SHRINK_TRIES` at most."""
    tries = 0
    modified = True
    while modified:
        modified = False
        for candidate in _smaller(recipe):
            tries += 1
            if tries > _SHRINK_TRIES:
                return recipe
            if fails(candidate):
                recipe, modified = candidate, True
                break
    return recipe


def _smaller(recipe: Recipe) -> Iterator[Recipe]:
    each = recipe.instructions
    for width in (8, 4, 2, 1):
        for k in range(len(each) - width, -1, -1):
            yield replace(recipe, instructions=each[:k] + each[k + width :])
    for k, instruction in enumerate(each):
        choices = instruction.choices
        for position, choice in enumerate(choices):
            if choice:
                fewer = (*choices[:position], 0, *choices[position + 1 :])
                one = Instruction(instruction.op, fewer)
                yield replace(recipe, instructions=(*each[:k], one, *each[k + 1 :]))
    for value in {0, recipe.inputs % 6, recipe.inputs // 2} - {recipe.inputs}:
        if value < recipe.inputs:
            yield replace(recipe, inputs=value)


def failure(recipe: Recipe, closing: str) -> PropertyError | None:
    """Why `recipe` fails, None if it does not."""
    try:
        check(recipe, closing)
    except PropertyError as error:
        return error
    return None


def describe(recipe: Recipe, closing: str, error: PropertyError) -> str:
    """The shrunk program, its graph and its failure, to be pasted into a test."""
    stage = error.stage

    def fails(candidate: Recipe) -> bool:
        found = failure(candidate, closing)
        return found is not None and found.stage == stage

    small = shrink(recipe, fails)
    final = failure(small, closing) or error
    try:
        graph = show(capture(build(small), make_inputs(small, *BATCHES[0])))
    except FgcompileError as reason:
        graph = f"(no graph: {reason})"
    return f"{final}\nclosed by {closing}\n{small!r}\n{graph}"
