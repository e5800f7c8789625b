"""What earlier lowerings took from a model.

A folder says how a model differs from what its class builds, not from what the last
lowering was given. So a lowered model remembers what it lost, and so does a loaded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fgcompile.targets.module.search import Attributes

Indices = Mapping[str, Mapping[int, Tensor]]
Sizes = Mapping[str, set[tuple[int, int]]]

_PLACE = "_fgcompile_history"


@dataclass(frozen=True)
class History:
    """How a model differs from the one that its class builds.

    Attributes:
        kept: The indices that each parameter kept, by name and dim.
        attributes: Numbers that differ, by module path and slot.
        sizes: Sizes before and after, by path of the module that has them.
        config: The configuration before the first change, None if it has none.
    """

    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    sizes: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    config: Any = None

    def then(self, later: History) -> History:
        """This, and then what changed in `later`."""
        paths = self.attributes.keys() | later.attributes.keys()
        return History(
            kept=_composed(self.kept, later.kept),
            attributes={
                path: {
                    **self.attributes.get(path, {}),
                    **later.attributes.get(path, {}),
                }
                for path in sorted(paths)
            },
            sizes=_joined(self.sizes, later.sizes),
            config=later.config if self.config is None else self.config,
        )


def history_of(model: nn.Module) -> History:
    """What `model` remembers; an empty history if it was never lowered."""
    found = vars(model).get(_PLACE)
    return found if isinstance(found, History) else History()


def remember(model: nn.Module, history: History) -> None:
    """`model` has that history from now on; copies of it as well."""
    vars(model)[_PLACE] = history


def _composed(first: Indices, second: Indices) -> dict[str, dict[int, Tensor]]:
    """Indices of the original, of what is left after both."""
    found = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        mine = found.setdefault(name, {})
        for dim, index in dims.items():
            mine[dim] = mine[dim][index] if dim in mine else index
    return found


def _joined(first: Sizes, second: Sizes) -> dict[str, set[tuple[int, int]]]:
    """Every size that was there, with every one that it became."""
    found = {}
    for path in first.keys() | second.keys():
        old, new = first.get(path, set()), second.get(path, set())
        both = {(a, c) for a, b in old for start, c in new if b == start}
        found[path] = old | new | both
    return found
