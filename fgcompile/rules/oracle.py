"""Does a rule tell the truth? `check_rule` runs the operator and finds out.

Every index of every dim of every operand is changed, one at a time, and the elements
of the output that move must be among those that the pattern allows. Zeros are put in
where the rule says that a zero hides something, and what it hides is changed. Of
movement operators, every element of the output must come from where the plane says.

A rule that allows less than it could is sound; one that allows too little is found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from fgcompile.errors import CouplingError
from fgcompile.rules.movement import (
    ImmovableError,
    is_movement,
    move,
    remember_constant,
)
from fgcompile.rules.pattern import Dim, PatternError, parse
from fgcompile.rules.pointwise import pointwise
from fgcompile.rules.registry import DimRule, is_pointwise, rule_for

_TOLERANCE = 1e-9


def check_rule(op: OpOverload, *args: Any, **kwargs: Any) -> None:
    """The rule of `op` holds for this call; tensors of floating point are best double.

    >>> check_rule(torch.ops.aten.mul.Tensor, torch.ones(2, 3), torch.ones(3))

    Args:
        op: An operator with a rule, tagged pointwise, or that only moves elements.
        args: Positional arguments, with sizes that differ from each other, above 1.
        kwargs: Keyword arguments.

    Raises:
        CouplingError: If there is no rule for this call, or it allows too little.
    """
    call = _Call.make(op, args, kwargs)
    if is_movement(call.node):
        _check_movement(call)
        return
    rules = _rules(call)
    try:
        # What a rule does not describe is pinned, whatever it does.
        described = {o for rule in rules for o in rule.operands or ()}
        for operand, tensor in call.tensors.items():
            for where, mask in _slices(tensor) if operand in described else ():
                _check_reach(call, rules, operand, mask, where)
        for rule in rules:
            if not rule.output and len(rules) == 1:
                _check_zeros(call, rule)
    except PatternError as error:
        raise CouplingError(
            f"the rule of {op} does not fit its example: {error}\n"
            f"  operands are {call.shapes}\n"
            "  Correct the pattern, or return None where the operator has no rule."
        ) from error


@dataclass(frozen=True)
class _Call:
    """An operator's call as a node, with real tensors in place of fake ones."""

    op: OpOverload
    node: Node
    tensors: dict[Node, Tensor]

    @classmethod
    def make(cls, op: OpOverload, args: Any, kwargs: Any) -> _Call:
        graph, tensors = Graph(), dict[Node, Tensor]()

        def placeholder(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            node = graph.placeholder(f"operand_{len(tensors)}")
            node.meta["val"] = tensors[node] = value
            remember_constant(node, value)
            return node

        new_args, new_kwargs = pytree.tree_map(placeholder, (args, kwargs))
        node = graph.call_function(op, new_args, new_kwargs)
        call = cls(op, node, tensors)
        node.meta["val"] = op(*pytree.tree_map(_copy, args), **kwargs)
        return call

    @property
    def shapes(self) -> str:
        return ", ".join(str(list(t.shape)) for t in self.tensors.values())

    def run(self, changed: dict[Node, Tensor]) -> list[Tensor]:
        """Outputs with some operands replaced."""

        def value(node: Node) -> Tensor:
            return changed.get(node, self.tensors[node]).clone()

        args: Any = torch.fx.map_arg(self.node.args, value)
        kwargs: Any = torch.fx.map_arg(self.node.kwargs, value)
        result = self.op(*args, **kwargs)
        return list(result) if isinstance(result, (tuple, list)) else [result]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _rules(call: _Call) -> tuple[DimRule, ...]:
    rule = rule_for(call.op)
    found = rule(call.node) if rule is not None else None
    if rule is None and is_pointwise(call.op):
        found = pointwise(call.node)
    if found is None:
        why = "its rule returns None for this call" if rule else "none is registered"
        raise CouplingError(
            f"no dimension rule for {call.op}: {why}\n"
            f"  operands are {call.shapes}\n"
            f'  Register one: @dim_rule("{call.op._schema.name}").'
        )
    rules = found if isinstance(found, tuple) else (found,)
    default = tuple(call.tensors)
    return tuple(
        r if r.operands is not None else replace(r, operands=default) for r in rules
    )


def _slices(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Masks of every index of every dim."""
    for dim, size in enumerate(tensor.shape):
        for index in range(size):
            mask = torch.zeros(tensor.shape, dtype=torch.bool)
            mask.select(dim, index).fill_(True)
            yield f"dim {dim}, index {index}", mask


def _changed(tensor: Tensor, mask: Tensor) -> Tensor:
    """`tensor` with other values where `mask` is set; integers stay in their range."""
    if tensor.dtype == torch.bool:
        other = ~tensor
    elif tensor.is_floating_point():
        other = tensor * 1.7 + 0.3
    else:
        low, high = int(tensor.min()), int(tensor.max())
        other = (tensor - low + 1) % (high - low + 1) + low
    return torch.where(mask, other, tensor)


def _check_reach(
    call: _Call, rules: tuple[DimRule, ...], operand: Node, mask: Tensor, where: str
) -> None:
    allowed = _reach(call, rules, {operand: mask})
    results = call.run({operand: _changed(call.tensors[operand], mask)})
    for k, (old, new) in enumerate(zip(call.run({}), results, strict=True)):
        if k >= rules[-1].outputs:
            break
        wrong = _moved(old, new) & ~allowed[k]
        if bool(wrong.any()):
            _fail(
                call,
                rules[-1],
                f"output {k} moves at {_first(wrong)} and {int(wrong.sum()) - 1} other "
                f"places when {operand.name} changes at {where}",
                "Give those dims a common factor, contract or pin it, or write _.",
            )


def _moved(old: Tensor, new: Tensor) -> Tensor:
    if old.shape != new.shape:
        return torch.ones(old.shape, dtype=torch.bool)
    if not old.is_floating_point():
        return old != new
    scale = old[old.isfinite()].abs().max().clamp(min=1.0) if old.numel() else 1.0
    return (old - new).abs() > _TOLERANCE * scale


def _reach(
    call: _Call, rules: tuple[DimRule, ...], touched: dict[Node, Tensor]
) -> list[Tensor]:
    """Per output, the elements that the rules let depend on the touched elements."""
    named: dict[str, Tensor] = {}
    for rule in rules:
        masks = [_mask_of(call, o, touched, named) for o in rule.operands or ()]
        layout = _Layout.make(rule, [None if m is None else m.shape for m in masks])
        wide = torch.zeros([1] * len(layout.order), dtype=torch.bool)
        for position, mask in enumerate(masks):
            if mask is not None:
                wide = wide | layout.spread(mask, position)
        whole = {*rule.pinned, *rule.statistics}
        for axis, factor in enumerate(layout.order):
            if factor in whole:
                wide = wide.any(axis, keepdim=True)
        if rule.output:
            named[rule.output] = layout.collect(wide, None)
            continue
        results = call.run({})[: rule.outputs]
        return [layout.collect(wide, tuple(r.shape)) for r in results]
    raise AssertionError("the last step of a rule has no name")


def _mask_of(
    call: _Call, operand: Any, touched: dict[Node, Tensor], named: dict[str, Tensor]
) -> Tensor | None:
    if operand is None:
        return None
    if isinstance(operand, str):
        return named[operand]
    shape = call.tensors[operand].shape
    return touched.get(operand, torch.zeros(shape, dtype=torch.bool))


@dataclass(frozen=True)
class _Layout:
    """The factors of a rule's operands and output, with their sizes."""

    rule: DimRule
    dims: list[tuple[Dim, ...]]
    order: tuple[str, ...]
    sizes: dict[str, int]

    @classmethod
    def make(cls, rule: DimRule, shapes: list[Any]) -> _Layout:
        pattern, sizes = parse(rule.pattern), dict(rule.sizes)
        dims: list[tuple[Dim, ...]] = []
        for position, shape in enumerate(shapes):
            dims.append(
                () if shape is None else pattern.operand_dims(position, len(shape))
            )
            for dim, size in zip(dims[-1], shape or (), strict=True):
                unknown = [f for f in dim if f not in rule.sizes]
                rest = math.prod(rule.sizes[f] for f in dim if f in rule.sizes)
                for factor in unknown:
                    if 1 != sizes.get(factor, 1) != size // rest != 1:
                        raise PatternError(
                            f"{factor} has sizes {sizes[factor]} and {size // rest}"
                        )
                    sizes[factor] = max(sizes.get(factor, 1), size // rest)
        return cls(rule, dims, tuple(sizes), sizes)

    def spread(self, mask: Tensor, position: int) -> Tensor:
        """`mask` of an operand over all factors; dims without one are merged."""
        split, labels = [], []
        for dim, size in zip(self.dims[position], mask.shape, strict=True):
            one = len(dim) <= 1
            split += [size] if one else [self.sizes[f] if size > 1 else 1 for f in dim]
            labels += list(dim) or [""]
        wide = mask.reshape(split)
        for k in reversed(range(len(labels))):
            if not labels[k]:
                wide = wide.any(k)
        known = [f for f in labels if f]
        wide = wide.permute([known.index(f) for f in self.order if f in known])
        sizes = iter(wide.shape)
        return wide.reshape([next(sizes) if f in known else 1 for f in self.order])

    def collect(self, wide: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """A mask over the factors as one of the output; contracted ones are merged."""
        pattern = parse(self.rule.pattern)
        rank = len(shape) if shape is not None else self._rank()
        dims = pattern.output_dims(rank)
        present = [f for dim in dims for f in dim if f in self.sizes]
        for axis, factor in enumerate(self.order):
            if factor not in present:
                wide = wide.any(axis, keepdim=True)
        wide = wide.expand([self.sizes[f] if f in present else 1 for f in self.order])
        rest = [k for k, f in enumerate(self.order) if f not in present]
        wide = wide.permute([*(self.order.index(f) for f in present), *rest])
        merged = [math.prod(self.sizes.get(f, 1) for f in dim) for dim in dims]
        result = wide.reshape(merged)
        return result if shape is None else result.expand(shape)

    def _rank(self) -> int:
        tokens = parse(self.rule.pattern).output
        widths = [sum(f.startswith("e") for f in self.order)] if "..." in tokens else []
        return sum(widths) + len(tokens) - len(widths)


def _check_zeros(call: _Call, rule: DimRule) -> None:
    """What zeros hide according to `rule`, they hide."""
    operands = rule.operands or ()
    shapes = [None if o is None else call.tensors[o].shape for o in operands]  # type: ignore[index]
    layout = _Layout.make(rule, shapes)
    hiding = list(rule.annihilators)
    if rule.kind == "contraction":
        hiding = [k for k in range(len(operands)) if k not in rule.addends]
    if rule.kind in ("lookup", "reduction"):
        hiding = [0]
    added = {
        o: torch.zeros_like(call.tensors[o])
        for k, o in enumerate(operands)
        if k in rule.addends and isinstance(o, Node)
    }
    for position in hiding:
        operand = operands[position] if position < len(operands) else None
        if isinstance(operand, Node):
            for where, mask in _slices(call.tensors[operand]):
                _check_zero(call, layout, position, mask, where, added)
    if rule.zero_safe:
        _check_zero_safe(call, operands[0])
    if rule.kind == "pointwise":
        _check_alike(call)


def _check_zero(
    call: _Call,
    layout: _Layout,
    position: int,
    mask: Tensor,
    where: str,
    added: dict[Node, Tensor],
) -> None:
    rule, operands = layout.rule, layout.rule.operands or ()
    operand = operands[position]
    assert isinstance(operand, Node)
    zeroed = added | {operand: call.tensors[operand].masked_fill(mask, 0)}
    result = call.run(zeroed)[0]
    # An element is zero if none of its terms comes from outside of the mask.
    zero = ~layout.collect(layout.spread(~mask, position), tuple(result.shape))
    wrong = zero & (result.double().abs() > _TOLERANCE)
    if bool(wrong.any()):
        _fail(
            call,
            rule,
            f"the output is not zero at {_first(wrong)} though {operand.name} is "
            f"zero at {where}",
            f"Take {position} out of `annihilators`, or choose another kind.",
        )
    if rule.kind == "contraction":
        _check_hidden(call, layout, position, mask, where, zeroed)


def _check_hidden(
    call: _Call,
    layout: _Layout,
    position: int,
    mask: Tensor,
    where: str,
    zeroed: dict[Node, Tensor],
) -> None:
    """The factors of a product that a zero multiplies are not seen."""
    operands = layout.rule.operands or ()
    base = call.run(zeroed)[0]
    for other, operand in enumerate(operands):
        if other in (position, *layout.rule.addends) or not isinstance(operand, Node):
            continue
        tensor = call.tensors[operand]
        seen = layout.spread(~mask, position)
        wide = layout.spread(torch.ones(tensor.shape, dtype=torch.bool), other)
        extra = [k for k, n in enumerate(wide.shape) if n == 1 and seen.shape[k] > 1]
        for axis in extra:
            seen = seen.any(axis, keepdim=True)
        hidden = [
            (place, one)
            for place, one in _slices(tensor)
            if not bool((layout.spread(one, other) & seen).any())
        ]
        for place, one in hidden:
            new = call.run(zeroed | {operand: _changed(tensor, one)})[0]
            wrong = _moved(base, new)
            if bool(wrong.any()):
                _fail(
                    call,
                    layout.rule,
                    f"the output moves at {_first(wrong)} when {operand.name} changes "
                    f"at {place}, which zeros at {where} should hide",
                    "It is no sum of products: choose another kind.",
                )


def _check_zero_safe(call: _Call, operand: Any) -> None:
    """Zeros that leave change nothing, or the count of a mean."""
    tensor = call.tensors[operand]
    full = call.run({})[0]
    for dim in range(tensor.dim()):
        size = tensor.shape[dim]
        zeroed = tensor.index_fill(dim, torch.tensor([0]), 0)
        result, fewer = (
            call.run({operand: t})[0] for t in (zeroed, zeroed.narrow(dim, 1, size - 1))
        )
        if fewer.shape != full.shape:
            continue
        if not any(
            torch.allclose(result, fewer * factor)
            for factor in (1.0, (size - 1) / size)
        ):
            _fail(
                call,
                None,
                f"a zero at dim {dim} cannot leave: the result is no sum or mean",
                "Set zero_safe=False, or pin the dims that are reduced.",
            )


def _check_alike(call: _Call) -> None:
    """An elementwise operator makes the same of the same, wherever it is."""
    same = {
        operand: tensor.flatten()[:1].expand(tensor.shape)
        for operand, tensor in call.tensors.items()
    }
    for k, result in enumerate(call.run(same)):
        wrong = _moved(result.flatten()[:1].expand(result.shape), result)
        if bool(wrong.any()):
            _fail(
                call,
                None,
                f"output {k} differs at {_first(wrong)} though all elements of the "
                "operands are alike",
                'It depends on places: it is no "pointwise", but "mixing".',
            )


def _check_movement(call: _Call) -> None:
    source = next(iter(call.tensors))
    tensor = call.tensors[source]
    # Padding is filled with zeros, which are no position. Some operators move floating
    # point only.
    positions = torch.arange(1, tensor.numel() + 1, dtype=torch.float64)
    results = call.run({source: positions.reshape(tensor.shape)})
    origins = [result.long() for result in results]
    refused = 0
    for dim, size in enumerate(tensor.shape):
        shape = [1] * tensor.dim()
        shape[dim] = size
        try:
            planes = move(call.node, torch.arange(size).reshape(shape))
        except ImmovableError:
            refused += 1
            continue
        for origin, plane in zip(origins, planes, strict=True):
            stride = math.prod(tensor.shape[dim + 1 :])
            index = (origin - 1) // stride % size
            wrong = (plane >= 0) & (origin > 0) & (plane != index)
            if bool(wrong.any()):
                _fail(
                    call,
                    None,
                    f"the element at {_first(wrong)} does not come from the index of "
                    f"dim {dim} that its plane says",
                    "Correct the function registered with @movement.",
                )
    if refused == tensor.dim():
        raise CouplingError(
            f"no plane can follow {call.op}\n  operands are {call.shapes}\n"
            "  It pins every dim: register no movement for it."
        )


def _first(wrong: Tensor) -> list[int]:
    return wrong.nonzero()[0].tolist()


def _fail(call: _Call, rule: DimRule | None, fact: str, remedy: str) -> None:
    pattern = f': "{rule.pattern}", {rule.kind}' if rule is not None else ""
    raise CouplingError(
        f"the rule of {call.op} is wrong{pattern}\n  {fact}\n"
        f"  operands are {call.shapes}\n  {remedy}"
    )
