"""The scores and masks of PST: what is kept of every weight matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.gates.gate import KeepsDtype
from fgcompile.gates.matrices import Matrix, oriented
from fgcompile.methods.schedule import cubic_sparsity


class _KeepHighest(torch.autograd.Function):
    """1 but for the `count` lowest scores; gradients pass as if it were the score."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> Tensor:
        # Of a weight that is stored transposed, the scores are no contiguous view.
        mask = torch.ones_like(scores, memory_format=torch.contiguous_format)
        if count:
            lowest = scores.flatten().topk(count, largest=False, sorted=False).indices
            mask.view(-1)[lowest] = 0.0
        return mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """A mask of the shape of `scores` with exactly `int(sparsity * numel)` zeros.

    They are where the scores are lowest. The gradient is straight-through: that of
    the mask is that of the scores, also where the mask is 0.
    """
    mask: Tensor = _KeepHighest.apply(scores, int(sparsity * scores.numel()))
    return mask


def _full_precision(tensor: Tensor) -> torch.autocast:
    """No autocast: what is trained would be other weights than what is baked."""
    return torch.autocast(tensor.device.type, enabled=False)


class PstMatrix(KeepsDtype):
    """The small trained matrices of one frozen weight `W`, with outputs as rows.

    `Weff = W + beta U V` is what is computed with where the mask is 1, and
    `S = |Weff| + alpha1 A B + alpha2 (R + C)` decides where it is; R is a column, one
    score per output, and C a row, one per input.

    Source: PST (arXiv 2205.11005), the authors' code; U and A start at N(0, 1), the
    others at 0, so that training starts from the given weights.
    """

    def __init__(
        self,
        owner: nn.Module,
        name: str,
        matrix: Matrix,
        rank: int,
        scales: tuple[float, float, float],
        generator: torch.Generator,
    ) -> None:
        """Scores of the parameter `owner.name`; `scales` are alpha1, alpha2, beta."""
        super().__init__()
        self._owner, self.name, self.matrix = (owner,), name, matrix
        self.alpha1, self.alpha2, self.beta = scales
        outputs, inputs = matrix.shape
        device = self.parameter.device
        first = torch.randn(2, outputs, rank, generator=generator).to(device)
        self.u, self.a = nn.Parameter(first[0].clone()), nn.Parameter(first[1].clone())
        self.v = nn.Parameter(torch.zeros(rank, inputs, device=device))
        self.b = nn.Parameter(torch.zeros(rank, inputs, device=device))
        self.r = nn.Parameter(torch.zeros(outputs, 1, device=device))
        self.c = nn.Parameter(torch.zeros(1, inputs, device=device))

    @property
    def parameter(self) -> nn.Parameter:
        """The frozen weight."""
        weight = self._owner[0]._parameters[self.name]
        assert weight is not None
        return weight

    def effective(self) -> Tensor:
        """`W + beta U V`, at least float32, shape `[outputs inputs]`."""
        weight = oriented(self.parameter, self.matrix)
        precise = torch.promote_types(weight.dtype, torch.float32)
        with _full_precision(weight):
            return weight.to(precise) + (self.beta * self.u) @ self.v

    def scores(self, effective: Tensor) -> Tensor:
        """S of every entry; `|Weff|` is a part of it that gradients pass through."""
        with _full_precision(effective):
            low_rank = self.alpha1 * (self.a @ self.b)
        return effective.abs() + low_rank + self.alpha2 * (self.r + self.c)

    def freeze_scores(self) -> None:
        """Trains U and V alone, where no mask depends on the scores."""
        for parameter in (self.a, self.b, self.r, self.c):
            parameter.requires_grad_(False)

    def score_sums(self, dim: int) -> Tensor:
        """S summed over the other dim, without an S; shape `[size of dim]`."""
        other, size = 1 - dim, self.matrix.shape[1 - dim]
        if dim == 0:
            low_rank = (self.a * self.b.sum(1)).sum(1)
            lines = self.r.flatten() * size + self.c.sum()
        else:
            low_rank = (self.a.sum(0).unsqueeze(1) * self.b).sum(0)
            lines = self.c.flatten() * size + self.r.sum()
        magnitude = self.effective().abs().sum(other)
        return magnitude + self.alpha1 * low_rank + self.alpha2 * lines


class PstGroup(KeepsDtype):
    """Rows and columns of several matrices that are kept or masked as one unit."""

    def __init__(
        self,
        size: int,
        members: Sequence[tuple[PstMatrix, int, Tensor]],
    ) -> None:
        """A group of `size` units.

        Args:
            size: Units.
            members: Matrices, the dim that lies along the units (0 for outputs), and
                the unit of each of its indices, -1 where there is none.
        """
        super().__init__()
        self.size = size
        self._members = tuple((matrix, dim) for matrix, dim, _ in members)
        for number, (matrix, _, index) in enumerate(members):
            placed = index.to(matrix.parameter.device)
            self.register_buffer(f"index{number}", placed, persistent=False)
        entries = torch.zeros(size)
        for matrix, dim, index in members:
            indices = torch.bincount(index[index >= 0], minlength=size)
            entries += indices * matrix.matrix.shape[1 - dim]
        entries = entries.to(members[0][0].parameter.device)
        self.register_buffer("entries", entries, persistent=False)

    def masks(self, matrix: PstMatrix) -> bool:
        """Whether units lie along a dim of `matrix`."""
        return any(member is matrix for member, _ in self._members)

    def scores(self) -> Tensor:
        """Mean of S over all entries of each unit, shape `[size]`."""
        total = torch.zeros_like(self.get_buffer("entries"))
        for number, (matrix, dim) in enumerate(self._members):
            sums = matrix.score_sums(dim)
            index = self.get_buffer(f"index{number}")
            inside = index >= 0
            total = total.index_add(0, index[inside], sums[inside])
        return total / self.get_buffer("entries")

    def along(self, matrix: PstMatrix, dim: int, mask: Tensor) -> Tensor | None:
        """`mask` of the units along a dim of a matrix; None if none lie there."""
        for number, (member, along) in enumerate(self._members):
            if member is matrix and along == dim:
                index = self.get_buffer(f"index{number}")
                extended = torch.cat([mask, mask.new_ones(1)])
                return extended[torch.where(index < 0, self.size, index)]
        return None


class PstContainer(KeepsDtype):
    """All matrices of one model, and how far the schedule is.

    Attributes:
        matrices: One per weight.
        groups: Units that are masked as one; empty if single weights are.
        steps: Optimizer steps so far, int64 scalar.
    """

    steps: Tensor
    seen: Tensor
    awaiting: Tensor

    def __init__(
        self,
        matrices: Sequence[PstMatrix],
        groups: Sequence[PstGroup],
        total: int,
        final: float,
    ) -> None:
        """A schedule of `total` optimizer steps that ends at sparsity `final`."""
        super().__init__()
        self.matrices, self.groups = nn.ModuleList(matrices), nn.ModuleList(groups)
        self.total, self.final = total, final
        device = matrices[0].r.device
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("seen", self._watched().clone())
        self.register_buffer(
            "awaiting", torch.zeros((), dtype=torch.bool, device=device)
        )

    def forward(self, x: Any = None) -> Any:
        """`x` itself: an `nn.Sequential` that owns the scores calls them last."""
        return x

    @property
    def sparsity(self) -> float:
        """Fraction that is masked now."""
        return cubic_sparsity(int(self.steps), self.total, self.final)

    @torch.no_grad()
    @torch.compiler.disable
    def begin_forward(self) -> None:
        """Counts the optimizer step since the last training forward, if there was one.

        Of R, V and B one moves in every step, whichever factor is 0: neither starts
        where it gets no gradient, and a mask does not stop theirs.
        """
        watched = self._watched()
        self.steps += self.awaiting & (watched != self.seen).any()
        self.seen.copy_(watched)
        self.awaiting.fill_(self.training)

    @torch.compiler.disable
    def weight(self, matrix: PstMatrix) -> Tensor:
        """`M * Weff` in the layout and dtype of the parameter of `matrix`."""
        effective = matrix.effective()
        masked = effective * self.mask(matrix, effective)
        return oriented(masked, matrix.matrix).to(matrix.parameter.dtype)

    def mask(self, matrix: PstMatrix, effective: Tensor) -> Tensor:
        """The mask of a matrix, or a product of masks that broadcasts over it."""
        if not self.groups:
            return keep_highest(matrix.scores(effective), self.sparsity)
        product = effective.new_ones(1, 1)
        for group in self.groups:
            assert isinstance(group, PstGroup)
            if not group.masks(matrix):
                continue
            units = keep_highest(group.scores(), self.sparsity)
            for dim in (0, 1):
                along = group.along(matrix, dim, units)
                if along is not None:
                    product = product * along.unsqueeze(1 - dim)
        return product

    def _watched(self) -> Tensor:
        each = [m for m in self.matrices if isinstance(m, PstMatrix)]
        return torch.cat([p.detach().flatten() for m in each for p in (m.r, m.v, m.b)])
