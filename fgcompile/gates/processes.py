"""Several processes that train one model: what their gates have to agree on.

The optimizer's steps are the same everywhere, as DDP and FSDP2 average gradients. What
remains is the importance of units, which every process feels on its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

from fgcompile.errors import GateError


def gathered(tensor: Tensor) -> Tensor:
    """`tensor`, whole where FSDP2 keeps a part of it on every process.

    All processes have to ask, outside of forwards, or it waits for those that do not.
    """
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def refuse_shards(model: nn.Module) -> None:
    """Raises where FSDP2 holds parameters of `model` in parts.

    Some are whole at times, as those of the root after a forward, but what is written
    there is lost.

    Raises:
        GateError: If it does.
    """
    if several():
        from torch.distributed.fsdp import FSDPModule

        if any(isinstance(module, FSDPModule) for module in model.modules()):
            raise GateError(
                f"{type(model).__name__} is sharded, so its weights cannot be read or "
                "changed here\n  Load torch.distributed.checkpoint.state_dict."
                "get_model_state_dict into a model of one process that was made alike."
            )


def average_after_backward(
    value: Tensor, parts: Callable[[], Sequence[Tensor]]
) -> None:
    """Averages tensors over all processes when a backward pass of `value` has ended.

    A backward pass is the one moment that all processes have in common, whatever the
    loop: asking for the status on one of them must not wait for the others. What was
    averaged before stays as it is, so gradients may accumulate.
    """
    if several() and value.requires_grad:
        engine = Variable._execution_engine
        value.register_hook(lambda _: engine.queue_callback(lambda: _average(parts())))


def several() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _average(parts: Sequence[Tensor]) -> None:
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for part, mean in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
        part.copy_(mean.view_as(part))
