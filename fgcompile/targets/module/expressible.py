"""What a model's own code can follow, when only its sizes change.

Lowering to FX may rewrite the graph: gather a table, spell out a norm, scatter into
zeros. A module keeps its code, so that a rewrite which is more than other sizes must
not happen; the dims concerned stay whole, with the node as the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from fgcompile.analysis.needs import Needs
from fgcompile.analysis.steps import Align, Flow
from fgcompile.passes.base import run_passes, run_until_stable
from fgcompile.passes.canonicalize import canonicalize
from fgcompile.passes.eliminate_dead_code import eliminate_dead_code
from fgcompile.passes.eliminate_dead_dims import Restraint, eliminate_dead_dims
from fgcompile.passes.gather_operands import forbid_gathers
from fgcompile.passes.propagate_constants import propagate_constants
from fgcompile.program import Program, arguments, module_path, source_line
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten

_SPLITS = (
    *(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_chunk.default),
)

Revived = dict[str, dict[int, Tensor]]


@dataclass
class Kept(Restraint):
    """What the code of a module cannot do without.

    Attributes:
        reasons: Nodes that it pins, by name, with what each would need.
        revived: Indices that stay although they are dead, by parameter and dim.
        even: What stays so that layers agree and why, by name of the group.
        unfit: Why other loaders cannot build layers that agree, None if they can.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    revived: Revived = field(default_factory=dict)
    even: dict[str, str] = field(default_factory=dict)
    unfit: str | None = None

    @property
    def texts(self) -> list[str]:
        """The reasons, each once."""
        return sorted(set(self.reasons.values()))

    def restrict(self, flow: Flow) -> None:
        """Nothing is gathered, and no attention changes its default scale."""
        for node, source in forbid_gathers(flow):
            text = f"reads {source}, which would have to be gathered"
            self.reasons[node.name] = _reason(node, text)
        for step in flow.steps:
            if isinstance(step, Align) and _has_default_scale(step.node):
                text = "the scale of the attention follows from the head size"
                step.pinned.update(
                    {k: text for k, f in enumerate(step.factors) if f == "d"}
                )

    def seed(self, program: Program, flow: Flow, needs: Needs, revived: Needs) -> None:
        """Of a value that nothing needs, one whole row (head) stays, not one unit."""
        for name, indices in self.revived.items():
            left = program.kept.get(name, {})
            for mask in revived.planes[flow.parameters[name]]:
                for dim, index in indices.items():
                    if dim in left:
                        index = torch.isin(left[dim], index).nonzero().flatten()
                    if mask.shape[dim] > 1:
                        mask[(slice(None),) * dim + (index.numpy(),)] = True
        for seen, stays in zip(needs.planes, revived.planes, strict=True):
            for plane, mask in zip(seen, stays, strict=True):
                dims = [k for k, n in enumerate(plane.shape) if n > 1]
                if len(dims) > 1 and not plane.any():
                    mask[(slice(None),) * dims[0] + (0,)] = True

    def faults(self, before: Program, after: Program) -> list[str]:
        """Nodes of `before` that `after` has rewritten by more than sizes."""
        found = dict(_faults(before, after))
        self.reasons |= found
        return sorted(found)


def eliminate_in_place(
    program: Program, revived: Revived | None = None, values: bool = True
) -> tuple[Program, Kept]:
    """A copy of `program` without the dead dims that its own code can lose.

    Its graph has the nodes that it had, with smaller sizes; every dim keeps at least
    one unit, so that no branch disappears.

    Args:
        program: It is not changed.
        revived: Indices that stay although they are dead, by parameter and dim.
        values: Whether parameters hold their values, so that constants can be folded.
    """
    kept = Kept(revived=revived or {})
    shrink = partial(eliminate_dead_dims, restraint=kept)
    shrink.__name__ = eliminate_dead_dims.__name__  # type: ignore[attr-defined]
    fold = partial(propagate_constants, new_biases=False)
    fold.__name__ = propagate_constants.__name__  # type: ignore[attr-defined]
    lowered = program.copy()
    run_passes(lowered, (canonicalize, eliminate_dead_code))
    run_until_stable(lowered, (fold, shrink) if values else (shrink,))
    return lowered, kept


def _faults(before: Program, after: Program) -> Iterator[tuple[str, str]]:
    old = {node.name: node for node in before.graph.nodes}
    new = {node.name: node for node in after.graph.nodes}
    for name in old.keys() - new.keys():
        yield name, _reason(old[name], "would have to be computed in another way")
    for name, node in new.items():
        if name not in old:
            if tensor_of(node) is not None:
                for neighbour in _neighbours(node, old):
                    text = f"would need {node.target} beside it"
                    yield neighbour, _reason(old[neighbour], text)
        elif not _same_code(old[name], node):
            yield name, _reason(old[name], f"would have to be {node.target}")


def _reason(node: Node, text: str) -> str:
    place = source_line(node)
    where = f" in {module_path(node) or 'the model'}" + (f" ({place})" if place else "")
    return f"{node.target}{where} {text}"


def _neighbours(node: Node, old: dict[str, Node]) -> Iterator[str]:
    """The old nodes that an inserted one connects."""
    for step in (lambda n: n.all_input_nodes, lambda n: list(n.users)):
        seen, stack = {node}, [node]
        while stack:
            for other in step(stack.pop()):
                if other.name in old and other.op not in ("placeholder", "get_attr"):
                    yield other.name
                elif other not in seen:
                    seen.add(other)
                    stack.append(other)


def _same_code(old: Node, new: Node) -> bool:
    """Whether the call that made `old` makes `new` when sizes change."""
    if new.target != old.target:
        return (old.target in _SPLITS and _still_splits(old, new)) or (
            new.target is aten.squeeze.dims
        )
    return True


def _has_default_scale(node: Node) -> bool:
    return (
        node.target is aten.scaled_dot_product_attention.default
        and arguments(node).get("scale") is None
    )


def _still_splits(old: Node, new: Node) -> bool:
    if new.target is not aten.split_with_sizes.default:
        return False
    sizes = list(arguments(new)["split_sizes"])
    listed = old.target is aten.split_with_sizes.default
    return listed or all(size == sizes[0] for size in sizes)
