"""Low-rank updates in a graph: `x W^T + s (x A^T) B^T`, however they came there.

LoRA by any library leaves this pattern. The update is a part of the matrix beside it,
and its inner dim is no hidden layer: gating it would prune the rank of the update, and
is lost where the update is merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from fgcompile.analysis.coupling import Analysis

aten = torch.ops.aten
LINEAR = (aten.linear.default, aten.addmm.default)


@dataclass(frozen=True, eq=False)
class LowRank:
    """One update.

    Attributes:
        total: The sum of product and update.
        product: What the update is added to; views of `base`, or another total.
        base: The contraction with W.
        down: The contraction with A, `[rank inputs]`.
        up: The contraction with B, `[outputs rank]`.
        scale: Factor of the update.
    """

    total: Node
    product: Node
    base: Node
    down: Node
    up: Node
    scale: float

    @property
    def base_operand(self) -> Node:
        """What the base multiplies, before views."""
        position = 1 if self.base.target is aten.addmm.default else 0
        return without_views(_argument(self.base, position))

    @property
    def operand(self) -> Node:
        """What the update multiplies, before views.

        Two views of one value that are multiplied by matrices of equally many inputs
        have the same rows.
        """
        return without_views(_argument(self.down, 0))


def low_rank_updates(graph: Graph) -> Iterator[LowRank]:
    """Every update in `graph`, in its order; operands may differ by gates."""
    totals: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.target is not aten.add.Tensor or len(node.args) < 2 or node.kwargs:
            continue
        for product, update in (node.args[:2], node.args[1::-1]):
            found = _match(node, product, update, totals)
            if found is not None:
                totals[node] = found.base
                yield found
                break


def low_rank_groups(analysis: Analysis) -> set[str]:
    """Names of the groups that are the inner dims of updates."""
    inner = {
        (str(_argument(contraction, 1).target), dim)
        for update in low_rank_updates(analysis.program.graph)
        for contraction, dim in ((update.down, 0), (update.up, 1))
    }
    return {
        group.name
        for group in analysis.groups
        if all((member.parameter, member.dim) in inner for member in group.members)
    }


def without_views(node: Node) -> Node:
    """The node of which `node` is a view."""
    while node.target in (aten.view.default, aten.reshape.default):
        node = _argument(node, 0)
    return node


def _match(
    total: Node, product: object, update: object, totals: dict[Node, Node]
) -> LowRank | None:
    if not isinstance(product, Node) or not isinstance(update, Node):
        return None
    scale = 1.0
    if update.target is aten.mul.Tensor and isinstance(update.args[1], (int, float)):
        scale, update = float(update.args[1]), _argument(update, 0)
    base = totals.get(product) or without_views(product)
    if base.target not in LINEAR or not _is_plain(update):
        return None
    down = _argument(update, 0)
    if not _is_plain(down) or len(down.users) > 1 or len(update.users) > 1:
        return None
    weight = _argument(base, 2 if base.target is aten.addmm.default else 1)
    found = LowRank(total, product, base, down, update, scale)
    return found if weight.op == "get_attr" else None


def _is_plain(node: Node) -> bool:
    """Whether a node is a product with a stored matrix, without bias."""
    if node.target is not aten.linear.default or len(node.args) > 2:
        return False
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"


def _argument(node: Node, position: int) -> Node:
    found = node.args[position]
    assert isinstance(found, Node), node
    return found
