"""PST: parameter-efficient sparse training, with all weights frozen.

Four small matrices per weight say which of its entries go, two more adapt what stays;
nothing else is trained. Source: Li et al., IJCAI 2022 (arXiv 2205.11005), sections 3
and 4, and the authors' code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fgcompile.analysis.coupling import Analysis
from fgcompile.compiler import Inputs, analyze
from fgcompile.errors import GateError
from fgcompile.gates.matrices import (
    Matrix,
    chosen_groups,
    matrices,
    units_along,
)
from fgcompile.gates.processes import refuse_shards
from fgcompile.methods.pst_scores import PstContainer, PstGroup, PstMatrix
from fgcompile.methods.schedule import COOL, WARM
from fgcompile.methods.weight_hooks import (
    MethodHook,
    ShowHook,
    Shown,
    freeze,
    remove_hooks,
    show,
)

logger = logging.getLogger(__name__)

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ATTRIBUTE = "fgcompile_pst"
"""Name under which a model holds its scores."""


@dataclass(frozen=True)
class PstConfig:
    """How PST masks and trains.

    Attributes:
        steps: Optimizer steps of the whole training, which the schedule needs.
        sparsity: Fraction of every matrix that is masked in the end; with
            `structured`, of the units of every coupled group.
        rank: Rank of `U V` and of `A B`.
        alpha1: Weight of `A B` in the scores.
        alpha2: Weight of `R` and `C` in the scores.
        beta: Weight of `U V` in the weights.
        structured: Mask whole units of coupled groups, by the mean score of all their
            entries, so that `lower` makes the model smaller. Else single weights, as
            in the paper; these make no dense product faster.
        kinds: Kinds of coupled group whose matrices are trained and masked.
        seed: Of U and A at the start.
    """

    steps: int
    sparsity: float = 0.9
    rank: int = 8
    alpha1: float = 1.0
    alpha2: float = 1.0
    beta: float = 1.0
    structured: bool = False
    kinds: tuple[str, ...] = ("mlp", "head")
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            GateError: If one makes no sense.
        """
        if self.steps < 1 or self.rank < 1:
            raise GateError(
                f"PstConfig(steps={self.steps}, rank={self.rank}): expected at least 1"
            )
        if not (self.alpha1 or self.alpha2 or self.beta):
            raise GateError("PstConfig: with all factors 0, nothing is trained")
        if not 0 <= self.sparsity < 1:
            raise GateError(
                f"PstConfig(sparsity={self.sparsity}): expected a fraction in [0, 1)"
            )


class _BeginHook(MethodHook):
    """Tells the schedule that a forward of the whole model begins."""

    method = "pst"

    def __init__(self, container: PstContainer) -> None:
        self.container = container

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.container.begin_forward()


def insert_pst(
    model: ModuleT, config: PstConfig, example_inputs: Inputs | None = None
) -> ModuleT:
    """Puts scores on the matrices of `model` and freezes everything else, in place.

    The forward computes with the masked weights from then on. The sparsity follows
    the optimizer's steps by itself, in any loop. To train other parameters as well,
    such as a new classifier, set their `requires_grad` afterwards; the authors' code
    leaves it alone.

    Args:
        model: An eager model; its class, weights and forward signature stay.
        config: How to mask and train.
        example_inputs: As for `insert_gates`.

    Returns:
        The same object.

    Raises:
        GateError: If it has scores already, or no matrix in a group of these kinds.
        CaptureError: If the model cannot be captured.
    """
    if find_pst(model) is not None:
        raise GateError(
            f"{type(model).__name__} has PST scores already\n"
            "  Take them off with bake_pst(model)."
        )
    analysis = analyze(model, example_inputs)
    container = _container(model, analysis, config)
    vars(container)["trained"] = freeze(model)
    setattr(model, ATTRIBUTE, container.train(model.training))
    model.register_forward_pre_hook(_BeginHook(container))
    readers: dict[str, list[Shown]] = {}
    for matrix in container.matrices:
        assert isinstance(matrix, PstMatrix)
        shown = Shown(matrix._owner[0], matrix.name, partial(container.weight, matrix))
        readers.setdefault(matrix.matrix.reader, []).append(shown)
    for path, shown_here in readers.items():
        show(model.get_submodule(path), ShowHook("pst", shown_here, _UNBAKED))
    return model


# One line: capture shows no more of what a forward raises.
_UNBAKED = "call fgcompile.methods.bake_pst(model) before the model is exported"


def find_pst(model: nn.Module) -> PstContainer | None:
    """The scores in `model` or in what it wraps; None if there are none."""
    return next((m for m in model.modules() if isinstance(m, PstContainer)), None)


def pst_status(model: nn.Module) -> dict[str, Any]:
    """Where the training stands.

    Returns:
        A dict with these entries.

        - `steps`: optimizer steps so far, of `total`.
        - `sparsity`: what the schedule asks now; `goal`: in the end.
        - `zeros`: fraction of the entries that are masked.

    Raises:
        GateError: If `model` has no scores, or is sharded.
    """
    container = _scores_of(model)
    container.begin_forward()
    zeros = entries = 0
    with torch.no_grad():
        for matrix in container.matrices:
            assert isinstance(matrix, PstMatrix)
            mask = container.mask(matrix, effective := matrix.effective())
            zeros += int((mask.expand_as(effective) == 0).sum())
            entries += effective.numel()
    return {
        "steps": int(container.steps),
        "total": container.total,
        "sparsity": container.sparsity,
        "goal": container.final,
        "zeros": zeros / entries,
    }


@torch.no_grad()
def bake_pst(model: ModuleT) -> ModuleT:
    """The masked and adapted weights are the weights of `model`; scores are gone.

    Parameters that were trained before `insert_pst` are trainable again. With
    `structured`, `lower` then removes the masked units.

    Returns:
        The same object.

    Raises:
        GateError: If `model` has no scores or is sharded, its schedule never stepped,
            or training ended while it masked nothing.
    """
    container = _scores_of(model)
    container.begin_forward()
    steps = int(container.steps)
    if not steps:
        raise GateError(
            "the schedule of PST never stepped, so nothing is masked\n"
            "  Train with an optimizer over the parameters that require gradients, "
            "and call the model itself rather than its parts."
        )
    if steps <= WARM * container.total and container.final:
        raise GateError(
            f"the schedule of PST masks nothing before step {WARM * container.total:g}"
            f", and training ended at step {steps}\n"
            "  Train longer, or give PstConfig the steps that the training has."
        )
    if steps <= COOL * container.total and container.sparsity != container.final:
        logger.warning(
            "PST is baked after %d of %d steps, at sparsity %.3f instead of %.3f",
            steps,
            container.total,
            container.sparsity,
            container.final,
        )
    baked = [
        (matrix.parameter, container.weight(matrix))
        for matrix in container.matrices
        if isinstance(matrix, PstMatrix)
    ]
    for parameter, weight in baked:
        parameter.copy_(weight)
    _remove(model, container)
    return model


def _remove(model: nn.Module, container: PstContainer) -> None:
    remove_hooks(model, "pst")
    for module in model.modules():
        for name in [n for n, m in module._modules.items() if m is container]:
            del module._modules[name]
    for parameter in vars(container)["trained"]:
        parameter.requires_grad_(True)


def _scores_of(model: nn.Module) -> PstContainer:
    container = find_pst(model)
    if container is None:
        raise GateError(
            f"{type(model).__name__} has no PST scores\n"
            "  Insert them with fgcompile.methods.insert_pst(model, config)."
        )
    refuse_shards(model)
    return container


def _container(model: nn.Module, analysis: Analysis, config: PstConfig) -> PstContainer:
    generator = torch.Generator().manual_seed(config.seed)
    scales = (config.alpha1, config.alpha2, config.beta)
    scored: dict[str, PstMatrix] = {}
    for matrix in matrices(analysis, model, config.kinds):
        owner, _, name = matrix.weight.rpartition(".")
        module = model.get_submodule(matrix.reader).get_submodule(owner)
        scored[matrix.parameter] = PstMatrix(
            module, name, matrix, config.rank, scales, generator
        )
    groups = _groups(analysis, scored, config) if config.structured else []
    for each in scored.values():
        if config.structured and not any(group.masks(each) for group in groups):
            each.freeze_scores()
    return PstContainer(list(scored.values()), groups, config.steps, config.sparsity)


def _groups(
    analysis: Analysis, scored: dict[str, PstMatrix], config: PstConfig
) -> list[PstGroup]:
    groups = []
    for group in chosen_groups(analysis, config.kinds):
        members = []
        for name, each in scored.items():
            for dim in (0, 1):
                index = units_along(group, each.matrix, _stored(each.matrix, dim))
                if index is not None:
                    members.append((scored[name], dim, index))
        if members:
            groups.append(PstGroup(group.size, members))
    return groups


def _stored(matrix: Matrix, dim: int) -> int:
    """The parameter's dim of outputs (0) or inputs (1)."""
    return matrix.rows if dim == 0 else matrix.columns
