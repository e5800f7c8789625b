"""Low-rank adapters under gates: `y = ((x * g_c)(W + B A)^T + b) * g_r`.

Source: FineGates (arXiv 2412.12951), the variant with low-rank adapters: rank 4, A
uniform as LoRA's, B zero, no scaling. The released layer multiplies the update by the
gate of the wrong side, so the formula is followed, not the code. Adapters of `peft`
serve as well; these need no other package.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fgcompile.compiler import Inputs, analyze
from fgcompile.errors import GateError
from fgcompile.gates import find_container
from fgcompile.gates.access import owner_of
from fgcompile.gates.gate import KeepsDtype
from fgcompile.gates.matrices import Matrix, matrices, weight_of
from fgcompile.gates.mergeable import Mergeable
from fgcompile.gates.processes import refuse_shards
from fgcompile.methods.weight_hooks import MethodHook, freeze, remove_hooks

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ATTRIBUTE = "fgcompile_low_rank"
"""Name under which a model holds its adapters."""


class LowRankAdapter(KeepsDtype):
    """The update `B A` of one matrix; both factors are float32.

    Attributes:
        a: Shape `[rank inputs]`.
        b: Shape `[outputs rank]`; zero at first, so the update is.
    """

    def __init__(self, matrix: Matrix, rank: int, device: torch.device) -> None:
        """An update that is zero."""
        super().__init__()
        self.matrix = matrix
        outputs, inputs = matrix.shape
        self.a = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """`y` with the update of `x` added."""
        low = nn.functional.linear(x, self.a.to(x.dtype))
        return y + nn.functional.linear(low, self.b.to(x.dtype)).to(y.dtype)


class LowRankAdapters(Mergeable, nn.Module):
    """All adapters of a model."""

    def __init__(self, adapters: list[LowRankAdapter]) -> None:
        """Adapters in the order of the graph."""
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    def forward(self, x: Any = None) -> Any:
        """`x` itself: an `nn.Sequential` that owns the adapters calls them last."""
        return x

    def merge_into(self, model: nn.Module) -> None:
        """See `merge_low_rank`."""
        merge_low_rank(model)

    def each(self) -> list[LowRankAdapter]:
        """The adapters in order."""
        return [a for a in self.adapters if isinstance(a, LowRankAdapter)]


class _AdapterHook(MethodHook):
    method = "low-rank"

    def __init__(self, adapter: LowRankAdapter) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return self.adapter(output, (args or tuple(kwargs.values()))[0])


def insert_low_rank(
    model: ModuleT,
    rank: int = 4,
    example_inputs: Inputs | None = None,
    kinds: tuple[str, ...] = ("mlp", "head"),
) -> ModuleT:
    """Low-rank adapters on every matrix of these groups; the rest is frozen. In place.

    Gates that were inserted before are trained too, and act on weight and update
    alike. `lower` merges the updates, and so does `merge_low_rank`.

    Args:
        model: An eager model.
        rank: Of the updates.
        example_inputs: As for `insert_gates`.
        kinds: Kinds of coupled group whose matrices get adapters.

    Returns:
        The same object.

    Raises:
        GateError: If it has adapters already, `rank` is below 1, or there is no such
            matrix in a module that computes its product and nothing else.
        CaptureError: If the model cannot be captured.
    """
    if find_low_rank(model) is not None:
        raise GateError(
            f"{type(model).__name__} has low-rank adapters already\n"
            "  Merge them with fgcompile.methods.merge_low_rank(model)."
        )
    if rank < 1:
        raise GateError(f"insert_low_rank(rank={rank}): expected at least 1")
    analysis = analyze(model, example_inputs)
    found = [m for m in matrices(analysis, model, kinds) if m.whole]
    if not found:
        raise GateError(
            "no module computes the product with one matrix and nothing else, among "
            f"groups of kind {', '.join(kinds)}\n"
            "  Gates and PST act on such a model; adapters have no place in it."
        )
    adapters = LowRankAdapters(
        [LowRankAdapter(m, rank, weight_of(model, m).device) for m in found]
    )
    vars(adapters)["trained"] = freeze(model)
    for parameter in _gates_among(model, vars(adapters)["trained"]):
        parameter.requires_grad_(True)
    setattr(model, ATTRIBUTE, adapters)
    for adapter in adapters.each():
        module = model.get_submodule(adapter.matrix.reader)
        # Before the hooks of gates, which scale what this adds to.
        module.register_forward_hook(
            _AdapterHook(adapter), prepend=True, with_kwargs=True
        )
    return model


def _gates_among(model: nn.Module, frozen: list[nn.Parameter]) -> list[nn.Parameter]:
    container = find_container(model)
    own = set() if container is None else {id(p) for p in container.parameters()}
    return [parameter for parameter in frozen if id(parameter) in own]


def find_low_rank(model: nn.Module) -> LowRankAdapters | None:
    """The adapters in `model` or in what it wraps; None if there are none."""
    return next((m for m in model.modules() if isinstance(m, LowRankAdapters)), None)


@torch.no_grad()
def merge_low_rank(model: ModuleT) -> ModuleT:
    """The weights of `model` hold the updates, and the adapters are gone. In place.

    Raises:
        GateError: If `model` has no adapters, or is sharded.
    """
    adapters = find_low_rank(model)
    if adapters is None:
        raise GateError(
            f"{type(model).__name__} has no low-rank adapters\n"
            "  Insert them with fgcompile.methods.insert_low_rank(model)."
        )
    refuse_shards(model)
    for adapter in adapters.each():
        weight = weight_of(owner_of(model, adapters), adapter.matrix)
        update = adapter.b.double() @ adapter.a.double()
        update = update if adapter.matrix.rows == 0 else update.T
        weight.copy_((weight.double() + update).to(weight.dtype))
    remove_hooks(model, "low-rank")
    for module in model.modules():
        for name in [n for n, m in module._modules.items() if m is adapters]:
            del module._modules[name]
    for parameter in vars(adapters)["trained"]:
        parameter.requires_grad_(True)
    return model
