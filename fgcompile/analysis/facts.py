"""Constants forward: which units hold a known value, for every input.

For each plane of each value, an array of the plane's shape: the constant that
all elements of a unit equal, NaN where they vary.

Rules:
(1) A vector parameter is constant everywhere; of other parameters, slices of zeros.
(2) Movement carries constants; what comes from elsewhere varies, and what is padded
    with zeros is constant only if it is zero.
(3) An elementwise operator is run on the constants themselves, and on buffers. What
    any of its operands varies at varies, unless a zero annihilates a product, or it
    is the same whether a mask is set there or not.
(4) A contraction is zero where for every contracted index some operand is zero;
    addends are added to that.
(5) A normalisation is its shift where its scale is zero; one that does not subtract a
    mean is zero where its operand is.
(6) What is joined is constant where all its parts agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.fx import Node

from fgcompile.analysis.execution import constant_tensors, run_either_way
from fgcompile.analysis.steps import Align, Array, Flow, Move, Slot
from fgcompile.program import Program, arguments, without_repeats
from fgcompile.rules.movement import adds_zeros
from fgcompile.rules.shapes import tensor_of


@dataclass
class Constants:
    """`planes[value][plane]`: constants; `zero[value]`: the whole value is zero.

    `buffers` are the tensors, such as running statistics, that hold no units, and
    what is computed of them alone.
    """

    planes: list[list[Array]] = field(default_factory=list)
    zero: list[bool] = field(default_factory=list)
    buffers: dict[Node, torch.Tensor] = field(default_factory=dict)

    def is_zero(self, slot: Slot) -> Array:
        """Where the slot's operand is zero, over the factors of its step."""
        if self.zero[slot.value]:
            return np.ones(slot.full, bool)
        return slot.spread(self.planes[slot.value][slot.plane] == 0)


def find_constants(program: Program, flow: Flow) -> Constants:
    """Constants of every value; needs real weights."""
    constants = Constants(
        [[np.full(p.shape, np.nan) for p in value.planes] for value in flow.values],
        [False] * len(flow.values),
        constant_tensors(program),
    )
    for name, index in flow.parameters.items():
        _parameter(program, flow, constants, name, index)
    for step in flow.steps:
        if isinstance(step, Move):
            _move(step, constants)
        elif isinstance(step, Align):
            _ALIGN[step.rule.kind](flow, step, constants)
            _settle(step, constants)
    return constants


def _parameter(
    program: Program, flow: Flow, constants: Constants, name: str, index: int
) -> None:
    """Rule (1)."""
    tensor = program.parameter(flow.values[index].node).detach().cpu()
    planes = constants.planes[index]
    if not tensor.numel():
        return
    varying = [k for k, size in enumerate(tensor.shape) if size > 1]
    if len(varying) == 1:
        known = tensor.double() if not tensor.is_complex() else _zeros_of(tensor)
        planes[0] = known.numpy().reshape(planes[0].shape)
    elif planes:
        shown = without_repeats(tensor)
        for plane, dim in enumerate(varying):
            dead = zero_slices(shown, dim).expand(tensor.shape[dim])
            planes[plane][dead.numpy().reshape(planes[plane].shape)] = 0.0
    constants.zero[index] = bool(planes) and bool((planes[0] == 0).all())
    if not planes:
        constants.zero[index] = bool((without_repeats(tensor) == 0).all())


def _zeros_of(tensor: torch.Tensor) -> torch.Tensor:
    """Zero where `tensor` is, else NaN: constants are real numbers."""
    return torch.where(tensor == 0, 0.0, torch.nan).double()


def zero_slices(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Which slices along `dim` hold nothing but zeros, `[tensor.shape[dim]]`.

    A weight has few zeros: a look at the beginning of a slice settles nearly all, so
    that the time does not grow with the tensor.
    """
    rows = tensor.movedim(dim, 0)
    first = rows[(slice(None), *(slice(_LOOK) for _ in range(rows.dim() - 1)))]
    dead = (first == 0).flatten(1).all(1)
    doubtful = dead.nonzero().flatten()
    if doubtful.numel():
        whole = rows.index_select(0, doubtful)
        dead[doubtful] = (whole == 0).flatten(1).all(1)
    return dead


_LOOK = 8


def _move(step: Move, constants: Constants) -> None:
    """Rule (2)."""
    for link in step.links:
        source = constants.planes[link.source][link.source_plane].reshape(-1)
        target = constants.planes[link.target][link.target_plane]
        here = (link.index >= 0) & np.isnan(target)
        target[here] = source[link.index[here]]
        if adds_zeros(step.node):
            # The same constant is not in all places.
            target[target != 0] = np.nan
    if all(constants.zero[v] for v in step.operands) and not _adds_elements(step):
        for v in step.outputs:
            constants.zero[v] = True


def _adds_elements(step: Move) -> bool:
    """Whether elements may come from elsewhere: other operands, or padding."""
    first = step.node.args[0]
    if isinstance(first, (tuple, list)):
        return len(step.operands) < len(first)
    return arguments(step.node).get("value") not in (None, 0)


def _pointwise(flow: Flow, step: Align, constants: Constants) -> None:
    """Rule (3)."""
    _annihilate(flow, step, constants)
    others = [s for v, s in _operands(step) if v is None and s is not None]
    if any(s not in constants.buffers and not _is_bool(s) for s in others):
        return
    for result in step.results:
        known = [s for s in step.slots if set(s.axes) <= set(result.axes)]
        planes = [constants.planes[s.value][s.plane] for s in known]
        if not any(np.isfinite(p).any() for p in planes):
            continue
        found = _evaluate(step, constants, result, {s.operand: s for s in known})
        plane = constants.planes[result.value][result.plane]
        # A buffer that varies along another dim makes another shape.
        if others and found is not None and found.shape != plane.shape:
            continue
        if found is not None and found.size == plane.size:
            found = found.reshape(plane.shape)
            plane[...] = np.where(np.isnan(plane), found, plane)


def _operands(step: Align) -> list[tuple[int | None, Node | None]]:
    return list(zip(step.operands, step.sources, strict=True))


def _is_bool(node: Node) -> bool:
    tensor = tensor_of(node)
    return tensor is not None and tensor.dtype == torch.bool


def _evaluate(
    step: Align, constants: Constants, result: Slot, slots: dict[int, Slot]
) -> Array | None:
    """The node's operator on planes of constants; None where it cannot be run so."""
    replaced: dict[Node, torch.Tensor] = {}
    choices: dict[Node, torch.Tensor] = {}
    varies = np.zeros(result.full, bool)
    for position, (value, source) in enumerate(_operands(step)):
        if source is None:
            continue
        if source in constants.buffers:
            replaced[source] = constants.buffers[source]
            continue
        fake = tensor_of(source)
        if fake is None or not (fake.is_floating_point() or fake.dtype == torch.bool):
            return None
        slot = slots.get(position)
        if slot is not None:
            array = constants.planes[slot.value][slot.plane]
        else:
            known = value is not None and constants.zero[value]
            array = np.full((1,) * fake.dim(), 0.0 if known else np.nan)
        tensor = torch.from_numpy(np.array(array))
        replaced[source] = tensor.to(fake.dtype)
        if fake.dtype == torch.bool and tensor.isnan().any():
            choices[source] = tensor
        elif slot is not None:
            varies = varies | slot.spread(np.isnan(array))
        elif np.isnan(array).any():
            return None
    found = run_either_way(step.node, replaced, choices)
    if found is None or found.size != varies.size:
        return None
    unknown = result.collect(np.broadcast_to(varies, result.full), found.shape)
    return np.where(unknown, np.nan, found)


def _annihilate(flow: Flow, step: Align, constants: Constants) -> None:
    """Zeros of annihilating operands, in every output plane that shows them."""
    for position in step.rule.annihilators:
        value = step.operands[position] if position < len(step.operands) else None
        if value is None:
            continue
        if constants.zero[value]:
            _all_zero(step, constants)
        for slot in (s for s in step.slots if s.operand == position):
            _copy_zeros(step, constants, slot, constants.is_zero(slot))


def _copy_zeros(step: Align, constants: Constants, slot: Slot, zero: Array) -> None:
    for result in step.results:
        if slot.axes and set(slot.axes) <= set(result.axes):
            plane = constants.planes[result.value][result.plane]
            wide = np.broadcast_to(zero, result.full)
            plane[result.collect(wide, plane.shape)] = 0.0


def _all_zero(step: Align, constants: Constants) -> None:
    for v in step.outputs:
        constants.zero[v] = True


def _contraction(flow: Flow, step: Align, constants: Constants) -> None:
    """Rule (4)."""
    addends = step.rule.addends
    for component in components(step):
        dead = _product_zeros(step, constants, component)
        inner = tuple(a for a in component if a in step.contracted)
        zero = dead.all(axis=inner, keepdims=True) if inner else dead
        results = [r for r in step.results if set(r.axes) <= set(component)]
        if not results and zero.all() and not _present(step, addends):
            _all_zero(step, constants)
        for result in results:
            plane = constants.planes[result.value][result.plane]
            plane[result.collect(_all_over(dead, result), plane.shape)] = 0.0
    if product_is_zero(step, constants) and not _present(step, addends):
        _all_zero(step, constants)
    if _present(step, addends):
        _add_addends(step, constants)


def _all_over(zero: Array, result: Slot) -> Array:
    """Where everything is zero that an element of the plane of `result` is made of."""
    extra = tuple(k for k, n in enumerate(zero.shape) if n > 1 and result.full[k] == 1)
    left = zero.all(axis=extra, keepdims=True) if extra else zero
    return np.broadcast_to(left, result.full)


def _present(step: Align, positions: tuple[int, ...]) -> bool:
    return any(p < len(step.sources) and step.sources[p] is not None for p in positions)


def product_operands(step: Align) -> list[int]:
    """Positions of the operands that are multiplied."""
    return [
        k
        for k in range(len(step.operands))
        if k not in step.rule.addends and step.dims[k]
    ]


def _product_zeros(
    step: Align, constants: Constants, component: tuple[int, ...]
) -> Array:
    shape = tuple(n if k in component else 1 for k, n in enumerate(step.sizes))
    dead = np.zeros(shape, bool)
    multiplied = product_operands(step)
    for slot in step.slots:
        if (
            slot.operand in multiplied
            and slot.axes
            and set(slot.axes) <= set(component)
        ):
            dead |= constants.is_zero(slot)
    return dead


def product_is_zero(step: Align, constants: Constants) -> bool:
    """Whether the sum of products is zero everywhere."""
    values = [step.operands[k] for k in product_operands(step)]
    if any(v is not None and constants.zero[v] for v in values):
        return True
    for component in components(step):
        sums = any(a in step.contracted for a in component)
        if sums and _product_zeros(step, constants, component).all():
            return True
    return False


def _add_addends(step: Align, constants: Constants) -> None:
    """Adds constants of addends where the sum of products is zero."""
    total = product_is_zero(step, constants)
    for result in step.results:
        plane = constants.planes[result.value][result.plane]
        known = np.where(total, 0.0, plane)
        for position in step.rule.addends:
            if position >= len(step.sources) or step.sources[position] is None:
                continue
            slots = [
                s
                for s in step.slots
                if s.operand == position and set(s.axes) <= set(result.axes)
            ]
            known = known + _addend(constants, slots, result, plane.shape)
        plane[...] = known


def _addend(
    constants: Constants, slots: list[Slot], result: Slot, shape: tuple[int, ...]
) -> Array:
    if not slots:
        return np.full(shape, np.nan)
    slot = slots[0]
    array = slot.spread(constants.planes[slot.value][slot.plane])
    return result.collect(np.broadcast_to(array, result.full), shape)


def _join(flow: Flow, step: Align, constants: Constants) -> None:
    """Rule (6)."""
    for result in step.results:
        plane = constants.planes[result.value][result.plane]
        parts = [
            _part(step, constants, position, result, plane.shape)
            for position, source in enumerate(step.sources)
            if source is not None
        ]
        same = np.all([part == parts[0] for part in parts], axis=0)
        plane[same] = parts[0][same]


def _part(
    step: Align,
    constants: Constants,
    position: int,
    result: Slot,
    shape: tuple[int, ...],
) -> Array:
    value = step.operands[position]
    slots = [
        s
        for s in step.slots
        if s.operand == position and s.axes and set(s.axes) <= set(result.axes)
    ]
    if not slots:
        fill = 0.0 if value is not None and constants.zero[value] else np.nan
        return np.full(shape, fill)
    return _addend(constants, slots, result, shape)


def _lookup(flow: Flow, step: Align, constants: Constants) -> None:
    for slot in step.slots:
        if slot.operand == 0:
            _copy_zeros(step, constants, slot, constants.is_zero(slot))


def _mixing(flow: Flow, step: Align, constants: Constants) -> None:
    _annihilate(flow, step, constants)


def _reduction(flow: Flow, step: Align, constants: Constants) -> None:
    for component in components(step):
        zero = _product_zeros(step, constants, component)
        inner = tuple(a for a in component if a in step.contracted)
        if inner and zero.all():
            _all_zero(step, constants)
        for result in (r for r in step.results if set(r.axes) <= set(component)):
            plane = constants.planes[result.value][result.plane]
            plane[result.collect(_all_over(zero, result), plane.shape)] = 0


def _normalization(flow: Flow, step: Align, constants: Constants) -> None:
    """Rule (5)."""
    _annihilate(flow, step, constants)
    scale = [s for s in step.slots if s.operand == 1]
    shift = {s.axes: s for s in step.slots if s.operand == 2}
    has_shift = len(step.operands) > 2
    for slot in scale:
        for result in (r for r in step.results if r.axes == slot.axes):
            plane = constants.planes[result.value][result.plane]
            off = result.collect(constants.is_zero(slot), plane.shape)
            value = np.zeros(plane.shape)
            if has_shift:
                other = shift.get(slot.axes)
                known = (
                    np.full(slot.full, np.nan)
                    if other is None
                    else other.spread(constants.planes[other.value][other.plane])
                )
                value = result.collect(known, plane.shape)
            plane[off] = value[off]


def _settle(step: Align, constants: Constants) -> None:
    """A value is zero as a whole if all units of one plane are, and conversely."""
    for v in step.outputs:
        planes = constants.planes[v]
        if any((p == 0).all() for p in planes):
            constants.zero[v] = True
        if constants.zero[v]:
            for plane in planes:
                plane[...] = 0.0


def components(step: Align) -> list[tuple[int, ...]]:
    """Axes of the step that planes of operands tie together, contracted ones too."""
    groups: list[set[int]] = []
    for slot in step.slots:
        tie = set(slot.axes)
        if not tie:
            continue
        touched = [g for g in groups if g & tie]
        groups = [g for g in groups if not g & tie] + [tie.union(*touched)]
    for result in step.results:
        tie = set(result.axes)
        touched = [g for g in groups if g & tie]
        groups = [g for g in groups if not g & tie] + [tie.union(*touched)]
    return sorted(tuple(sorted(g)) for g in groups)


_ALIGN = {
    "pointwise": _pointwise,
    "contraction": _contraction,
    "join": _join,
    "lookup": _lookup,
    "mixing": _mixing,
    "reduction": _reduction,
    "normalization": _normalization,
}
