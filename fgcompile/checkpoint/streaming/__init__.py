"""Lowering checkpoints that are larger than memory: one tensor at a time."""

from __future__ import annotations

from fgcompile.checkpoint.streaming.lower import Progress, lower_checkpoint

__all__ = ["Progress", "lower_checkpoint"]
