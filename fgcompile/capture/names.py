"""Stable human names for the flattened outputs of a model."""

from __future__ import annotations

from torch.utils._pytree import TreeSpec


def output_names(spec: TreeSpec) -> list[str]:
    """One distinct name per leaf: field names, dict keys, else "output", "output_1".

    A nested leaf joins its keys by `_`: "hidden_states_0".
    """
    if spec.is_leaf():
        return ["output"]
    names = ["_".join(path) for path in _paths(spec)]
    return _distinct([_rooted(name) for name in names])


def _paths(spec: TreeSpec) -> list[tuple[str, ...]]:
    if spec.is_leaf():
        return [()]
    keys = _keys(spec)
    return [
        (key, *path)
        for key, child in zip(keys, spec.children(), strict=True)
        for path in _paths(child)
    ]


def _keys(spec: TreeSpec) -> list[str]:
    """Key of every child; the context of mappings and dataclasses lists them."""
    fields = getattr(spec.context, "_fields", None)
    context = fields if fields is not None else spec.context
    while isinstance(context, (list, tuple)) and context:
        if len(context) == spec.num_children and all(
            isinstance(key, (str, int)) for key in context
        ):
            return [str(key) for key in context]
        context = context[0]
    return [str(index) for index in range(spec.num_children)]


def _rooted(name: str) -> str:
    if not name[:1].isdigit():
        return name
    return "output" if name == "0" else f"output_{name}"


def _distinct(names: list[str]) -> list[str]:
    seen: set[str] = set()
    result = []
    for name in names:
        unique, count = name, 1
        while unique in seen:
            unique = f"{name}_{count}"
            count += 1
        seen.add(unique)
        result.append(unique)
    return result
