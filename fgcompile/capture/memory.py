"""Frees what torch.export keeps of models that were traced before.

A ShapeEnv, the owner of symbolic sizes, never dies by itself (torch 2.13): it is in a
cycle with fake tensors that runs through C++, where the garbage collector does not see
it, and its methods remember their results for good with it as a key. Without this,
about a megabyte stays of every model that is lowered.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_TRACED: weakref.WeakSet[ShapeEnv] = weakref.WeakSet()


def remember_trace(nodes: Iterable[Node]) -> None:
    """The sizes of this graph need not outlive it."""
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None:
            _TRACED.add(value.fake_mode.shape_env)


def forget_traces() -> None:
    """Breaks the cycles of all remembered graphs, and empties the caches.

    Graphs that are still in use lose nothing: what was cached is computed again, and
    the tensors that their tracing tracked are of no use after it.
    """
    for shapes in list(_TRACED):
        shapes.tracked_fakes = []
        shapes.fake_tensor_cache.clear()
    for method in vars(ShapeEnv).values():
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()
