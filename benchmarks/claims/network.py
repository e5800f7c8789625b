"""A small residual network, three views of digits, and how it is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fgcompile

KNOWN, FEW, UNSEEN = slice(0, 900), slice(900, 1100), slice(1100, None)
"""Rows to learn from at first, to adapt with, and to score on."""

STEPS, BATCH, LR = 625, 32, 1e-2
WIDTH, HIDDEN = 48, 96
EXAMPLE = (torch.zeros(2, 64),)


class Rows(NamedTuple):
    """Pictures `[rows 64]` and their digits `[rows]`."""

    x: Tensor
    y: Tensor

    def part(self, rows: slice) -> Rows:
        """Some of the rows."""
        return Rows(self.x[rows], self.y[rows])


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "upright": lambda pictures: pictures,
    "right": lambda pictures: pictures.roll(1, -1),
    "down": lambda pictures: pictures.roll(1, -2),
}


@cache
def digits(view: str) -> Rows:
    """All rows in one view, in the order of scikit-learn."""
    x, y = load_digits(return_X_y=True)
    pictures = torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) / 16
    return Rows(VIEWS[view](pictures).flatten(1), torch.tensor(y))


class Block(nn.Module):
    """Adds what a hidden layer makes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.down(F.gelu(self.up(x)))


class Network(nn.Module):
    """From pictures to logits of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[rows 10]`."""
        return self.head(self.blocks(self.stem(x)))


def fit(model: Any, rows: Rows, seed: int) -> Any:
    """Trains what requires gradients, with the gates' term where there is one."""
    generator = torch.Generator().manual_seed(seed)
    gated = any("fgcompile_gates" in name for name, _ in model.named_parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, weight_decay=0.0)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(rows.y), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(rows.x[chosen]), rows.y[chosen])
        optimizer.zero_grad()
        (loss + fgcompile.penalty(model) if gated else loss).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, view: str) -> float:
    """Of the rows that nothing was trained on."""
    rows = digits(view).part(UNSEEN)
    return float((model(rows.x).argmax(-1) == rows.y).float().mean())


def pretrained(seed: int) -> Network:
    """The network that knows upright digits."""
    torch.manual_seed(seed)
    model: Network = fit(Network(), digits("upright").part(KNOWN), seed)
    return model
