"""From a gated or sparse model to a smaller one of the same class."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fgcompile.capture import capture
from fgcompile.capture.inputs import is_transformers_model
from fgcompile.errors import ExportError, GateError
from fgcompile.gates import find_container, remove_gates
from fgcompile.gates.mergeable import merge_methods
from fgcompile.program import Program
from fgcompile.targets.module.expressible import Kept, eliminate_in_place
from fgcompile.targets.module.history import History, history_of, remember
from fgcompile.targets.module.lowered import LoweredModule
from fgcompile.targets.module.resize import names_of, resize_parameters
from fgcompile.targets.module.roles import choices, role_sizes
from fgcompile.targets.module.search import correct_attributes
from fgcompile.targets.module.stock import fit_uniform
from fgcompile.targets.module.uniform import Alike, find_alike, revived_units
from fgcompile.targets.verify import TOLERANCE, largest_difference, outputs_of


def lower_to_module(
    model: nn.Module, inputs: dict[str, Any], uniform: bool | tuple[str, ...] = False
) -> LoweredModule:
    """`model` without the dead dims that its class can express.

    Args:
        model: With or without gates. It is not changed.
        inputs: Example inputs by name.
        uniform: Whether layers of a list must agree in their sizes; or the kinds of
            groups in which they must.

    Raises:
        ExportError: If there is no class to express it: `model` is a graph, or its
            code cannot be told the new sizes.
        GateError: If gates cannot be folded into weights exactly.
    """
    _refuse_graph(model)
    plain = copy.deepcopy(model).eval()
    merge_methods(plain)
    if find_container(plain) is not None:
        _fold(plain)
    return shrink_module(plain, inputs, uniform)


def shrink_module(
    model: nn.Module,
    inputs: dict[str, Any],
    uniform: bool | tuple[str, ...] = False,
    values: bool = True,
) -> LoweredModule:
    """`model` itself, without its dead dims.

    Args:
        model: Without gates, in eval mode. It may be changed.
        inputs: Example inputs by name.
        uniform: As for `lower_to_module`.
        values: Whether parameters hold their values. Without, zeros must be in place;
            NaN stands for an unknown value, and only shapes of outputs are compared.

    Raises:
        ExportError: If the class cannot express it.
    """
    program = capture(model, inputs)
    lowered, kept = eliminate_in_place(program, values=values)
    expected = outputs_of(model, inputs)

    def even(sets: list[Alike]) -> LoweredModule:
        small, stays = eliminate_in_place(program, revived_units(sets), values)
        stays.even = {name: why for s in sets for name, why in s.revived.items()}
        same = copy.deepcopy(model, _tensors(model))
        return _resized(same, program, small, stays, inputs, expected, values)

    if not uniform:
        return _resized(model, program, lowered, kept, inputs, expected, values)
    kinds = uniform if isinstance(uniform, tuple) else ()
    sets = find_alike(model, program, lowered, kinds)
    if kinds or not is_transformers_model(model):
        return even(sets)
    return fit_uniform(model, sets, even, inputs if values else None)


def _tensors(model: nn.Module) -> dict[int, Any]:
    """What a copy of `model` shares with it, as `deepcopy` wants it."""
    return {id(t): t for t in (*model.parameters(), *model.buffers())}


def _resized(
    model: nn.Module,
    program: Program,
    lowered: Program,
    kept: Kept,
    inputs: dict[str, Any],
    expected: list[torch.Tensor],
    values: bool,
) -> LoweredModule:
    """`model` itself with the parameters of `lowered`, and attributes that fit."""
    sizes = role_sizes(program, lowered, names_of(model))
    options = choices(model, sizes)
    config = copy.deepcopy(getattr(model, "config", None))
    resize_parameters(model, lowered, share=not values)
    attributes, problem = correct_attributes(
        model, options, lambda: _problem(model, inputs, expected, values)
    )
    if problem is not None:
        raise ExportError(
            f"{type(model).__name__} cannot express the smaller model: {problem}\n"
            f"  Tried were the attributes {_texts(options)}.\n"
            '  Lower to "fx" or "onnx", whose graphs can.'
        )
    pairs = {path: set(roles.values()) for path, roles in sizes.items()}
    change = History(lowered.kept, attributes, pairs, config)
    history = history_of(model).then(change)
    remember(model, history)
    return LoweredModule(model, lowered, kept, history)


def _refuse_graph(model: nn.Module) -> None:
    if isinstance(model, GraphModule):
        raise ExportError(
            'target "module" keeps the class of a model, and a GraphModule has none\n'
            '  Lower to "fx", which gives a smaller GraphModule.'
        )


def _fold(model: nn.Module) -> None:
    try:
        remove_gates(model, fold=True)
    except GateError as error:
        first = str(error).partition("\n")[0]
        raise GateError(
            f'target "module": {first}\n  Lower to "fx" or "onnx", where a gate may '
            "stay an operator."
        ) from error


def _texts(options: list[Any]) -> str:
    return ", ".join(f"{c.modules[0]}: {c.slot}" for c in options) or "none"


def _problem(
    model: nn.Module,
    inputs: dict[str, Any],
    expected: list[torch.Tensor],
    values: bool,
) -> str | None:
    try:
        found = outputs_of(model, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if [f.shape for f in found] != [e.shape for e in expected]:
        return "its outputs have other shapes"
    for got, want in zip(found, expected, strict=True) if values else ():
        difference, magnitude = largest_difference(want, got)
        scale = max(magnitude, 1e-3)
        if not difference <= TOLERANCE.get(want.dtype, 0.0) * scale:
            return f"its outputs differ by {difference / scale:.2g} of their magnitude"
    return None
