"""Parameters that take no memory: one number, seen at every place.

Which dims die follows from which rows and columns are zero, not from the other
values. So the compiler works on *stand-ins*: tensors of the right shape whose strides
are 0, except along a dim of which some indices are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.capture.state import silence
from fgcompile.checkpoint.foreign import bounded, foreign
from fgcompile.gates.fold import Fold

Factors = Mapping[str, Mapping[int, Tensor]]
"""What multiplies a parameter along each of its dims, by name."""


def skeleton(cls: Any, config: Any, folder: Path | None = None) -> nn.Module:
    """A model of `cls` in eval mode, with real buffers and parameters of ones.

    Its memory is that of its largest parameter, for a moment.

    Args:
        cls: Of transformers.
        config: Its configuration.
        folder: With the weights that it shall fit, if they are here.

    Raises:
        FormatError: If `cls` makes nothing of `config`.
    """
    from accelerate import init_empty_weights

    with (
        foreign(
            f"the configuration does not fit {cls.__name__}",
            "Give the class that the checkpoint was saved with, and its config.json.",
        ),
        silence(),
        bounded(folder),
        init_empty_weights(include_buffers=False),
    ):
        model: nn.Module = cls(config)
    model.tie_weights()  # type: ignore[operator]
    replace_parameters(model, {n: _ones(p) for n, p in model.named_parameters()})
    return model.eval()


def replace_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The parameters called so hold these tensors, under all their names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for together in names.values():
        tensor = next((tensors[n] for n in together if n in tensors), None)
        if tensor is None:
            continue
        new = nn.Parameter(tensor, requires_grad=False)
        for name in together:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, new)


def factors_of(model: nn.Module, folds: Iterable[Fold]) -> dict[str, dict[int, Tensor]]:
    """The factors of all folds, by parameter and dim."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, dict[int, Tensor]] = {}
    for fold in folds:
        dims = found.setdefault(names[id(fold.module._parameters[fold.name])], {})
        dims[fold.dim] = dims.get(fold.dim, 1.0) * fold.factors.detach().float()
    return found


def show_zeros(model: nn.Module, factors: Factors) -> None:
    """Puts a zero wherever a factor is zero, and no known value anywhere else.

    Vectors are read as values; NaN says that a value is unknown. A matrix with zeros
    along two dims shows them along the one that has more.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        zeros = {d: f == 0 for d, f in factors.get(name, {}).items() if (f == 0).any()}
        unknown = float("nan") if parameter.dim() < 2 else 1.0
        dim = max(zeros, key=lambda d: int(zeros[d].sum()), default=None)
        if dim is None:
            tensors[name] = parameter.new_full((), unknown).expand(parameter.shape)
        else:
            values = parameter.new_full((parameter.shape[dim],), unknown)
            shape = [1] * parameter.dim()
            shape[dim] = -1
            shown = values.masked_fill(zeros[dim], 0.0).view(shape)
            tensors[name] = shown.expand(parameter.shape)
    replace_parameters(model, tensors)


def _ones(parameter: Tensor) -> Tensor:
    one = torch.ones((), dtype=parameter.dtype)
    return one.expand(parameter.shape)
