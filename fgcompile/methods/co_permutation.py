"""Reordering the units of a coupled group everywhere at once.

Every parameter dim with units of a group is permuted in the same order, so the model
computes what it did: a sum over units does not depend on their order, and neither do
heads that attend one by one. Within a unit the order stays, so rotary embeddings keep
the pairs and frequencies of every head, and a key/value head takes its query heads
along. Gates go along as well; the moments that an optimizer holds for them do not, so
units are reordered before or after training.

The order of units can matter in a way that parameters do not show, such as a slope per
head that the code makes up. So the outputs are compared, and where they differ the
permutation is undone and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.errors import GateError
from fgcompile.methods.gate_orders import (
    Moved,
    Places,
    gate_orders,
    gates_beside,
    permute_gates,
    places_of,
)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of the outputs that rounding explains; else 0.05."""


@dataclass(frozen=True)
class Permutation:
    """The new order of one dim of one parameter.

    Attributes:
        parameter: Its name.
        dim: Its dim.
        order: What is at each index after the permutation, as indices before it.
    """

    parameter: str
    dim: int
    order: Tensor


def permute_units(
    model: nn.Module, analysis: Analysis, orders: Mapping[str, Tensor]
) -> list[Permutation]:
    """The units of coupled groups lie in the given orders; outputs are as before.

    Args:
        model: An eager model, in which the parameters are permuted in place.
        analysis: Of `model`.
        orders: For each group by name, its units in the new order.

    Returns:
        What was done to which parameter. To go back, permute with the inverse
        `order.argsort()` of every order, the last group first.

    Raises:
        GateError: If an order is not one of the group's units, a gate cannot follow,
            or the outputs would change. The model is unchanged then.
    """
    groups = {_group(analysis, name).name for name in orders}
    return permute(model, analysis, orders, places_of(analysis, groups))


def permute(
    model: nn.Module, analysis: Analysis, orders: Mapping[str, Tensor], places: Places
) -> list[Permutation]:
    """The same, with the places of all units."""
    done = [
        permutation
        for name, order in orders.items()
        for permutation in permutations_of(_group(analysis, name), order)
    ]
    if _on_meta(model):
        reorder(model, model, done, places)
        return done
    before = _outputs(model, analysis)
    reorder(model, model, done, places)
    if not _same(_outputs(model, analysis), before):
        reorder(model, model, done, places, back=True)
        raise _refusal(model, analysis, orders, places, before)
    return done


def reorder(
    model: nn.Module,
    owner: nn.Module,
    permutations: list[Permutation],
    places: Places,
    back: bool = False,
) -> None:
    """Parameters and gates are permuted, or as before that.

    Args:
        model: Where gates are looked for.
        owner: The module in it that the parameters are named from.
        permutations: Of parameters.
        places: From which those of the gates follow.
        back: Whether this is undone.

    Raises:
        GateError: If a gate cannot follow. Nothing is changed then.
    """
    container = gates_beside(model, owner)
    orders = gate_orders(container, places, moved(permutations))
    if back:
        undo(owner, permutations)
        orders = {gate: order.argsort() for gate, order in orders.items()}
    else:
        apply(owner, permutations)
    permute_gates(container, orders)


def moved(permutations: list[Permutation]) -> Moved:
    """What several permutations, one after the other, do to each dim."""
    orders: dict[tuple[str, int], Tensor] = {}
    for one in permutations:
        key = one.parameter, one.dim
        orders[key] = orders[key][one.order] if key in orders else one.order
    return orders


def permutations_of(group: CoupledGroup, order: Tensor) -> list[Permutation]:
    """What has to be done to every member of a group.

    Raises:
        GateError: If `order` is no permutation of the units, or a member holds more
            indices of one unit than of another.
    """
    units = torch.arange(group.size)
    if order.shape != units.shape or not torch.equal(order.sort().values, units):
        raise GateError(
            f"cannot permute {group.name}: the order has {order.numel()} entries, "
            f"expected each of its {group.size} units once"
        )
    return [
        Permutation(
            member.parameter, member.dim, _positions(group, member.index, order)
        )
        for member in group.members
    ]


def _positions(group: CoupledGroup, index: Tensor, order: Tensor) -> Tensor:
    places = places_by_unit(index, group.size)
    if places is None:
        raise GateError(
            f"cannot permute {group.name}: its units have different sizes in a "
            f"parameter dim of {len(index)}"
        )
    positions = torch.arange(len(index))
    positions[places.flatten()] = places[order].flatten()
    return positions


def places_by_unit(index: Tensor, size: int) -> Tensor | None:
    """Indices of every unit along a dim, in ascending order, shape `[size each]`.

    None if the units do not have equally many.
    """
    inside = (index >= 0).nonzero().flatten()
    counts = torch.bincount(index[inside], minlength=size)
    if (counts != counts[0]).any():
        return None
    by_unit = inside[index[inside].argsort(stable=True)]
    return by_unit.view(size, -1)


@torch.no_grad()
def apply(model: nn.Module, permutations: list[Permutation]) -> None:
    """Permutes the parameters in place, in the given order."""
    for one in permutations:
        parameter = model.get_parameter(one.parameter)
        order = one.order.to(parameter.device)
        parameter.copy_(parameter.index_select(one.dim, order))


def undo(model: nn.Module, permutations: list[Permutation]) -> None:
    """The parameters are as before `apply`."""
    inverse = [
        Permutation(one.parameter, one.dim, one.order.argsort())
        for one in reversed(permutations)
    ]
    apply(model, inverse)


def _group(analysis: Analysis, name: str) -> CoupledGroup:
    if name not in analysis.by_name:
        raise GateError(f"no group {name!r} to permute")
    return analysis.by_name[name]


def _refusal(
    model: nn.Module,
    analysis: Analysis,
    orders: Mapping[str, Tensor],
    places: Places,
    before: Any,
) -> GateError:
    """Names the first group whose order alone changes the outputs."""
    for name, order in orders.items():
        permutations = permutations_of(_group(analysis, name), order)
        reorder(model, model, permutations, places)
        same = _same(_outputs(model, analysis), before)
        reorder(model, model, permutations, places, back=True)
        if not same:
            break
    return GateError(
        f"cannot permute {name}: the outputs of the model would change\n"
        "  Code or a buffer tells the units apart by their place. Leave that group out."
    )


def _on_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


@torch.no_grad()
def _outputs(model: nn.Module, analysis: Analysis) -> list[Any]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return pytree.tree_leaves(dict(_named(model(**analysis.program.inputs))))
    finally:
        for module, flag in flags:
            module.training = flag


def _named(outputs: Any) -> Any:
    # A cache is an output too, but holds heads in the order of the weights.
    if isinstance(outputs, Mapping):
        caches = [k for k in outputs if "past_key_values" in k or k == "cache"]
        return {k: v for k, v in outputs.items() if k not in caches}
    return {"": outputs}


def _same(got: list[Any], expected: list[Any]) -> bool:
    tensors = [
        (a, b) for a, b in zip(got, expected, strict=True) if isinstance(b, Tensor)
    ]
    return all(
        not b.is_floating_point()
        or bool(_distance(a, b) <= TOLERANCE.get(b.dtype, 0.05) * _scale(b))
        for a, b in tensors
        if b.numel()
    )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # What is masked is -inf, and what is not defined nan; both may stay so.
    alike = (a == b) | (a.isnan() & b.isnan())
    return (a - b).masked_fill(alike, 0.0).abs().max()


def _scale(tensor: Tensor) -> Tensor:
    finite = tensor.masked_fill(~tensor.isfinite(), 0.0)
    return finite.abs().max().clamp_min(1e-6)
