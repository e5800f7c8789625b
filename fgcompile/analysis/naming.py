"""Names of groups: the module that their members share, and the kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def group_name(kind: str, members: Sequence[tuple[str, int]]) -> str:
    """A name for a group of that kind with members (parameter, dim).

    >>> group_name("mlp", [("h.3.mlp.up.weight", 0), ("h.3.mlp.down.weight", 1)])
    'h.3.mlp'
    >>> group_name("qk", [("h.0.attn.q.weight", 0), ("h.0.attn.k.weight", 0)])
    'h.0.attn.qk'
    >>> group_name("other", [("embedding.weight", 0)])
    'embedding.weight:0'
    """
    if not members:
        return kind
    if kind == "other":
        name, dim = members[0]
        return f"{name}:{dim}"
    path = common_path([name.rpartition(".")[0] for name, _ in members])
    if path.rpartition(".")[2] == kind:
        return path
    return f"{path}.{kind}" if path else kind


def common_path(paths: Sequence[str]) -> str:
    """Longest dotted path that all paths begin with.

    >>> common_path(["a.b.c", "a.b.d"])
    'a.b'
    """
    split = [path.split(".") if path else [] for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def distinct(names: Sequence[str]) -> list[str]:
    """`names`, numbered where they repeat: "a", "a.2"."""
    seen: Counter[str] = Counter()
    taken = set(names)
    result = []
    for name in names:
        seen[name] += 1
        unique = name
        while seen[name] > 1 and unique in taken:
            unique = f"{name}.{seen[name]}"
            seen[name] += unique in taken
        taken.add(unique)
        result.append(unique)
    return result
