"""One gate: a vector of factors, shared by every place where its group is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.parametrization import Parametrization
from fgcompile.gates.processes import gathered


class KeepsDtype(nn.Module):
    """A module that follows the model from device to device, but keeps its dtypes.

    A logit or a multiplier in bfloat16 would not feel a step of the optimizer.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def same_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(same_dtype, recurse)


class Gate(KeepsDtype):
    """One factor in [0, 1] per unit of a coupled group.

    Attributes:
        name: Name of the coupled group.
        kind: Kind of the group, such as `mlp` or `head`.
        size: Units of the group.
        logits: What the optimizer sees, float32, shape `[size]`.
        closed: Units that the user closed, bool.
        pruned: Units that the budget keeps closed for now, bool.
        importance: Running mean of the squared change of the loss that closing (or
            opening) a unit makes, to first order, float32. Source: Molchanov et al.
            (CVPR 2019), section 3.1, on gates.
        floor: Smallest factor of a unit that is neither closed nor pruned.
    """

    logits: nn.Parameter
    closed: Tensor
    pruned: Tensor
    seen: Tensor
    anchor: Tensor | None
    noise: Tensor
    importance: Tensor
    slope: Tensor
    params: Tensor
    macs: Tensor

    def __init__(
        self,
        name: str,
        kind: str,
        size: int,
        parametrization: Parametrization,
        *,
        generator: torch.Generator,
        paced: bool = False,
        straight_through: bool = False,
        judged: bool = False,
        floor: float = 0.0,
    ) -> None:
        """A gate with all units open.

        Args:
            name: Name of the coupled group.
            kind: Kind of the group.
            size: Units of the group.
            parametrization: How a logit becomes a factor.
            generator: Source of the logits at the start.
            paced: Whether the gate moves at its own pace: `logits` then only tell the
                direction of the optimizer's steps, and `anchor` holds the position.
            straight_through: Whether the clamp passes gradients where it saturates,
                so that closed and fully open units still learn.
            judged: Whether backward passes tell the importance of units.
            floor: Smallest factor of a unit that is neither closed nor pruned.
        """
        super().__init__()
        self.name, self.kind, self.size = name, kind, size
        self.parametrization = parametrization
        self.straight_through, self.judged = straight_through, judged
        self.floor = floor
        start = parametrization.initial(size, generator)
        self._add_state(start, paced)
        self.logits.requires_grad_(parametrization.trainable)

    def _add_state(self, start: Tensor, paced: bool) -> None:
        size = self.size
        logits = torch.zeros(size) if paced else start
        self.logits = nn.Parameter(logits)
        self.register_buffer("anchor", start if paced else None)
        self.register_buffer("seen", logits.clone())
        self.register_buffer("closed", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("pruned", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("noise", torch.zeros(size), persistent=False)
        self.register_buffer("importance", torch.zeros(size))
        # d loss / d factor, summed over the backward passes of one optimizer step.
        self.register_buffer("slope", torch.zeros(size))
        for cost in ("params", "macs"):
            self.register_buffer(cost, torch.ones(size), persistent=False)

    @property
    def open(self) -> Tensor:
        """Units whose eval factor is not 0, bool, shape `[size]`."""
        with torch.no_grad():
            return self.eval_value() != 0

    @property
    def theta(self) -> Tensor:
        """Position of every unit: the logit that the factor is computed from."""
        if self.anchor is None:
            return self.position
        return self.anchor + (self.position - self.seen)

    @property
    def position(self) -> Tensor:
        """`logits`, whole also where FSDP2 shards them."""
        return gathered(self.logits)

    def close(self, indices: Tensor | Sequence[int]) -> None:
        """Makes units compute zero, in training and eval, until they are reopened.

        Raises:
            GateError: If an index is not a unit of this gate; nothing is closed then.
        """
        self.closed[self._units(indices)] = True

    def reopen(self) -> None:
        """Undoes every `close`."""
        self.closed.fill_(False)

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Unit `k` is what unit `order[k]` was, with all that is known of it.

        An optimizer that has seen the gate keeps its moments in the old order.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.copy_(tensor[order.to(tensor.device)])

    def forward(self) -> Tensor:
        """Same as `value`, so that a gate can be a node of a graph."""
        return self.value()

    def value(self) -> Tensor:
        """Current factors, float32, shape `[size]`.

        In training they hold this forward's sample of the noise: every use of the gate
        in one forward, and its recomputation under gradient checkpointing, sees the
        same factors. In eval they are deterministic.
        """
        return self.training_value() if self.training else self.eval_value()

    def eval_value(self) -> Tensor:
        """Factors without noise."""
        factors = self._clamp(self.parametrization.stretched(self.theta, None))
        return factors.masked_fill(self.closed | self.pruned, 0.0)

    def training_value(self) -> Tensor:
        """Factors with the noise of the current forward."""
        stretched = self.parametrization.stretched(self.theta, self.noise)
        factors = self._clamp(stretched).masked_fill(self.pruned | self.closed, 0.0)
        if self.straight_through:
            # Units that the budget pruned keep learning; those the user closed do not.
            closed = self.closed.clone()
            learning = (stretched - stretched.detach()).masked_fill(closed, 0)
            factors = factors.detach() + learning
        if factors.requires_grad and self.judged:
            factors.register_hook(self._feel)
        return factors

    def _feel(self, slope: Tensor) -> None:
        self.slope.add_(slope.detach().to(self.slope))

    def sample_noise(self) -> None:
        """Draws the noise of the next forward."""
        with torch.no_grad():
            self.parametrization.sample_(self.noise)

    def extra_repr(self) -> str:
        return f"{self.name!r}, kind={self.kind!r}, size={self.size}"

    def _clamp(self, stretched: Tensor) -> Tensor:
        return stretched.clamp(self.floor, 1.0)

    def _units(self, indices: Tensor | Sequence[int]) -> Tensor:
        units = torch.as_tensor(indices, device=self.closed.device)
        if units.numel() == 0:
            return units.long()
        if units.dtype == torch.bool or units.is_floating_point():
            raise GateError(
                f"gate {self.name}: indices are {units.dtype}, expected integers\n"
                "  For a mask, pass mask.nonzero().flatten()."
            )
        bad = units[(units < 0) | (units >= self.size)]
        if bad.numel():
            raise GateError(
                f"index {int(bad[0])} is out of range for gate {self.name} "
                f"with {self.size} units\n"
                f"  Its units are 0 to {self.size - 1}."
            )
        return units.long()
