"""Mutants of the analyses and of the rules: wrong facts about the model.

The proof of a rewrite runs the same analyses, so that most of these look right to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fgcompile.rules.registry import DimRule
from tests.mutants import models
from tests.mutants.mutant import Mutant

EXECUTION = "fgcompile.analysis.execution"
FACTS = "fgcompile.analysis.facts"
NEEDS = "fgcompile.analysis.needs"
SURVIVORS = "fgcompile.analysis.survivors"
RULES = "fgcompile.rules"


def returning(value: Any) -> Any:
    """Makes a function that does nothing but return `value`."""
    return lambda right: lambda *args, **kwargs: value


def _changed_rule(**changes: Any) -> Any:
    """Makes a rule whose answer has other fields."""

    def make(right: Any) -> Any:
        return lambda node: replace(right(node), **changes)

    return make


def _rule_with_pattern(old: str, new: str) -> Any:
    def make(right: Any) -> Any:
        def rule(node: Any) -> DimRule:
            found = right(node)
            return replace(found, pattern=found.pattern.replace(old, new))

        return rule

    return make


def _any_zero_makes_a_slice_zero(right: Any) -> Any:
    def parameter(
        program: Any, flow: Any, constants: Any, name: str, index: int
    ) -> None:
        right(program, flow, constants, name, index)
        tensor = program.parameter(flow.values[index].node)
        if tensor.dim() == 2:
            for dim, plane in enumerate(constants.planes[index]):
                dead = (tensor == 0).any(dim=1 - dim).numpy()
                plane.reshape(-1)[dead] = 0.0

    return parameter


def _one_zero_factor_is_enough(right: Any) -> Any:
    """A sum is taken for zero where one term of it is."""

    def zero(step: Any, constants: Any) -> bool:
        parts = [
            constants.is_zero(slot)
            for slot in step.slots
            if slot.operand != 2 and set(slot.axes) & set(step.contracted)
        ]
        return right(step, constants) or any(part.any() for part in parts)

    return zero


def _constants_pass_unchanged(right: Any) -> Any:
    """Zero stays zero under any function: true of gelu, wrong of sigmoid."""

    def run(node: Any, replaced: Any) -> Any:
        found = right(node, replaced)
        return None if found is None else np.where(np.isnan(found), np.nan, 0.0)

    return run


def _masks_are_set(right: Any) -> Any:
    """What the mask chooses where it is set is known, though it varies."""

    def run(node: Any, replaced: Any, choices: Any) -> Any:
        return right(
            node, {**replaced, **{m: v.bool() for m, v in choices.items()}}, {}
        )

    return run


def _one_user_is_ignored(right: Any) -> Any:
    """Of a value with several readers, the last one sees nothing."""

    def needs(flow: Any, constants: Any) -> Any:
        steps = list(flow.steps)
        seen: Counter[int] = Counter()
        for step in steps:
            seen.update({v for v in step.operands if v is not None})
        value = next(v for v, count in seen.items() if count > 1)
        ignored = [step for step in steps if value in step.operands][-1]
        flow.steps = [step for step in steps if step is not ignored]
        try:
            return right(flow, constants)
        finally:
            flow.steps = steps

    return needs


def _statistics_read_what_is_seen(right: Any) -> Any:
    return lambda step, wanted, position: wanted


def _shifted_by_one(right: Any) -> Any:
    """Every set of survivors is shifted: a dead unit stays, a live one goes."""

    def close(flow: Any, needs: Any, revived: Any = None) -> Any:
        survivors = right(flow, needs, revived)
        for masks in survivors.planes:
            for mask in masks:
                if mask.any() and not mask.all():
                    mask[...] = np.roll(mask.reshape(-1), 1).reshape(mask.shape)
        return survivors

    return close


def _fewest_units(right: Any) -> Any:
    """One unit less than needed survives."""

    def close(flow: Any, needs: Any, revived: Any = None) -> Any:
        for planes in needs.planes:
            for plane in planes:
                flat = plane.reshape(-1)
                if flat.any() and not flat.all():
                    flat[np.flatnonzero(flat)[-1]] = False
        return right(flow, needs, revived)

    return close


def _heads_lie_side_by_side(right: Any) -> Any:
    """Units of heads are numbered `d h` instead of `h d`."""

    def reshape(plane: Any, before: Any, after: Any) -> Any:
        moved = right(plane, before, after)
        varying = [k for k, n in enumerate(moved.shape) if n > 1]
        if len(varying) != 2 or moved.dim() == plane.dim():
            return moved
        h, d = (moved.shape[k] for k in varying)
        flat = moved.reshape(h, d)
        return flat.reshape(-1).reshape(d, h).T.reshape(moved.shape)

    return reshape


def _mover(names: str, wrong: Any) -> Any:
    """Makes a mover that is wrong for some operators."""

    def make(right: Any) -> Any:
        def mover(node: Any, a: Any, plane: Any) -> Any:
            if node.target._schema.name.split("::")[1] not in names.split():
                return right(node, a, plane)
            return wrong(right(node, a, plane), plane)

        return mover

    return make


def _wrong_constant(right: Any) -> Any:
    """A constant of an addend is forgotten."""
    return lambda constants, slots, result, shape: np.zeros(shape)


def _couplings_skipped(right: Any) -> Any:
    """One matrix loses other units than those it is coupled with."""

    def close(flow: Any, needs: Any, revived: Any = None) -> Any:
        survivors = right(flow, needs, revived)
        mask = survivors.planes[flow.parameters["down.weight"]][1].reshape(-1)
        mask[...] = np.roll(mask, 1)
        return survivors

    return close


MUTANTS = (
    Mutant(
        "a slice with one zero is taken for zero",
        f"{FACTS}:_parameter",
        _any_zero_makes_a_slice_zero,
        models.masked,
    ),
    Mutant(
        "a sum with one zero term is taken for zero",
        f"{FACTS}:product_is_zero",
        _one_zero_factor_is_enough,
        models.mlp,
    ),
    Mutant(
        "sigmoid(0) is taken for 0",
        f"{EXECUTION}:_run",
        _constants_pass_unchanged,
        models.constants,
    ),
    Mutant(
        "a mask that varies is taken to be set",
        f"{EXECUTION}:run_either_way",
        _masks_are_set,
        models.choices,
    ),
    Mutant(
        "a bias is forgotten in a constant",
        f"{FACTS}:_addend",
        _wrong_constant,
        models.constants,
    ),
    Mutant(
        "an addend is forgotten where products are zero",
        f"{FACTS}:_add_addends",
        returning(None),
        models.constants,
    ),
    Mutant(
        "the shift of a norm is forgotten",
        f"{FACTS}:_normalization",
        lambda right: (
            lambda flow, step, constants: right(
                flow, replace(step, operands=step.operands[:2]), constants
            )
        ),
        models.layer_norm_constants,
    ),
    Mutant(
        "padding with ones is taken for zeros",
        f"{FACTS}:_adds_elements",
        returning(False),
        models.padded,
    ),
    Mutant(
        "rows of zeros are taken for the constant in the rows beside them",
        f"{FACTS}:adds_zeros",
        returning(False),
        models.padded_rows,
    ),
    Mutant(
        "what stands beside zeros is taken for zero",
        f"{FACTS}:_adds_elements",
        returning(False),
        models.joined,
    ),
    Mutant(
        "liveness ignores one user",
        f"{NEEDS}:propagate_needs",
        _one_user_is_ignored,
        models.two_readers,
    ),
    Mutant(
        "statistics read only what is seen later",
        f"{NEEDS}:_read",
        _statistics_read_what_is_seen,
        models.layer_norm_shift,
    ),
    Mutant(
        "outputs need nothing that a zero row leaves out",
        f"{NEEDS}:_pin",
        returning(None),
        models.outputs,
    ),
    Mutant(
        "a live unit goes, a dead one stays",
        f"{SURVIVORS}:close_survivors",
        _shifted_by_one,
        models.mlp,
    ),
    Mutant(
        "one unit too few survives",
        f"{SURVIVORS}:close_survivors",
        _fewest_units,
        models.mlp,
    ),
    Mutant(
        "a live channel goes, a dead one stays",
        f"{SURVIVORS}:close_survivors",
        _shifted_by_one,
        models.convolutions,
    ),
    Mutant(
        "a coupling is skipped",
        f"{SURVIVORS}:close_survivors",
        _couplings_skipped,
        models.mlp,
        proof=False,
    ),
    Mutant(
        "inputs and outputs of linear are swapped",
        f"{RULES}.contraction:linear",
        _rule_with_pattern("o i, o", "i o, o"),
        models.chain,
    ),
    Mutant(
        "channels of a convolution are swapped",
        f"{RULES}.contraction:convolution",
        _rule_with_pattern("o i _ _", "i o _ _"),
        models.convolution_chain,
    ),
    Mutant(
        "a sum is taken for a product",
        f"{RULES}.pointwise:pointwise",
        _changed_rule(annihilators=(0, 1)),
        models.added_mean,
    ),
    Mutant(
        "layer norm is taken to keep zeros",
        f"{RULES}.normalization:layer_norm",
        _changed_rule(annihilators=(0,)),
        models.layer_norm,
    ),
    Mutant(
        "batch norm is taken to keep zeros",
        f"{RULES}.normalization:batch_norm",
        _changed_rule(annihilators=(0,)),
        models.convolution_constants_unpadded,
    ),
    Mutant(
        "group norm is taken to be free per channel",
        f"{RULES}.normalization:group_norm",
        _changed_rule(pinned={}),
        models.group_norm,
    ),
    Mutant(
        "softmax is taken to be free per unit",
        f"{RULES}.reduction:along_one_dim",
        _changed_rule(pinned={}),
        models.softmax,
    ),
    Mutant(
        "a maximum is taken to skip zeros",
        f"{RULES}.reduction:whole_row_reduction_of_zeros",
        _changed_rule(pinned={}, kind="reduction"),
        models.maximum,
    ),
    Mutant(
        "rows of a table are taken to be removable",
        f"{RULES}.lookup:embedding",
        _changed_rule(pinned={}, kind="contraction"),
        models.table,
    ),
    Mutant(
        "heads are numbered in the wrong order",
        f"{RULES}.movement:reshape_plane",
        _heads_lie_side_by_side,
        models.own_heads,
    ),
    Mutant(
        "halves of a fused projection are swapped",
        f"{RULES}.movement:_along_dim",
        _mover("chunk split split_with_sizes", lambda moved, plane: moved[::-1]),
        models.sliced_halves,
    ),
    Mutant(
        "a flip is taken for the identity",
        f"{RULES}.movement:_along_dim",
        _mover("flip", lambda moved, plane: [plane]),
        models.sliced,
    ),
    Mutant(
        "padding moves units by one too few",
        f"{RULES}.movement:_pad",
        _mover("pad", lambda moved, plane: [torch.roll(moved[0], -1, -1)]),
        models.padded_zeros,
    ),
    Mutant(
        "an index picks the neighbours",
        f"{RULES}.movement:_index",
        _mover("index", lambda moved, plane: [torch.roll(moved[0], 1, -1)]),
        models.sliced,
        proof=False,
    ),
)
