"""Mutants of the passes: right facts, wrong rewrites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fgcompile.passes.weights import replace_tensor, weight_use
from tests.mutants import models
from tests.mutants.analyses import returning
from tests.mutants.mutant import Mutant

PASSES = "fgcompile.passes"
aten = torch.ops.aten


def _with_indices(wrong: Any) -> Any:
    """Makes a slicing of parameters that selects `wrong(indices, size)`."""

    def make(right: Any) -> Any:
        def slice_one(shrinkage: Any, name: str, index: int) -> Any:
            survivors = shrinkage.survivors
            positions = type(survivors).positions
            size = max(shrinkage.flow.values[index].shape)

            def moved(self: Any, value: int, plane: int) -> Any:
                found = positions(self, value, plane)
                shape = found.shape
                if value != index or found.size == max(self.planes[value][plane].shape):
                    return found
                return wrong(found.reshape(-1), size).reshape(shape)

            type(survivors).positions = moved
            try:
                return right(shrinkage, name, index)
            finally:
                type(survivors).positions = positions

        return slice_one

    return make


def _only_first_bias(right: Any) -> Any:
    """Rows of matrices are permuted, those of vectors not."""

    def slice_one(shrinkage: Any, name: str, index: int) -> Any:
        parameter = right(shrinkage, name, index)
        if parameter.dim() == 1:
            parameter.data = parameter.data.flip(0)
        return parameter

    return slice_one


def _wrong_side(right: Any) -> Any:
    """Rows of square matrices are chosen as their columns should be."""

    def slice_one(shrinkage: Any, name: str, index: int) -> Any:
        planes, masks = shrinkage.survivors.planes, shrinkage.survivors.planes[index]
        if len(masks) == 2 and masks[0].sum() == masks[1].sum():
            planes[index] = [m.T.copy() for m in reversed(masks)]
        try:
            return right(shrinkage, name, index)
        finally:
            planes[index] = masks

    return slice_one


def _first_row_of_each_head(right: Any) -> Any:
    """Heads keep their first rows, whichever are live."""

    def slice_parameters(shrinkage: Any) -> None:
        right(shrinkage)
        module = shrinkage.program.graph_module
        for name, index in shrinkage.flow.parameters.items():
            if name.endswith("in_proj_weight") and shrinkage.shrinks(index):
                owner, _, leaf = name.rpartition(".")
                weight = getattr(module.get_submodule(owner), leaf)
                weight.data = weight.data.roll(1, 0)

    return slice_parameters


def _repaired_by(wrong: Any) -> Any:
    """Makes a repair that is given other numbers."""

    def make(right: Any) -> Any:
        def repair(s: Any, node: Any, old: int, new: int, dims: int) -> None:
            right(s, node, *wrong(old, new), dims)

        return repair

    return make


def _eps_stays(right: Any) -> Any:
    def repair(s: Any, node: Any, old: int, new: int, dims: int) -> None:
        eps = node.args[3]
        right(s, node, old, new, dims)
        node.update_arg(3, eps)

    return repair


def _without_shift(right: Any) -> Any:
    def repair(s: Any, node: Any, old: int, new: int, dims: int) -> None:
        node.args = (*node.args[:3], None, *node.args[4:])
        right(s, node, old, new, dims)

    return repair


def _next_start(right: Any) -> Any:
    """A slice starts one too late."""

    def rewrite(shrinkage: Any, node: Any) -> None:
        right(shrinkage, node)
        if node.target is aten.slice.Tensor:
            start, end = node.args[2:4]
            node.update_arg(2, start + 1)
            node.update_arg(3, end + 1)

    return rewrite


def _scaled_by(factor: float) -> Any:
    """Makes an evaluation that is off by `factor`."""

    def make(right: Any) -> Any:
        def evaluate(program: Any, node: Any, known: Any) -> Any:
            found = right(program, node, known)
            return found * factor if found.is_floating_point() else found

        return evaluate

    return make


def _without_bias(right: Any) -> Any:
    def producer(source: Any, gate: Any) -> Any:
        found = right(source, gate)
        return found[:1] if found else found

    return producer


def _other_dim(right: Any) -> Any:
    """The rows of a square weight take a factor of its columns."""

    def scale(program: Any, node: Any, factors: Any, dim: int) -> None:
        shape = program.parameter(node).shape
        square = len(shape) > 1 and shape[0] == shape[1]
        right(program, node, factors, 1 - dim if square else dim)

    return scale


def _contractions_only(right: Any) -> Any:
    """Readers of a gate that are no contraction are overlooked."""

    def readers(gate: Any) -> Any:
        found = right(gate)
        if found is not None:
            return found
        uses = [weight_use(user) for user in gate.users]
        return [u for u in uses if u is not None and u.operand is gate] or None

    return readers


def _half_of_the_scale(right: Any) -> Any:
    def updates(graph: Any) -> Any:
        return [replace(u, scale=u.scale / 2) for u in right(graph)]

    return updates


def _bias_is_dropped(right: Any) -> Any:
    return lambda program, node, bias, sizes: right(program, node, None, sizes)


def _other_term(right: Any) -> Any:
    """The zero is kept, the term beside it is dropped."""

    def drop(flow: Any, constants: Any, node: Any) -> bool:
        terms = [n for n in node.args[:2] if flow.value_of(n) is not None]
        zero = [n for n in terms if constants.zero[flow.value_of(n)]]
        if node.target is aten.add.Tensor and zero:
            node.replace_all_uses_with(zero[0])
            return True
        return right(flow, constants, node)

    return drop


def _bias_rows_are_dead(right: Any) -> Any:
    """Rows of zeros are left out, with what their bias adds."""

    def scatter(program: Any, use: Any) -> bool:
        weight, bias = program.parameter(use.weight), program.parameter(use.bias)
        dead = ~(weight != 0).any(use.inputs)
        silent = nn.Parameter(bias.detach().masked_fill(dead, 0.0))
        replace_tensor(program, use.bias, silent)
        return right(program, use)

    return scatter


def _next_index(right: Any) -> Any:
    def gather(program: Any, operand: Any, first: Any, index: Any) -> Any:
        return right(program, operand, first, (index + 1) % 64)

    return gather


def _rolled_rows(right: Any) -> Any:
    """A table is gathered one row further."""

    def index(need: Any, axes: Any, own: Any) -> Any:
        return np.roll(right(need, axes, own), 1, axis=-1)

    return index


def _zeros_put_back(right: Any) -> Any:
    return lambda program, node, dim, mask, known: right(
        program, node, dim, mask, np.zeros_like(known)
    )


def _places_off_by_one(right: Any) -> Any:
    return lambda program, node, dim, mask, known: right(
        program, node, dim, np.roll(mask, 1), known
    )


def _gate_of_rows(right: Any) -> Any:
    def move(program: Any, node: Any, gate: Any) -> Any:
        gate.args = (*gate.args[:2], 0)
        return right(program, node, gate)

    return move


MUTANTS = (
    Mutant(
        "a slice bound is off by one",
        f"{PASSES}.slice_parameters:_slice",
        _with_indices(lambda found, size: (found + 1) % size),
        models.mlp,
    ),
    Mutant(
        "biases keep their units in another order",
        f"{PASSES}.slice_parameters:_slice",
        _only_first_bias,
        models.mlp,
    ),
    Mutant(
        "a square matrix is sliced on the wrong side",
        f"{PASSES}.slice_parameters:_slice",
        _wrong_side,
        models.square_rows,
    ),
    Mutant(
        "heads are permuted in the fused projection only",
        f"{PASSES}.slice_parameters:slice_parameters",
        _first_row_of_each_head,
        models.heads,
    ),
    Mutant(
        "the repair of a mean is dropped",
        f"{PASSES}.repair_norms:_mean",
        returning(None),
        models.mean,
    ),
    Mutant(
        "the repair of an RMS norm is dropped",
        f"{PASSES}.repair_norms:_rms_norm",
        returning(None),
        models.rms_norm,
    ),
    Mutant(
        "the repair of a layer norm is dropped",
        f"{PASSES}.repair_norms:_layer_norm",
        returning(None),
        models.layer_norm_unread,
    ),
    Mutant(
        "the eps of an RMS norm is not rescaled",
        f"{PASSES}.repair_norms:_rms_norm",
        _eps_stays,
        models.rms_norm,
    ),
    Mutant(
        "an RMS norm is rescaled by the wrong count",
        f"{PASSES}.repair_norms:_rms_norm",
        _repaired_by(lambda old, new: (old, new + 1)),
        models.rms_norm,
    ),
    Mutant(
        "the variance of a layer norm forgets what went",
        f"{PASSES}.repair_norms:_layer_norm",
        _repaired_by(lambda old, new: (old, old)),
        models.layer_norm_unread,
    ),
    Mutant(
        "a repaired layer norm forgets its shift",
        f"{PASSES}.repair_norms:_layer_norm",
        _without_shift,
        models.layer_norm_unread,
    ),
    Mutant(
        "a slice of a value starts one too late",
        f"{PASSES}.rewrite_sizes:_slice",
        _next_start,
        models.sliced,
        proof=False,
    ),
    Mutant(
        "attention is scaled for its new head size",
        f"{PASSES}.rewrite_sizes:_attention",
        returning(None),
        models.fused_attention,
    ),
    Mutant(
        "rotary tables are gathered one row further",
        f"{PASSES}.gather_operands:_index",
        _rolled_rows,
        models.rotary,
    ),
    Mutant(
        "constants of outputs are put back as zeros",
        f"{PASSES}.restore_outputs:_widen",
        _zeros_put_back,
        models.outputs,
    ),
    Mutant(
        "outputs are put back one place further",
        f"{PASSES}.restore_outputs:_widen",
        _places_off_by_one,
        models.outputs,
    ),
    Mutant(
        "a constant is dropped instead of added to the bias",
        f"{PASSES}.propagate_constants:_add_to_bias",
        returning(None),
        models.constants,
    ),
    Mutant(
        "a constant is added with the wrong sign",
        f"{PASSES}.propagate_constants:_add_to_bias",
        lambda right: lambda program, use, added: right(program, use, -added),
        models.no_bias,
    ),
    Mutant(
        "a constant passes zero padding as if it were none",
        f"{PASSES}.propagate_constants:_unpadded",
        returning(True),
        models.convolution_constants,
    ),
    Mutant(
        "a constant is added once, not for each place of the kernel",
        f"{PASSES}.propagate_constants:_add_to_bias",
        lambda right: lambda program, use, added: right(program, use, added / 9),
        models.convolution_constants_unpadded,
    ),
    Mutant(
        "a gate is folded into the rows instead of the columns",
        f"{PASSES}.fold_gates:_scale",
        _other_dim,
        models.square_fractional,
    ),
    Mutant(
        "a gate is dropped because one factor is 1",
        f"{PASSES}.fold_gates:_drop",
        lambda right: (
            lambda program, gate: bool(gate.replace_all_uses_with(gate.args[0]) or True)
        ),
        models.mlp_fractional,
    ),
    Mutant(
        "a gate is folded with the wrong scale",
        f"{PASSES}.fold_gates:_scale",
        lambda right: (
            lambda program, node, factors, dim: right(program, node, factors**2, dim)
        ),
        models.convolutions_fractional,
    ),
    Mutant(
        "a folded gate forgets the bias",
        f"{PASSES}.fold_gates:_producer",
        _without_bias,
        models.gated_bias,
    ),
    Mutant(
        "a gate is folded though others read the value",
        f"{PASSES}.fold_gates:_readers",
        _contractions_only,
        models.gate_read_twice,
    ),
    Mutant(
        "a wrong constant is stored",
        f"{PASSES}.fold_constants:_evaluate",
        _scaled_by(1.001),
        models.masked,
    ),
    Mutant(
        "a constant is stored in half precision",
        f"{PASSES}.fold_constants:_evaluate",
        lambda right: (
            lambda program, node, known: right(program, node, known).half().float()
        ),
        models.masked,
    ),
    Mutant(
        "two formulas are taken for one",
        f"{PASSES}.fold_constants:_formula",
        lambda right: lambda node: "the same",
        models.masked_alike,
    ),
    Mutant(
        "a low-rank update is added with half its scale",
        "fgcompile.gates.low_rank:low_rank_updates",
        _half_of_the_scale,
        models.low_rank,
    ),
    Mutant(
        "a low-rank update is dropped",
        f"{PASSES}.merge_low_rank:_merge",
        returning(True),
        models.low_rank,
    ),
    Mutant(
        "a dead branch loses its bias",
        f"{PASSES}.eliminate_dead_branches:_constant",
        _bias_is_dropped,
        models.dead_branch,
    ),
    Mutant(
        "the term beside a zero one is dropped",
        f"{PASSES}.eliminate_dead_branches:_drop_zero_term",
        _other_term,
        models.dead_block,
    ),
    Mutant(
        "columns are gathered one place further",
        f"{PASSES}.gather_live:_gather",
        _next_index,
        models.wide_columns,
    ),
    Mutant(
        "rows that are only a bias are left out",
        f"{PASSES}.gather_live:_scatter_rows",
        _bias_rows_are_dead,
        models.wide_rows,
    ),
    Mutant(
        "a gate of columns is moved to the result",
        f"{PASSES}.move_gates:_move",
        _gate_of_rows,
        models.tied_gate,
    ),
)
