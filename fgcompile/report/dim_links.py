"""Which dims of what a node reads and makes belong together.

A link joins two dims, each as (place, dim): place is an operand slot, or RESULT
for the first result. Only dims whose size changed are ever followed, so a link
too many between dims that did not change does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from fgcompile.report.cost import operand_shape
from fgcompile.report.roles import is_convolution, is_matmul, is_norm, role_of
from fgcompile.report.summary import ModelSummary, Node, ParameterRef

RESULT = -1
Shape = tuple[int, ...]
End = tuple[int, int]


@dataclass(frozen=True)
class Link:
    """Two dims that change together.

    `inner` is the product of the dims that a reshape folds below `second`: 32 where
    a dim of 12 heads of size 32 becomes [12, 32]. It is None without a reshape.
    """

    first: End
    second: End
    inner: int | None = None


_RESHAPES = {
    "aten.view",
    "aten.reshape",
    "aten._unsafe_view",
    "aten.flatten",
    "aten.unflatten",
    "aten.unsqueeze",
    "aten.squeeze",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "builtin.flatten",
    "method.view",
    "method.reshape",
}
_ATTENTION = ("aten.scaled_dot_product_attention", "Attention")


def links_of(node: Node, summary: ModelSummary) -> list[Link]:
    """All links of one node, at the summary's stated shapes."""
    shapes = [operand_shape(operand, summary) for operand in node.operands]
    result = node.sizes[0] if node.sizes else None
    links = list(_data_links(node, shapes, result))
    if _moves(node, result):
        return links
    for slot, operand in enumerate(node.operands):
        if isinstance(operand, ParameterRef):
            links += _stored_links(node, slot, shapes, result)
    return links


def _stored_links(
    node: Node, slot: int, shapes: Sequence[Shape | None], result: Shape | None
) -> Iterator[Link]:
    shape = shapes[slot]
    if shape is None or result is None:
        return
    role = role_of(node, slot, len(shape))
    if role is None:
        yield from _elementwise(slot, shape, result, _channel_dim(node, result))
        return
    data = _data_slot(node, slot)
    for dim, letter in enumerate(role):
        if letter == "o":
            swapped = slot == 0 and is_matmul(node)
            out = -2 if swapped else _channel_dim(node, result)
            yield Link((slot, dim), (RESULT, out % len(result)))
        elif letter == "i" and (source := shapes[data]) is not None:
            swapped = slot == 0 and is_matmul(node)
            channel = -2 if swapped else _channel_dim(node, source)
            yield Link((slot, dim), (data, channel % len(source)))
        elif letter == "g":
            yield Link((slot, dim), (RESULT, dim % len(result)))


def _elementwise(slot: int, shape: Shape, result: Shape, channel: int) -> list[Link]:
    if len(shape) == 1:
        return [Link((slot, 0), (RESULT, channel % len(result)))] if result else []
    offset = len(result) - len(shape)
    return [
        Link((slot, dim), (RESULT, dim + offset))
        for dim in range(len(shape))
        if dim + offset >= 0
    ]


def _channel_dim(node: Node, shape: Shape) -> int:
    """Dim 1 for convolutions and per-channel norms of images, else the last."""
    images = is_convolution(node) or (is_norm(node) and "layer" not in _plain(node))
    return 1 if images and "rms" not in _plain(node) and len(shape) > 1 else -1


def _plain(node: Node) -> str:
    return node.op.lower()


def _data_slot(node: Node, slot: int) -> int:
    if node.op == "aten.addmm":
        return 1
    return 1 if slot == 0 and is_matmul(node) else 0


def _data_links(
    node: Node, shapes: Sequence[Shape | None], result: Shape | None
) -> Iterator[Link]:
    data = [
        (slot, shape)
        for slot, shape in enumerate(shapes)
        if shape is not None
        and (_moves(node, result) or not isinstance(node.operands[slot], ParameterRef))
    ]
    if not data or result is None:
        return
    if node.op in _RESHAPES:
        yield from _reshape(data[0][1], result)
    elif (order := _permutation(node, result)) is not None:
        for dim, source in enumerate(order):
            yield Link((data[0][0], source), (RESULT, dim))
    elif node.op in _ATTENTION:
        yield from _attention(data[:3], result)
    elif is_matmul(node) and len(data) == 2:
        yield from _matmul(data, result)
    elif node.op.endswith(("einsum", "Einsum")):
        yield from _einsum(node, len(node.operands))
    elif not _contracts(node):
        yield from _aligned(data, result)


def _moves(node: Node, result: Shape | None) -> bool:
    """A reshape or transpose; a stored tensor is data like any other to it."""
    return node.op in _RESHAPES or _permutation(node, result or ()) is not None


def _contracts(node: Node) -> bool:
    """Its data dim is summed over with a weight: nothing of it is in the result."""
    return any(
        "i" in (role_of(node, slot, 2) or "")
        for slot, operand in enumerate(node.operands)
        if isinstance(operand, ParameterRef)
    )


def _reshape(before: Shape, after: Shape) -> Iterator[Link]:
    """Dims of the shortest runs whose products agree."""
    i = j = 0
    while i < len(before) and j < len(after):
        start, other = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right and (i < len(before) or j < len(after)):
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            else:
                return
        yield from _run(before[start:i], after[other:j], start, other)


def _run(old: Shape, new: Shape, start: int, other: int) -> Iterator[Link]:
    for a in range(len(old)):
        for b in range(len(new)):
            below = new[b + 1 :] if len(old) == 1 else old[a + 1 :]
            split = len(old) + len(new) > 2
            inner = _product(below) if split else None
            yield Link((0, start + a), (RESULT, other + b), inner)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _permutation(node: Node, result: Shape) -> list[int] | None:
    attributes = dict(node.attributes)
    rank = len(result)
    if node.op in ("Transpose", "aten.permute", "aten.numpy_T") and rank:
        text = attributes.get("perm") or attributes.get("dims")
        order = list(range(rank))[::-1] if text is None else _numbers(text)
        return [dim % rank for dim in order] if len(order) == rank else None
    if node.op in ("aten.transpose", "aten.t", "aten.mT") and rank > 1:
        order = list(range(rank))
        one = int(attributes.get("dim0", -2)) % rank
        two = int(attributes.get("dim1", -1)) % rank
        order[one], order[two] = order[two], order[one]
        return order
    return None


def _numbers(text: str) -> list[int]:
    """Whole numbers as an attribute's text lists them; none if it lists others."""
    found = re.fullmatch(r"\[(-?\d{1,9}(?:, -?\d{1,9})*)\]", text)
    return [int(number) for number in found[1].split(", ")] if found else []


def _attention(data: Sequence[tuple[int, Shape]], result: Shape) -> Iterator[Link]:
    if len(data) < 3:
        return
    (query, _), (key, _), (value, _) = data
    rank = len(result)
    for dim in range(max(rank - 2, 0)):
        for slot in (query, key, value):
            yield Link((slot, dim), (RESULT, dim))
    yield Link((query, rank - 1), (key, rank - 1))
    yield Link((value, rank - 1), (RESULT, rank - 1))
    if rank == 3:
        yield Link((query, rank - 1), (RESULT, rank - 1))


def _matmul(data: Sequence[tuple[int, Shape]], result: Shape) -> Iterator[Link]:
    (one, left), (two, right) = data
    if len(left) < 2 or len(right) < 2:
        return
    rank = len(result)
    yield Link((one, len(left) - 1), (two, len(right) - 2))
    yield Link((one, len(left) - 2), (RESULT, rank - 2))
    yield Link((two, len(right) - 1), (RESULT, rank - 1))
    for slot, shape in data:
        for dim in range(len(shape) - 2):
            yield Link((slot, dim), (RESULT, dim + rank - len(shape)))


def _einsum(node: Node, operands: int) -> Iterator[Link]:
    equation = dict(node.attributes).get("equation", "").replace(" ", "")
    if "." in equation or "->" not in equation:
        return
    terms, _, out = equation.partition("->")
    places = [*enumerate(terms.split(",")[:operands]), (RESULT, out)]
    for (one, left), (two, right) in combinations(places, 2):
        for letter in set(left) & set(right):
            yield Link((one, left.index(letter)), (two, right.index(letter)))


def _aligned(data: Sequence[tuple[int, Shape]], result: Shape) -> Iterator[Link]:
    """Equal ranks line up; otherwise dims of one size, from the right."""
    for slot, shape in data:
        if len(shape) == len(result):
            yield from (Link((slot, d), (RESULT, d)) for d in range(len(shape)))
        else:
            yield from _by_size(slot, shape, result)


def _by_size(slot: int, shape: Shape, result: Shape) -> Iterator[Link]:
    dim = len(shape) - 1
    for out in reversed(range(len(result))):
        while dim >= 0 and shape[dim] != result[out]:
            dim -= 1
        if dim < 0:
            return
        yield Link((slot, dim), (RESULT, out))
        dim -= 1
