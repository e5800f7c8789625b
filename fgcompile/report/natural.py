"""Orders and shortens qualified names the way people read them."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key with numbers as numbers: layer.2 comes before layer.10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in _NUMBER.split(name)
        if part
    )


def common_module(names: list[str]) -> str:
    """Longest module path that all of these names lie in."""
    paths = [name.split(".") for name in names]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
