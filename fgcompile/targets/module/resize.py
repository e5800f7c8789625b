"""Puts the parameters of a lowered program into a module of the original class."""

from __future__ import annotations

import torch
from torch import nn

from fgcompile.errors import ExportError
from fgcompile.program import Program


def resize_parameters(model: nn.Module, lowered: Program, share: bool = False) -> None:
    """Every tensor that `lowered` reads is that of `model`, in place.

    Tied parameters stay tied, and tensors that the program does not read are left.

    Args:
        model: Has the parameters of the program before it was lowered.
        lowered: The program, with smaller parameters.
        share: Whether `model` gets the tensors themselves, not copies.

    Raises:
        ExportError: If the program holds a tensor that the model has no place for.
    """
    places = names_of(model)
    for node in lowered.graph.nodes:
        if node.op != "get_attr" or not lowered.is_parameter(node):
            continue
        name = str(node.target)
        if name not in places:
            raise ExportError(
                f"{type(model).__name__} has no place for parameter {name}, which "
                "lowering made\n"
                '  Lower to "fx" or "onnx", whose graphs can hold it.'
            )
        tensor = lowered.parameter(node)
        if tensor is not model.get_parameter(name):
            new = tensor.detach()
            _put(model, places[name], new if share else new.clone().contiguous())


def resize_parameter(model: nn.Module, name: str, values: torch.Tensor) -> None:
    """The parameter called `name` holds `values`, under all its names.

    Raises:
        KeyError: If `model` has no such parameter.
    """
    _put(model, names_of(model)[name], values)


def names_of(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by each of them."""
    together: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        together.setdefault(id(parameter), []).append(name)
    return {name: names for names in together.values() for name in names}


def _put(model: nn.Module, names: list[str], tensor: torch.Tensor) -> None:
    old = model.get_parameter(names[0])
    new = nn.Parameter(tensor, requires_grad=old.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)
