"""How a logit becomes a factor: one small class per published gate.

Every parametrisation first maps a logit to an unbounded `stretched` value; the factor
is that value clamped to [0, 1], so that exact zeros and exact ones both occur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fgcompile.errors import GateError


class Parametrization(Protocol):
    """Maps logits (float32, shape `[size]`) to factors."""

    @property
    def trainable(self) -> bool:
        """Whether training moves the logits."""

    @property
    def span(self) -> float:
        """Distance between the logits of a fully open and of a closed gate."""

    @property
    def bound(self) -> float:
        """Largest magnitude that a logit may reach."""

    def initial(self, size: int, generator: torch.Generator) -> Tensor:
        """Logits at the start of training."""

    def sample_(self, noise: Tensor) -> None:
        """Overwrites `noise` with one sample for one forward."""

    def stretched(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        """Factor before it is clamped; `noise` is None in eval."""

    def openness(self, theta: Tensor) -> Tensor:
        """Smooth stand-in for "the factor is not 0", in [0, 1]."""


@dataclass(frozen=True)
class FineGates:
    """`clamp(tanh(theta) + noise + 0.5, 0, 1)`.

    Source: FineGates (arXiv 2412.12951 and 2602.09169), the authors' code: logits
    start at N(1, 0.1), noise has deviation 0.1, and the openness is
    `Phi((tanh(theta) + 0.5) / 0.5)`, whose 0.5 is not the deviation of the noise.

    Attributes:
        mean: Mean of the logits at the start.
        std: Their standard deviation.
        noise: Standard deviation of the noise in training.
        sigma: Width of the openness.
        bound: Largest magnitude of a logit. The paper has none; a finite one lets
            a gate that was pushed far beyond closed come back.
    """

    mean: float = 1.0
    std: float = 0.1
    noise: float = 0.1
    sigma: float = 0.5
    bound: float = math.inf
    trainable = True
    span = 2 * math.atanh(0.5)

    def initial(self, size: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(size, generator=generator)

    def sample_(self, noise: Tensor) -> None:
        noise.normal_().mul_(self.noise)

    def stretched(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        shifted = theta.tanh() + 0.5
        return shifted if noise is None else shifted + noise

    def openness(self, theta: Tensor) -> Tensor:
        return torch.special.ndtr((theta.tanh() + 0.5) / self.sigma)


@dataclass(frozen=True)
class HardConcrete:
    """A stretched and clamped binary concrete variable.

    Source: Louizos et al. 2018 (arXiv 1712.01312), section 2.2 and the authors' code:
    limits -0.1 and 1.1, temperature 2/3, logits kept in [ln 0.01, ln 100]; the eval
    factor uses no temperature.

    Attributes:
        mean: Mean of the logits at the start.
        std: Their standard deviation.
    """

    mean: float = 0.0
    std: float = 0.01
    trainable = True
    span = 2 * math.log(11.0)
    bound = math.log(100.0)

    low = -0.1
    high = 1.1
    temperature = 2 / 3
    edge = 1e-6

    def initial(self, size: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(size, generator=generator)

    def sample_(self, noise: Tensor) -> None:
        noise.uniform_(self.edge, 1 - self.edge).logit_()

    def stretched(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        if noise is not None:
            theta = (theta + noise) / self.temperature
        return theta.sigmoid() * (self.high - self.low) + self.low

    def openness(self, theta: Tensor) -> Tensor:
        shift = self.temperature * math.log(-self.low / self.high)
        closed = torch.sigmoid(shift - theta)
        return 1 - closed.clamp(self.edge, 1 - self.edge)


@dataclass(frozen=True)
class Plain:
    """Always 1; only `close` changes it, and no optimizer."""

    trainable = False
    span = 1.0
    bound = math.inf

    def initial(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.ones(size)

    def sample_(self, noise: Tensor) -> None:
        noise.zero_()

    def stretched(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        return torch.ones_like(theta)

    def openness(self, theta: Tensor) -> Tensor:
        return torch.ones_like(theta)


_BY_NAME = {"finegates": FineGates, "hard_concrete": HardConcrete, "plain": Plain}


def parametrization(name: str, **options: float) -> Parametrization:
    """The parametrisation called `name`; `options` override its published values.

    Raises:
        GateError: If there is none of that name, or it has no such option.
    """
    if name not in _BY_NAME:
        raise GateError(f"no gate called {name!r}; there are {', '.join(_BY_NAME)}")
    cls = _BY_NAME[name]
    known = getattr(cls, "__dataclass_fields__")  # noqa: B009
    if unknown := sorted(options.keys() - known.keys()):
        raise GateError(
            f"gate {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}"
        )
    return cls(**options)
