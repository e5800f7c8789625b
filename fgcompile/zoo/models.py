"""Every model of the zoo; importing this fills the registry."""

from __future__ import annotations

from fgcompile.zoo import language, perception, plain
from fgcompile.zoo.registry import Entry, entries, entry

__all__ = ["Entry", "entries", "entry", "language", "perception", "plain"]
