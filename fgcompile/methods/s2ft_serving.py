"""Several S2FT adapters in one batch, each row with its own.

The base product is computed once for all rows. For columns, every row gathers the
inputs of its adapter and multiplies them with its block; for rows, the product with
its block is added to the outputs of its adapter. Source: S2FT (arXiv 2412.06289),
section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.methods.s2ft_adapter import S2ftAdapter, S2ftEntry, check_fits
from fgcompile.methods.s2ft_blocks import Side
from fgcompile.methods.weight_hooks import MethodHook, remove_hooks


class Serving:
    """Adapters of one plain model, from which every row of a batch takes one.

    A context manager: the model is plain again afterwards.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[S2ftAdapter]) -> None:
        """Serves `adapters` on `model`, which is in base order; at first none.

        Raises:
            GateError: If an adapter does not fit the model.
        """
        for adapter in adapters:
            check_fits(model, adapter)
        self.model, self.count = model, len(adapters)
        self.rows: Tensor | None = None
        for name, side in sorted({key for a in adapters for key in a.entries}):
            entries = [a.entries.get((name, side)) for a in adapters]
            stack = _Stack(side, entries, model.get_parameter(name))
            module = model.get_submodule(name.rpartition(".")[0])
            hook = _ServeHook(self, stack)
            module.register_forward_hook(hook, with_kwargs=True)

    def use(self, rows: Sequence[int]) -> None:
        """Every row of the next batches has an adapter by number, -1 for none.

        Raises:
            GateError: If there is no adapter of that number.
        """
        bad = [row for row in rows if not -1 <= row < self.count]
        if bad:
            raise GateError(
                f"there is no adapter {bad[0]}; they are 0 to {self.count - 1}, "
                "and -1 is the base model"
            )
        # The last of each stack is zero, which -1 means.
        self.rows = torch.tensor(list(rows))

    def close(self) -> None:
        """The model is plain again."""
        remove_hooks(self.model, "s2ft-serving")

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class _Stack:
    """The updates of one weight by all adapters, padded to one size."""

    def __init__(
        self, side: Side, entries: Sequence[S2ftEntry | None], weight: Tensor
    ) -> None:
        size = max(len(e.indices) for e in entries if e is not None)
        present = next(e for e in entries if e is not None)
        other = present.block.shape[1 - present.dim]
        self.side = side
        self.indices = torch.zeros(len(entries) + 1, size, dtype=torch.int64)
        blocks = torch.zeros(len(entries) + 1, size, other)
        for number, entry in enumerate(entries):
            if entry is not None:
                count = len(entry.indices)
                block = entry.block if entry.dim == 0 else entry.block.T
                self.indices[number, :count] = entry.indices
                blocks[number, :count] = block
        self.indices, self.blocks = self.indices.to(weight.device), blocks.to(weight)

    def add(self, y: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        """`y [b ... outputs]`, with the update of each row's adapter applied to `x`."""
        rows = rows.to(y.device)
        flat = x.reshape(len(x), -1, x.shape[-1])
        index, block = self.indices[rows], self.blocks[rows]
        spread = index[:, None].expand(-1, flat.shape[1], -1)
        if self.side == "columns":
            return y + (flat.gather(2, spread) @ block).view_as(y)
        added = flat @ block.transpose(1, 2)
        outputs = y.reshape(len(y), -1, y.shape[-1])
        return outputs.scatter_add(2, spread, added).view_as(y)


class _ServeHook(MethodHook):
    method = "s2ft-serving"

    def __init__(self, serving: Serving, stack: _Stack) -> None:
        self.serving, self.stack = serving, stack

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        rows = self.serving.rows
        if rows is None:
            return output
        x = (args or tuple(kwargs.values()))[0]
        if len(x) != len(rows):
            raise GateError(
                f"the batch has {len(x)} rows, but adapters were chosen for "
                f"{len(rows)}\n  Call use([...]) with one adapter per row."
            )
        return self.stack.add(output, x, rows)


def serve_adapters(model: nn.Module, adapters: Sequence[S2ftAdapter]) -> Serving:
    """`model` with several adapters, chosen per row with `use`.

    Raises:
        GateError: If an adapter does not fit the model.
    """
    return Serving(model, adapters)
