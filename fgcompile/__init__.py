"""Trainable gates for any PyTorch model, lowered exactly to a smaller one."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("fgcompile")
