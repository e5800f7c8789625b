"""What an operator does to dims: the rule type, and the table of rules.

A rule is a function from a node to data; the analyses that use the data are
elsewhere and never change when an operator is added:

    @dim_rule(torch.ops.mylib.swiglu.default)
    def swiglu(node):
        return DimRule("... i, ... i -> ... i", kind="pointwise", annihilators=(0, 1))

An operator without a rule keeps all its dims whole ("pinned") and is named in
the analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

Kind = Literal[
    "pointwise",
    "contraction",
    "join",
    "lookup",
    "mixing",
    "normalization",
    "reduction",
]
Operand = Node | str | None


@dataclass(frozen=True)
class DimRule:
    """How the dims of one operator's operands and output correspond.

    Attributes:
        pattern: Factor notation, see `fgcompile.rules.pattern`.
        kind: How values combine, which decides how zeros travel:
            `pointwise` each output element from the operands' elements beside it;
            `contraction` sum over the left-only factors of the product of operands;
            `join` each output element from one operand or another, beside it;
            `lookup` rows of the first operand, picked by the values of others;
            `mixing` each output element from whole rows along the pinned factors;
            `normalization` statistics over `statistics`, then scale and shift;
            `reduction` of one operand over its left-only factors.
        operands: Nodes that the pattern's operands stand for; names that earlier
            steps gave as `output`; None where absent. Default: the tensor arguments
            in order.
        annihilators: Pointwise and mixing: positions of operands in which a zero
            makes the result zero, whatever the others are (a product, a pooling).
        addends: Contraction only: positions of operands that are added to the sum.
        pinned: Factors that may not shrink, with the reason.
        statistics: Normalization: factors over which statistics are taken.
        zero_safe: Reduction: zeros may leave without changing the result (a sum)
            or with a repair that the lowering knows (a mean).
        sizes: Sizes of the factors of compound dims, all but one of each dim.
        output: Name of the result, for rules of several steps; "" for the node's.
        outputs: Number of tensors that the node returns, all with this pattern.
    """

    pattern: str
    kind: Kind = "contraction"
    operands: tuple[Operand, ...] | None = None
    annihilators: tuple[int, ...] = ()
    addends: tuple[int, ...] = ()
    pinned: Mapping[str, str] = field(default_factory=dict)
    statistics: tuple[str, ...] = ()
    zero_safe: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    output: str = ""
    outputs: int = 1


Rule = Callable[[Node], "DimRule | tuple[DimRule, ...] | None"]

_RULES: dict[str, Rule] = {}


def dim_rule(*targets: OpOverload | OpOverloadPacket | str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of `targets`.

    A target is an overload (`torch.ops.aten.linear.default`), a packet of
    overloads (`torch.ops.aten.linear`) or a qualified name (`"aten::linear"`), the
    last for operators of libraries that may not be installed. The function may
    return None where the operator, as used, has no rule: its dims are pinned.

    Raises:
        ValueError: If a target has a rule already; names both functions.
    """

    def register(rule: Rule) -> Rule:
        for name in map(_name, targets):
            if name in _RULES:
                old = _RULES[name]
                raise ValueError(
                    f"{name} has two dimension rules: {old.__module__}.{old.__name__} "
                    f"and {rule.__module__}.{rule.__name__}"
                )
            _RULES[name] = rule
        return rule

    return register


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator: of its overload, else of its packet, else None."""
    if not isinstance(target, OpOverload):
        return None
    packet = target._schema.name
    return _RULES.get(f"{packet}.{target._overloadname}") or _RULES.get(packet)


def registered_rules() -> Mapping[str, Rule]:
    """All rules by operator name, for documentation and tests."""
    return dict(sorted(_RULES.items()))


JOINS = ("aten::cat", "aten::stack")
"""Operators that join values along a dim: the analysis of planes knows them."""

_UNTAGGED = frozenset(
    (
        *("aten::__or__", "aten::__and__", "aten::__xor__", "aten::where"),
        *("aten::hardswish", "aten::log_sigmoid", "aten::special_ndtr"),
        *("aten::floor_divide", "aten::rsub"),
    )
)
"""Elementwise operators that PyTorch does not tag as such."""


def is_pointwise(target: Any) -> bool:
    """Whether the operator is elementwise over broadcast operands."""
    if not isinstance(target, OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target._schema.name in _UNTAGGED


def operand(node: Node, position: int = 0) -> Node:
    """The node that is the argument of `node` at `position`."""
    argument = node.args[position]
    assert isinstance(argument, Node), node.format_node()
    return argument


def _name(target: OpOverload | OpOverloadPacket | str) -> str:
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    return target._qualified_op_name
