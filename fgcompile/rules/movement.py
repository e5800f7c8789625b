"""Movement operators: they only place elements, so they run on planes as they are.

A plane has the rank of its value, and size 1 along every dim where it says
nothing (batch, sequence, positions). `move` runs the node's own operator on a
plane; the functions here only keep arguments about such dims out of its way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fgcompile.program import arguments
from fgcompile.rules.registry import operand
from fgcompile.rules.shapes import (
    hidden_shape,
    hidden_size,
    tensor_of,
    trial_shapes,
)


class ImmovableError(Exception):
    """The plane cannot follow; the text says why its units are pinned."""


Mover = Callable[[Node, dict[str, Any], Tensor], list[Tensor]]

_MOVERS: dict[str, Mover] = {}


def movement(*names: str) -> Callable[[Mover], Mover]:
    """Register the decorated function for operators by qualified name."""

    def register(mover: Mover) -> Mover:
        for name in names:
            if name in _MOVERS:
                raise ValueError(f"{name} has two movement rules")
            _MOVERS[name] = mover
        return mover

    return register


def is_movement(node: Node) -> bool:
    """Whether the node only places elements of its first operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name in _MOVERS


def movement_names() -> tuple[str, ...]:
    """Qualified names of all movement operators, for documentation and tests."""
    return tuple(sorted(_MOVERS))


def move(node: Node, plane: Tensor) -> list[Tensor]:
    """The plane of each output of `node`, for one plane of its first operand.

    Raises:
        ImmovableError: If the operator mixes the plane's dim with a dynamic size.
    """
    mover = _MOVERS[node.target._schema.name]  # type: ignore[union-attr]
    return mover(node, arguments(node), plane)


@movement("aten::permute", "aten::transpose", "aten::t", "aten::numpy_T", "aten::mT")
@movement("aten::movedim", "aten::swapaxes", "aten::swapdims", "aten::adjoint")
@movement("aten::unsqueeze")
def _reorder(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    return [_call(node, plane)]


@movement("aten::squeeze")
def _squeeze(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    shape = _source(node).shape
    dims = a.get("dim", list(range(len(shape))))
    dims = [dims] if isinstance(dims, int) else dims
    dims = [d % len(shape) for d in dims]
    return [plane.squeeze([d for d in dims if _is_one(shape[d])])]


@movement("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten")
@movement("aten::unflatten", "aten::view_as", "aten::reshape_as")
def _reshape(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    source, target = _source(node), _target(node)
    moved = reshape_plane(plane, hidden_shape(source), hidden_shape(target))
    if any(map(_holds_both, (*source.shape, *target.shape))):
        _check_places(plane, moved, source, target)
    return [moved]


def _holds_both(size: Any) -> bool:
    """Whether a dim holds units and a dynamic size."""
    return not isinstance(size, int) and hidden_size(size) > 1


def _check_places(plane: Tensor, moved: Tensor, source: Tensor, target: Tensor) -> None:
    """In a dim that holds a dynamic size too, units lie beside each other.

    The plane says nothing of their order there: it is this one for all operators.
    """
    before, after = (
        _spread(p, shape)
        for p, shape in zip((plane, moved), trial_shapes(source, target), strict=True)
    )
    # Sizes that only fit each other if they are multiples of something may not do so.
    if not torch.equal(before.flatten(), after.flatten()):
        raise ImmovableError("its units lie apart in a dim with a dynamic size")


def _spread(plane: Tensor, shape: list[int]) -> Tensor:
    """`plane` at every element of a tensor of `shape`."""
    for dim, size in enumerate(shape):
        places = torch.arange(size) % plane.shape[dim]
        plane = plane.index_select(dim, places)
    return plane


def reshape_plane(
    plane: Tensor, before: tuple[int, ...], after: tuple[int, ...]
) -> Tensor:
    """`plane` of a value of hidden shape `before`, viewed as `after`.

    Raises:
        ImmovableError: If the static parts of the two shapes do not correspond.
    """
    groups = _dim_groups(before, after)
    source, target = [], []
    for old, new in groups:
        varies = any(plane.shape[d] > 1 for d in old)
        source += [before[d] if varies else 1 for d in old]
        target += [after[d] if varies else 1 for d in new]
    return _collapse(plane.expand(source).reshape(target))


def _dim_groups(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Minimal runs of dims with equal products on both sides."""
    if math.prod(before) != math.prod(after):
        raise ImmovableError(f"its static sizes {before} and {after} do not correspond")
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        left = right = 1
        while True:
            if left <= right and i < len(before) and (left < right or not old):
                left *= before[i]
                old.append(i)
                i += 1
            elif j < len(after) and (right < left or not new):
                right *= after[j]
                new.append(j)
                j += 1
            elif i < len(before) and not (left == right and old and new):
                left *= before[i]
                old.append(i)
                i += 1
            else:
                break
            if left == right and old and new:
                break
        groups.append((old, new))
    return groups


def _collapse(plane: Tensor) -> Tensor:
    """Size 1 along every dim on which the plane does not vary."""
    for dim, size in enumerate(plane.shape):
        if size > 1:
            first = plane.narrow(dim, 0, 1)
            if bool((plane == first).all()):
                plane = first
    return plane


@movement("aten::slice", "aten::narrow", "aten::flip", "aten::roll", "aten::select")
@movement("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unbind")
@movement("aten::repeat_interleave", "aten::tensor_split", "aten::unsafe_split")
@movement("aten::unsafe_chunk", "aten::diagonal")
def _along_dim(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    name = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
    dims = a.get("dim", a.get("dims"))
    if dims is None or dims == [] or name == "diagonal":
        raise ImmovableError(f"{name} without a dim")
    dims = [d % plane.dim() for d in (dims if isinstance(dims, list) else [dims])]
    if all(plane.shape[d] == 1 for d in dims):
        drops = name in ("select", "unbind")
        return [plane.squeeze(dims) if drops else plane] * _outputs(node)
    if any(_source(node).shape[d] != plane.shape[d] for d in dims):
        raise ImmovableError(f"{name} along a dim that holds batch or sequence too")
    moved = _call(node, plane)
    return list(moved) if isinstance(moved, (list, tuple)) else [moved]


@movement("aten::repeat", "aten::tile")
def _repeat(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    counts = list(a["repeats"] if "repeats" in a else a["dims"])
    counts = [1] * (plane.dim() - len(counts)) + counts
    plane = plane.reshape([1] * (len(counts) - plane.dim()) + list(plane.shape))
    # A repetition for each row of the batch puts the batch outside of the units.
    static = [c if isinstance(c, int) else hidden_size(c.meta["val"]) for c in counts]
    used = [c if n > 1 else 1 for c, n in zip(static, plane.shape, strict=True)]
    return [plane.repeat(used)]


@movement("aten::constant_pad_nd", "aten::pad")
def _pad(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    pad = list(a["pad"])
    padded = [plane.dim() - 1 - k // 2 for k, amount in enumerate(pad) if amount != 0]
    if a.get("mode", "constant") != "constant":
        if any(plane.shape[d] > 1 for d in padded):
            raise ImmovableError("padding that copies elements")
        return [plane]
    if a["value"] not in (None, 0) and any(plane.shape[d] == 1 for d in padded):
        raise ImmovableError("padding with numbers other than zero")
    for k in range(len(pad) // 2):
        if plane.shape[-1 - k] == 1:
            pad[2 * k : 2 * k + 2] = [0, 0]
    if not all(isinstance(p, int) for p in pad):
        raise ImmovableError("padding by a dynamic amount")
    return [torch.constant_pad_nd(plane, pad, -1)]


def adds_zeros(node: Node) -> bool:
    """Whether a movement operator fills places that no element comes to with zeros."""
    a = arguments(node)
    amounts = a.get("pad", a.get("padding", ()))
    some = any(not isinstance(amount, int) or amount > 0 for amount in amounts)
    return some and a.get("mode", "constant") == "constant"


@movement("aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::channel_shuffle")
def _whole(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    moved = _collapse(_call(node, plane.expand(hidden_shape(_source(node)))))
    return [moved]


@movement("aten::unfold")
def _windows(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    if plane.shape[a["dimension"]] > 1:
        raise ImmovableError("windows along its dim overlap")
    return [plane.unsqueeze(-1)]


@movement("aten::im2col")
def _patches(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    if plane.shape[-1] > 1 or plane.shape[-2] > 1:
        raise ImmovableError("patches overlap")
    # A patch is a column, in which each channel has its positions beside each other.
    positions = math.prod(a["kernel_size"]) if plane.shape[-3] > 1 else 1
    return [plane.squeeze(-1).repeat_interleave(positions, -2)]


@movement("aten::index")
def _index(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    """Indexing by constants; by data only along dims on which the plane is uniform."""
    indices: list[slice | Tensor] = []
    for dim, index in enumerate(a["indices"]):
        if index is None:
            indices.append(slice(None))
            continue
        tensor = tensor_of(index)
        assert tensor is not None
        if plane.shape[dim] == 1 and tensor.dtype != torch.bool:
            indices.append(torch.zeros([1] * tensor.dim(), dtype=torch.long))
            continue
        constant = constant_of(index)
        if constant is None or constant.dtype == torch.bool:
            raise ImmovableError("its index is data")
        indices.append(constant)
    return [plane[tuple(indices)]]


@movement("aten::index_select")
def _index_select(node: Node, a: dict[str, Any], plane: Tensor) -> list[Tensor]:
    if plane.shape[a["dim"]] == 1:
        return [plane]
    constant = constant_of(a["index"])
    if constant is None:
        raise ImmovableError("its index is data")
    return [plane.index_select(a["dim"], constant)]


_CONSTANT = "fgcompile_constant"
_COPIES = ("aten::lift_fresh_copy", "aten::clone", "aten::detach", "aten::_to_copy")
_LARGEST_INDEX = 1_000_000


def remember_constant(node: Node, tensor: Tensor) -> None:
    """Keeps a small integer tensor at hand: it may be an index."""
    small = tensor.numel() <= _LARGEST_INDEX and not tensor.is_meta
    if small and not tensor.is_floating_point() and not tensor.is_complex():
        node.meta[_CONSTANT] = tensor.cpu()


def constant_of(node: Node) -> Tensor | None:
    """The constant that an index node holds, None if it is data."""
    schema = getattr(node.target, "_schema", None)
    while schema is not None and schema.name in _COPIES:
        node = operand(node)
        schema = getattr(node.target, "_schema", None)
    constant: Tensor | None = node.meta.get(_CONSTANT)
    return constant


def _call(node: Node, plane: Tensor) -> Any:
    """The node's operator with `plane` in place of its first operand."""
    rest = node.args[1:]
    if any(isinstance(x, Node) for x in _leaves((rest, node.kwargs))):
        raise ImmovableError("an argument is a dynamic size")
    return node.target(plane, *rest, **node.kwargs)  # type: ignore[operator]


def _leaves(structure: Any) -> list[Any]:
    leaves: list[Any] = []
    torch.fx.map_arg(structure, leaves.append)
    return leaves


def _source(node: Node) -> Tensor:
    tensor = tensor_of(operand(node))
    assert tensor is not None
    return tensor


def _target(node: Node) -> Tensor:
    tensor = tensor_of(node)
    assert tensor is not None
    return tensor


def _outputs(node: Node) -> int:
    value = node.meta["val"]
    return len(value) if isinstance(value, (list, tuple)) else 1


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1
