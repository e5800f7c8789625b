"""S2FT: structured sparse fine-tuning of a few heads and channels.

Source: Yang et al., NeurIPS 2024 (arXiv 2412.06289), sections 3.1 to 3.3, and the
authors' code, whose query heads under grouped-query attention are not copied: here a
key/value head moves with all its query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.compiler import Inputs, analyze
from fgcompile.errors import GateError
from fgcompile.gates.access import owner_of
from fgcompile.gates.config import check_choices
from fgcompile.gates.matrices import (
    Matrix,
    chosen_groups,
    matrices,
    units_along,
    weight_of,
)
from fgcompile.gates.mergeable import Mergeable
from fgcompile.gates.processes import refuse_shards
from fgcompile.methods.co_permutation import Permutation, moved, permute, reorder
from fgcompile.methods.gate_orders import Places, places_of
from fgcompile.methods.s2ft_adapter import S2ftAdapter, S2ftEntry, fuse
from fgcompile.methods.s2ft_blocks import BlockHook, S2ftBlock, Side
from fgcompile.methods.s2ft_selection import Criterion, rank_units, readers_of
from fgcompile.methods.weight_hooks import freeze, remove_hooks

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ATTRIBUTE = "fgcompile_s2ft"
"""Name under which a model holds its blocks."""


@dataclass(frozen=True)
class S2ftConfig:
    """What S2FT selects and trains.

    Attributes:
        heads: Fraction of the heads of every attention, rounded; a key/value head
            counts as one with its query heads. With few of them that is none, and
            only channels are trained, as in the paper.
        channels: Fraction of the hidden channels of every MLP, rounded.
        by: What is selected by.
        largest: Whether the largest are selected, or the smallest.
        rows: Also train the rows that make the selected units (up, gate and value),
            besides the columns that read them (down and output).
        seed: Of the random selection.
    """

    heads: float = 0.05
    channels: float = 0.02
    by: Criterion = "random"
    largest: bool = False
    rows: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the fractions and the criterion.

        Raises:
            GateError: If a fraction is not in [0, 1], or there is no such criterion.
        """
        check_choices(self)
        for what in ("heads", "channels"):
            if not 0 <= getattr(self, what) <= 1:
                raise GateError(
                    f"S2ftConfig({what}={getattr(self, what)}): expected 0 to 1"
                )


class S2ftContainer(Mergeable, nn.Module):
    """The trained blocks of one model, and how its parameters are permuted.

    Attributes:
        blocks: One per trained slice.
        places: Where units lie, by which gates are permuted back.
    """

    def __init__(
        self, blocks: list[S2ftBlock], permutations: list[Permutation], places: Places
    ) -> None:
        """Blocks of a model that was permuted so."""
        super().__init__()
        self.places = places
        self.blocks = nn.ModuleList(blocks)
        self._permuted = [(one.parameter, one.dim) for one in permutations]
        # Buffers, so that a checkpoint's permuted weights bring their order along.
        for number, one in enumerate(permutations):
            self.register_buffer(f"order{number}", one.order)

    @property
    def permutations(self) -> list[Permutation]:
        """How the parameters are permuted, in the order in which it was done."""
        return [
            Permutation(parameter, dim, self.get_buffer(f"order{number}").cpu())
            for number, (parameter, dim) in enumerate(self._permuted)
        ]

    def forward(self, x: Any = None) -> Any:
        """`x` itself: an `nn.Sequential` that owns the blocks calls them last."""
        return x

    def merge_into(self, model: nn.Module) -> None:
        """See `remove_s2ft`."""
        remove_s2ft(model)

    def each(self) -> list[S2ftBlock]:
        """The blocks in order."""
        return [block for block in self.blocks if isinstance(block, S2ftBlock)]


def insert_s2ft(
    model: ModuleT,
    config: S2ftConfig | None = None,
    example_inputs: Inputs | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> ModuleT:
    """Selects, puts the selected units first, and makes their slices trainable.

    In place. Everything else is frozen; its outputs are as before. To train other
    parameters as well, such as a new classifier or the gates, set their
    `requires_grad` afterwards. Gates are reordered with the weights, so gate `k` is
    another unit than before; `remove_s2ft` undoes that. Make the optimizer after this.

    Args:
        model: An eager model with the base weights.
        config: What to select and train.
        example_inputs: As for `insert_gates`.
        calibration: Batches for selection by activation, product or gradient.
        loss: From outputs to a scalar, for gradients; None takes the model's own loss.

    Returns:
        The same object.

    Raises:
        GateError: If nothing is selected, or permuting would change the outputs.
        CaptureError: If the model cannot be captured.
    """
    config = config or S2ftConfig()
    if find_s2ft(model) is not None:
        raise GateError(
            f"{type(model).__name__} has S2FT blocks already\n"
            "  Take them off with remove_s2ft(model)."
        )
    analysis = analyze(model, example_inputs)
    found = [m for m in matrices(analysis, model) if m.whole]
    groups = _trained_groups(analysis, found, config)
    ranks = rank_units(
        model,
        groups,
        readers_of(groups, found),
        config.by,
        config.largest,
        config.seed,
        calibration,
        loss,
    )
    orders = {g.name: _front(ranks[g.name], _count(g, config)) for g in groups}
    # Before anything is permuted: slices that are none are refused.
    slices = list(_slices(analysis, groups, found, config))
    places = places_of(analysis, orders, found)
    permutations = permute(model, analysis, orders, places)
    blocks = [
        S2ftBlock(m, side, _base(permutations, m, side, n), weight_of(model, m).device)
        for m, side, n in slices
    ]
    _attach(model, S2ftContainer(blocks, permutations, places))
    return model


def _attach(model: nn.Module, container: S2ftContainer) -> None:
    """Only the blocks train from here on."""
    vars(container)["trained"] = freeze(model)
    setattr(model, ATTRIBUTE, container)
    for block in container.each():
        module = model.get_submodule(block.matrix.reader)
        # Before the hooks of gates, which scale what this adds to.
        module.register_forward_hook(BlockHook(block), prepend=True, with_kwargs=True)


def find_s2ft(model: nn.Module) -> S2ftContainer | None:
    """The blocks in `model` or in what it wraps; None if there are none."""
    return next((m for m in model.modules() if isinstance(m, S2ftContainer)), None)


def extract_adapter(model: nn.Module) -> S2ftAdapter:
    """The trained updates of `model`, in the order of the base model.

    Raises:
        GateError: If `model` has no blocks, or is sharded.
    """
    container = _blocks_of(model)
    refuse_shards(model)
    owner = owner_of(model, container)
    return S2ftAdapter(
        {
            (block.matrix.parameter, block.side): _entry(owner, container, block)
            for block in container.each()
        }
    )


def _entry(model: nn.Module, container: S2ftContainer, block: S2ftBlock) -> S2ftEntry:
    shape = tuple(model.get_parameter(block.matrix.parameter).shape)
    other = 1 - block.dim
    order = _order(container.permutations, block.matrix.parameter, other, shape[other])
    update = block.stored().cpu().index_select(other, order.argsort())
    return S2ftEntry(block.dim, block.side, shape, block.base.cpu().clone(), update)


def remove_s2ft(model: ModuleT, fuse_updates: bool = True) -> ModuleT:
    """A plain model in the order of the base model; blocks and permutation are gone.

    Parameters that were trained before `insert_s2ft` are trainable again. Gates stay,
    in the order of the base model too.

    Args:
        model: A model with blocks.
        fuse_updates: Whether its weights hold the updates, or are those of the base.

    Returns:
        The same object.

    Raises:
        GateError: If `model` has no blocks, is sharded, or has gates that cannot
            follow.
    """
    container = _blocks_of(model)
    owner = owner_of(model, container)
    adapter = extract_adapter(model)
    reorder(model, owner, container.permutations, container.places, back=True)
    remove_hooks(model, "s2ft")
    for module in model.modules():
        for name in [n for n, m in module._modules.items() if m is container]:
            del module._modules[name]
    if fuse_updates:
        fuse(owner, adapter)
    for parameter in vars(container)["trained"]:
        parameter.requires_grad_(True)
    return model


def _blocks_of(model: nn.Module) -> S2ftContainer:
    container = find_s2ft(model)
    if container is None:
        raise GateError(
            f"{type(model).__name__} has no S2FT blocks\n"
            "  Insert them with fgcompile.methods.insert_s2ft(model)."
        )
    return container


def _trained_groups(
    analysis: Analysis, found: list[Matrix], config: S2ftConfig
) -> list[CoupledGroup]:
    """The groups with units to select that a matrix reads.

    Raises:
        GateError: If there are none.
    """
    wanted = [
        group
        for group in chosen_groups(analysis, ("mlp", "head"))
        if _count(group, config)
    ]
    if not wanted:
        raise _nothing(config)
    groups = [group for group in wanted if readers_of([group], found)[group.name]]
    if not groups:
        raise _unread(wanted)
    return groups


def _nothing(config: S2ftConfig) -> GateError:
    return GateError(
        f"S2FT selects nothing: heads={config.heads} and channels={config.channels} "
        "of every group round to no unit\n"
        "  Raise the fractions; fgcompile.analyze(model) lists the groups."
    )


def _unread(groups: list[CoupledGroup]) -> GateError:
    return GateError(
        f"S2FT selects nothing: no module of the model multiplies a weight with all of "
        f"{groups[0].name} as its input\n"
        "  Blocks are added to what such modules return, as nn.Linear does. Use "
        "methods.insert_pst(model), which needs none."
    )


def _count(group: CoupledGroup, config: S2ftConfig) -> int:
    fraction = config.heads if group.kind == "head" else config.channels
    return round(fraction * group.size)


def _front(rank: Tensor, count: int) -> Tensor:
    """The first `count` units of a ranking, then all others in their old order."""
    selected = rank[:count].sort().values
    others = torch.ones(len(rank), dtype=torch.bool)
    others[selected] = False
    return torch.cat([selected, others.nonzero().flatten()])


def _slices(
    analysis: Analysis,
    groups: list[CoupledGroup],
    found: list[Matrix],
    config: S2ftConfig,
) -> Iterable[tuple[Matrix, Side, int]]:
    """Matrices to train, on which side, and how many indices."""
    scored = {
        (member.parameter, member.dim)
        for group in analysis.groups
        if group.kind == "qk"
        for member in group.members
    }
    for group in groups:
        for matrix in found:
            side: Side
            for side, dim in (("columns", matrix.columns), ("rows", matrix.rows)):
                index = units_along(group, matrix, dim)
                if index is None or (side == "rows" and not config.rows):
                    continue
                if (matrix.parameter, dim) not in scored:
                    count = _count(group, config)
                    yield matrix, side, _leading(group, index, count, side)


def _leading(group: CoupledGroup, index: Tensor, count: int, side: Side) -> int:
    """How many indices the first `count` units take, which must lie in front."""
    selected = ((index >= 0) & (index < count)).nonzero().flatten()
    if not torch.equal(selected, torch.arange(len(selected))):
        whole = "rows=False to train columns alone, or " if side == "rows" else ""
        kind = "heads" if group.kind == "head" else "channels"
        raise GateError(
            f"the units of {group.name} are no slice of a dim of {len(index)}\n"
            f"  Set {whole}{kind}=0 to leave groups of that kind out."
        )
    return len(selected)


def _order(
    permutations: list[Permutation], parameter: str, dim: int, size: int
) -> Tensor:
    """Base index of what lies at each index of a dim."""
    return moved(permutations).get((parameter, dim), torch.arange(size))


def _base(
    permutations: list[Permutation], matrix: Matrix, side: Side, size: int
) -> Tensor:
    """Base indices of what lies in front of a side of a matrix."""
    rows = side == "rows"
    dim, extent = (
        (matrix.rows, matrix.shape[0]) if rows else (matrix.columns, matrix.shape[1])
    )
    # A copy, as checkpoints refuse buffers that share memory.
    return _order(permutations, matrix.parameter, dim, extent)[:size].clone()
