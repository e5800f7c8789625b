"""Which size each number in a module's attributes stands for.

A module that holds 12 in `num_heads` says nowhere that this is dim 2 of the value that
it views. But every module of its class holds a number there, and the sizes that its
code makes and its parameters have are known before and after lowering. A *role* is a
size, found in the same place in every module of the class, that equals the number in
all of them; what the role's size has become is what the number should be.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fgcompile.program import Program, module_path
from fgcompile.rules.shapes import hidden_shape, tensor_of
from fgcompile.targets.module.slots import Slot, slots_of

Role = tuple[str, int, int]
"""A parameter's name or a node's number in its module, an output, and a dim."""
Numbers = tuple[int, ...]
"""One number for each module of a class."""

_OPTIONS = 4


@dataclass(frozen=True)
class Choice:
    """What a slot of all modules of one class may become.

    Attributes:
        modules: Paths of the modules.
        slot: The slot.
        options: Numbers for each module, the most likely ones first.
    """

    modules: tuple[str, ...]
    slot: Slot
    options: tuple[Numbers, ...]


Sizes = dict[str, dict[Role, tuple[int, int]]]
"""Sizes before and after, by module path and role."""


def choices(model: nn.Module, sizes: Sizes) -> list[Choice]:
    """All slots of `model` that may have to change, with what they may become.

    Args:
        model: Modules with their original attributes and parameters.
        sizes: From `role_sizes`.
    """
    classes: dict[type, list[str]] = {}
    for path, module in model.named_modules():
        if path in sizes:
            classes.setdefault(type(module), []).append(path)
    return [
        choice
        for cls, paths in classes.items()
        for choice in _choices_of(model, cls, paths, sizes)
    ]


def _choices_of(
    model: nn.Module,
    cls: type,
    paths: list[str],
    sizes: Sizes,
) -> Iterator[Choice]:
    modules = [model.get_submodule(path) for path in paths]
    shared = set(slots_of(modules[0]))
    for module in modules[1:]:
        shared &= set(slots_of(module))
    roles = set(sizes[paths[0]])
    for path in paths[1:]:
        roles &= set(sizes[path])
    ties = _ties(cls)
    for slot in (s for s in slots_of(modules[0]) if s in shared):
        old = tuple(slot.read(module) for module in modules)
        votes: Counter[Numbers] = Counter()
        for role in ties.get(slot, roles) & roles:
            found = [sizes[path][role] for path in paths]
            if tuple(was for was, _ in found) == old:
                votes[tuple(now for _, now in found)] += 1
        changed = [numbers for numbers, _ in votes.most_common() if numbers != old]
        changed = changed[:_OPTIONS]
        if changed:
            options = _ordered(old, changed, slot, slot in ties and old not in votes)
            yield Choice(tuple(paths), slot, options)


def _ordered(
    old: Numbers, changed: list[Numbers], slot: Slot, certain: bool
) -> tuple[Numbers, ...]:
    """A shared object is changed last, an attribute of the module itself first."""
    if certain:
        return tuple(changed)
    return (old, *changed) if slot.inside else (*changed, old)


def role_sizes(
    before: Program, after: Program, names: Mapping[str, list[str]]
) -> Sizes:
    """The sizes of all parameters and of what every module computes.

    Args:
        before: The program of the model.
        after: The same, lowered; its nodes have the same names.
        names: All names of each parameter, by each of them.
    """
    found: Sizes = {}
    for name, was, now in _parameter_sizes(before, after):
        for path, local in _owners(names[name]):
            for dim, pair in enumerate(zip(was, now, strict=True)):
                found.setdefault(path, {})[local, 0, dim] = pair
    later = {node.name: node for node in after.graph.nodes}
    counts: Counter[str] = Counter()
    for node in before.graph.nodes:
        path = module_path(node)
        number = str(counts[path])
        counts[path] += 1
        if node.name in later and node.op == "call_function":
            pairs = zip(_outputs(node), _outputs(later[node.name]), strict=False)
            for output, (was, now) in enumerate(pairs):
                for dim, pair in enumerate(zip(was, now, strict=False)):
                    found.setdefault(path, {})[number, output, dim] = pair
    return found


def _parameter_sizes(
    before: Program, after: Program
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name, shape before and shape after of every parameter that both read."""
    old, new = _parameters(before), _parameters(after)
    for name in sorted(old.keys() & new.keys()):
        was, now = before.parameter(old[name]), after.parameter(new[name])
        yield name, tuple(was.shape), tuple(now.shape)


def _owners(names: list[str]) -> Iterator[tuple[str, str]]:
    """Paths of all modules that hold a parameter called so, and its name in them.

    For "a.b.w" they are "a.b", "a" and "".
    """
    for name in names:
        path = name
        while path:
            path = path.rpartition(".")[0]
            yield path, name.removeprefix(f"{path}." if path else "")


def _parameters(program: Program) -> dict[str, Node]:
    return {
        str(node.target): node
        for node in program.graph.nodes
        if node.op == "get_attr" and program.is_parameter(node)
    }


def _outputs(node: Node) -> list[tuple[int, ...]]:
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return [hidden_shape(v) for v in value if hasattr(v, "shape")]
    tensor = tensor_of(node)
    return [] if tensor is None else [hidden_shape(tensor)]


@cache
def _ties(cls: type) -> dict[Slot, frozenset[Role]]:
    """Roles that hold in a probe of a layer class: sizes that are all different.

    In a model whose every linear layer is square, nothing tells `in_features` from
    `out_features`; in `Linear(3, 5)` the weight's shape does.
    """
    module = _probe(cls)
    if module is None:
        return {}
    return {
        slot: frozenset(
            (name, 0, dim)
            for name, parameter in module.named_parameters(recurse=False)
            for dim, size in enumerate(parameter.shape)
            if size == slot.read(module)
        )
        for slot in slots_of(module)
    }


def _probe(cls: type) -> Any:
    """A small module of a layer class whose sizes all differ, None if there is none."""
    required = [
        p
        for p in list(inspect.signature(cls).parameters.values())
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if not required or any(p.annotation not in (int, "int") for p in required):
        return None
    try:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn
            module = cls(*(11, 13, 17, 19)[: len(required)])
    except Exception:
        return None
    return None if list(module.children()) else module
