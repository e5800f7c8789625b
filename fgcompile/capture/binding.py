"""Example inputs by the names of `forward`'s arguments."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fgcompile.capture.inputs import default_inputs, is_transformers_model
from fgcompile.errors import CaptureError


def bind_inputs(
    model: nn.Module, example_inputs: tuple[Any, ...] | dict[str, Any] | None
) -> dict[str, Any]:
    """Inputs by argument name in the order of the signature, without the Nones.

    Raises:
        CaptureError: If there are none and none can be made, or they do not fit the
            signature.
    """
    if example_inputs is None:
        if not is_transformers_model(model):
            raise _missing(model)
        return default_inputs(model)
    signature = inspect.signature(model.forward)
    positional, named = _split(example_inputs)
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        raise CaptureError(
            f"example inputs do not fit {type(model).__name__}.forward{signature}\n"
            f"  {error}\n"
            "  Pass a tuple of positional or a dict of keyword inputs."
        ) from None
    return {
        name: value
        for name, value in _flattened(signature, bound).items()
        if value is not None
    }


def _split(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if hasattr(example_inputs, "keys"):
        return (), {name: example_inputs[name] for name in example_inputs}
    return (example_inputs,), {}


def _flattened(
    signature: inspect.Signature, bound: inspect.BoundArguments
) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL and value:
            raise CaptureError(
                f"cannot name the inputs of forward{signature}: *{name} takes any\n"
                "  Give forward named arguments, in a small wrapper module if need be."
            )
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            inputs[name] = value
    return inputs


def _missing(model: nn.Module) -> CaptureError:
    parameters = inspect.signature(model.forward).parameters.values()
    arguments = ", ".join(parameter.name for parameter in parameters)
    needed = [p.name for p in parameters if p.default is p.empty] or ["x"]
    keywords = ", ".join(f'"{name}": {name}' for name in needed)
    return CaptureError(
        f"no example inputs for {type(model).__name__}.forward({arguments})\n"
        "  Only transformers models are captured without.\n"
        f"  Pass example_inputs=({', '.join(needed)},) or {{{keywords}}}."
    )
