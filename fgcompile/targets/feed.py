"""Arguments of a model's forward -> arrays by input name, as runtimes take them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from fgcompile.program import Program


def feed_of(
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wanted: Container[str],
) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays for the inputs that are `wanted`: a file drops those that nothing reads.

    Args:
        program: Names the inputs, nested as its example inputs are.
        args: Positional arguments of the model's forward.
        kwargs: Keyword arguments.
        wanted: Input names of the file.
    """
    given = program.bind(args, kwargs)
    leaves = pytree.tree_leaves([given[name] for name in program.inputs])
    return {
        name: leaf.detach().cpu().numpy()
        for name, leaf in zip(program.input_names, leaves, strict=True)
        if name in wanted
    }
