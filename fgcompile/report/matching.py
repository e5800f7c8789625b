"""Which node of one graph is which node of the other.

Generated names and positions in a file say nothing, so neither is used. Six
attempts follow, each on what the one before left over, from the surest to the
loosest; nodes that share a key are paired in canonical order, and only where
both graphs have equally many:

1. the same operator, attributes and module, fed and read by the same all the
   way up and down (colour refinement in both directions);
2. the same shape of graph all the way up and down: a rename, a pruning;
3. the same module path and operator, aligned within that module;
4. the same shape of graph all the way up, then all the way down: what lies
   before and behind an insertion;
5. the same surroundings within few steps, the widest first;
6. aligned between the pairs that are known, by longest common subsequence.

Graph isomorphism of labelled, ordered dataflow graphs needs no search: a node's
ancestors in operand order identify it. networkx's isomorphism and edit distance
search over unordered neighbours, and take exponential time on repeated layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher

from fgcompile.report.colours import Colours, View
from fgcompile.report.ports import match_ports
from fgcompile.report.summary import (
    Constant,
    ModelSummary,
    Node,
    ParameterRef,
)

_STEPS = (6, 4, 3, 2, 1)


class Matching:
    """Pairs of nodes, and what stayed alone.

    Attributes:
        after_of: Node of `before` -> node of `after`.
        before_of: The reverse.
    """

    def __init__(self) -> None:
        self.after_of: dict[int, int] = {}
        self.before_of: dict[int, int] = {}

    def add(self, before: int, after: int) -> None:
        self.after_of[before] = after
        self.before_of[after] = before


def match_nodes(before: ModelSummary, after: ModelSummary) -> Matching:
    """Pair the nodes of two graphs of the same dialect; each node at most once."""
    matching = Matching()
    if before.dialect != after.dialect:
        return matching
    pairs = dict(match_ports(before.inputs, after.inputs))
    names = {after: before for before, after in pairs.items()}
    old = View(before, {index: f"shared {index}" for index in pairs})
    new = View(after, {index: f"shared {names[index]}" for index in names})
    colours = Colours()
    exact = [colours.both_ways(view, _exact_label) for view in (old, new)]
    _pair(matching, old, new, exact[0], exact[1])
    shape = [colours.both_ways(view, _op_label) for view in (old, new)]
    _pair(matching, old, new, shape[0], shape[1])
    _align_modules(matching, old, new)
    for walk in (colours.upwards, colours.downwards):
        sides = [walk(view, _op_label) for view in (old, new)]
        _pair(matching, old, new, sides[0], sides[1])
    for steps in _STEPS:
        near = [colours.within(view, steps) for view in (old, new)]
        _pair(matching, old, new, near[0], near[1], only_unique=True)
    _align_rest(matching, old, new)
    return matching


def _exact_label(node: Node) -> Hashable:
    return (node.op, node.attributes, node.module, node.scope)


def _op_label(node: Node) -> Hashable:
    return (node.op, node.scope)


def _pair(
    matching: Matching,
    old: View,
    new: View,
    old_keys: Sequence[int],
    new_keys: Sequence[int],
    only_unique: bool = False,
) -> None:
    """Pair what is left and has equal keys, in canonical order."""
    wanted: dict[int, list[int]] = defaultdict(list)
    found: dict[int, list[int]] = defaultdict(list)
    for index in old.order:
        if index not in matching.after_of:
            wanted[old_keys[index]].append(index)
    for index in new.order:
        if index not in matching.before_of:
            found[new_keys[index]].append(index)
    for key, candidates in wanted.items():
        partners = found.get(key, [])
        if len(partners) == len(candidates) and not (
            only_unique and len(candidates) > 1
        ):
            for before, after in zip(candidates, partners, strict=True):
                if _compatible(old, new, before, after):
                    matching.add(before, after)


def _align_modules(matching: Matching, old: View, new: View) -> None:
    """Pair nodes of the same module and operator, in that module's own order."""
    new_modules = _by_module(new, matching.before_of)
    for module, candidates in _by_module(old, matching.after_of).items():
        partners = new_modules.get(module, [])
        _align(matching, old, new, candidates, partners, _rich_label)
        rest = [i for i in candidates if i not in matching.after_of]
        others = [i for i in partners if i not in matching.before_of]
        _align(matching, old, new, rest, others, _op_label)


def _by_module(view: View, done: dict[int, int]) -> dict[str, list[int]]:
    modules: dict[str, list[int]] = defaultdict(list)
    for index in view.order:
        if index not in done and view.nodes[index].module:
            modules[view.nodes[index].module].append(index)
    return modules


def _rich_label(node: Node) -> Hashable:
    known = tuple(
        operand.label if isinstance(operand, ParameterRef) else operand.text
        for operand in node.operands
        if isinstance(operand, (ParameterRef, Constant))
    )
    return (node.op, node.scope, node.attributes, known)


def _align_rest(matching: Matching, old: View, new: View) -> None:
    """Align what is left between the pairs that are known."""
    if len(matching.after_of) == len(old.nodes):
        return
    for label in (_rich_label, _op_label):
        left = [_anchored(matching.after_of, old, i, label) for i in old.order]
        pairs = matching.before_of
        right = [
            ("pair", i) if i in pairs else ("free", label(new.nodes[i]))
            for i in new.order
        ]
        for before, after in _common(left, right):
            first, second = old.order[before], new.order[after]
            if first not in matching.after_of and _compatible(old, new, first, second):
                matching.add(first, second)


def _anchored(
    after_of: dict[int, int], view: View, index: int, label: Callable[[Node], Hashable]
) -> Hashable:
    if index in after_of:
        return ("pair", after_of[index])
    return ("free", label(view.nodes[index]))


def _compatible(old: View, new: View, before: int, after: int) -> bool:
    """Nodes of two modules are not the same, unless the module was renamed.

    A renamed module is one that only one of the two graphs knows.
    """
    one, two = old.nodes[before].module, new.nodes[after].module
    renamed = one not in new.modules and two not in old.modules
    return not one or not two or one == two or renamed


def _align(
    matching: Matching,
    old: View,
    new: View,
    candidates: Sequence[int],
    partners: Sequence[int],
    label: Callable[[Node], Hashable],
) -> None:
    left = [label(old.nodes[index]) for index in candidates]
    right = [label(new.nodes[index]) for index in partners]
    for before, after in _common(left, right):
        matching.add(candidates[before], partners[after])


def _common(
    left: Sequence[Hashable], right: Sequence[Hashable]
) -> list[tuple[int, int]]:
    """Positions of a long common subsequence."""
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    return [
        (block.a + step, block.b + step)
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    ]
