"""The proof sees elements that come from another unit than the one that survived."""

from __future__ import annotations

import pytest
import torch

from fgcompile.analysis.facts import find_constants
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.needs import propagate_needs
from fgcompile.analysis.survivors import close_survivors
from fgcompile.passes.eliminate_dead_dims import _shrink
from fgcompile.passes.origins import first_difference
from fgcompile.passes.pipeline import eliminate
from fgcompile.passes.shrinkage import Shrinkage
from fgcompile.program import Program
from tests.passes.check import assert_equal, gated_program, shapes
from tests.passes.test_eliminate_dead_dims import Attention, MultiQuery, X


def shrunk(program: Program) -> Shrinkage:
    flow = trace_planes(program)
    constants = find_constants(program, flow)
    survivors = close_survivors(flow, propagate_needs(flow, constants))
    shrinkage = Shrinkage(program.copy(), flow, survivors, constants)
    assert _shrink(shrinkage) is None
    return shrinkage


@pytest.mark.parametrize("groups", [1, 4])
def test_heads_in_another_order_are_a_difference(groups: int) -> None:
    model = Attention(heads=4, dim=2, groups=groups)
    shrinkage = shrunk(gated_program(model, X, closed={"head": [1]}, kinds=("head",)))
    graph = shrinkage.program.graph
    attention = next(n for n in graph.nodes if "attention" in n.name)
    with graph.inserting_after(attention):
        flipped = graph.call_function(torch.ops.aten.flip.default, (attention, [1]))
    flipped.meta = dict(attention.meta)
    attention.replace_all_uses_with(flipped, delete_user_cb=lambda n: n is not flipped)
    assert first_difference(shrinkage) == next(iter(flipped.users)).name


@pytest.mark.parametrize("kind", ["qk", "vo"])
@pytest.mark.parametrize("eager", [False, True])
def test_the_only_dim_of_a_head_may_stand_for_the_head(kind: str, eager: bool) -> None:
    model = (MultiQuery if eager else Attention)(heads=4, dim=2, groups=1)
    program = gated_program(model, X, closed={kind: [1]}, kinds=(kind,))
    lowered = eliminate(program)
    names = ("q.weight", "k.weight") if kind == "qk" else ("o.weight", "v.weight")
    assert shapes(lowered)[names[0]] == [4, 4]
    assert shapes(lowered)[names[1]][0] == 1
    assert_equal(program, lowered)


def test_one_head_may_be_left_for_several_that_share_it() -> None:
    model = Attention(heads=4, dim=2, groups=2)
    program = gated_program(model, X, closed={"head": [1]}, kinds=("head",))
    lowered = eliminate(program)
    assert shapes(lowered)["q.weight"][0] == 4
    assert shapes(lowered)["k.weight"][0] == 2
    assert_equal(program, lowered)
