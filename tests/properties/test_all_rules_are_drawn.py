"""Random programs can draw every operator that has a rule of its own."""

from __future__ import annotations

import pytest
import torch

from fgcompile.capture import capture
from fgcompile.rules.movement import movement_names
from fgcompile.rules.registry import registered_rules
from fgcompile.zoo.instructions import LARGEST, OPS, Instruction, Recipe
from fgcompile.zoo.programs import build, make_inputs, rules_in

NOT_CAPTURED = {
    "it does nothing in eval mode, and capture leaves it out": (
        *("aten::dropout", "aten::alpha_dropout", "aten::feature_dropout"),
        *("aten::detach", "aten::detach_", "aten::alias", "aten::type_as"),
        *("aten::lift_fresh", "aten::lift_fresh_copy"),
    ),
    "capture writes it in another way": (
        *("aten::relu_", "aten::silu_", "aten::constant_pad_nd"),
        *("aten::view_as", "aten::reshape_as"),
    ),
    "only graphs that others made have it": (
        *("aten::_softmax", "aten::_to_copy", "aten::_unsafe_view"),
    ),
    "experts of transformers call it, which the zoo has": (
        *("aten::_grouped_mm", "transformers::grouped_mm_fallback"),
    ),
    "it is what gates are": ("fgcompile::gate",),
}
"""Operators that no captured random program holds, by the reason."""

STARTS = {
    "rows": (0, ()),
    "channels": (0, ("permute",)),
    "pictures": (2, ()),
    "volumes": (2, ("unflatten",)),
    "matrices": (3, ()),
    "tokens": (1, ()),
}
"""Kinds of inputs, and what makes the values of which everything else is made."""

VARIANTS = 14


def names_in(inputs: int, first: tuple[str, ...]) -> frozenset[str]:
    """Rules met by a program of every operator in many variants, all of it returned."""
    instructions = [Instruction(op, (0,) * 10) for op in first]
    for op in OPS:
        for variant in range(VARIANTS):
            old_values = LARGEST - 1
            choices = (old_values, *[variant] * 9)
            instructions.append(Instruction(op, choices))
            instructions.append(Instruction(op, (old_values, 0, *[variant] * 8)))
    recipe = Recipe(inputs, tuple(instructions), 1)
    model, example = build(recipe), make_inputs(recipe, 3, 11)
    values = [*example.values()]
    with torch.no_grad():
        for step in model.steps:
            values.extend(model.call(step, values))
    model.outputs = list(range(len(values)))
    return rules_in(capture(model, example))


@pytest.mark.slow
def test_every_rule_is_in_some_random_program() -> None:
    found = set().union(*(names_in(*start) for start in STARTS.values()))
    excused = {name for names in NOT_CAPTURED.values() for name in names}
    assert not found & excused, "these are captured after all"
    missing = {*registered_rules(), *movement_names()} - found - excused
    assert not missing
