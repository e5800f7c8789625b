"""Why torch.export refused a model, in the user's terms."""

from __future__ import annotations

import linecache
import os
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile.capture.state import tracing_state
from fgcompile.errors import CaptureError

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


def export_failure(
    model: nn.Module, inputs: dict[str, Any], error: Exception
) -> CaptureError:
    """The error to raise for a model that no rung of the ladder could trace."""
    name = type(model).__name__
    if _depends_on_values(error):
        return CaptureError(
            f"cannot trace {name}: its control flow depends on tensor values\n"
            f"{_place(error)}"
            "  Choose with torch.where or torch.cond, and let no size depend on values."
        )
    failure = _eager_failure(model, inputs)
    if failure is not None:
        return CaptureError(
            f"cannot run {name} on the example inputs\n"
            f"  {_first_line(failure)}\n"
            f"{_place(failure)}"
            f"  {_shapes(inputs)}\n"
            "  Pass example inputs that the model's forward accepts."
        )
    return CaptureError(
        f"cannot trace {name}\n"
        f"  {_first_line(error)}\n"
        f"{_place(error)}"
        f"  {_shapes(inputs)}\n"
        "  Rewrite that line with tensor operations that torch.export supports."
    )


def is_hopeless(model: nn.Module, inputs: dict[str, Any], error: Exception) -> bool:
    """Whether fewer symbolic sizes would not help either."""
    return _depends_on_values(error) or _eager_failure(model, inputs) is not None


def _depends_on_values(error: BaseException | None) -> bool:
    while error is not None:
        name = type(error).__name__
        if (
            "DataDependent" in name
            or "Dynamic" in name
            or "data-dependent" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _eager_failure(model: nn.Module, inputs: dict[str, Any]) -> Exception | None:
    try:
        with tracing_state(model):
            model(**inputs)
    except Exception as failure:
        return failure
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _place(error: BaseException) -> str:
    """Innermost line of code that is neither torch's nor ours, as "  at f.py:3"."""
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        own = [f for f in frames if not f.filename.startswith((_TORCH, _OURS))]
        if own:
            last = own[-1]
            line = linecache.getline(last.filename, last.lineno or 0).strip()
            return f"  at {os.path.basename(last.filename)}:{last.lineno}: {line}\n"
        current = current.__cause__ or current.__context__
    return ""


def _shapes(inputs: dict[str, Any]) -> str:
    """The inputs as "x[2 3 float32], flag=True"."""
    leaves, _ = pytree.tree_flatten_with_path(inputs)
    texts = []
    for path, leaf in leaves:
        name = pytree.keystr(path)[2:].replace("']", "", 1).replace("['", "_")
        if isinstance(leaf, Tensor):
            dtype = str(leaf.dtype).removeprefix("torch.")
            texts.append(f"{name}[{' '.join(map(str, leaf.shape))} {dtype}]")
        else:
            texts.append(f"{name}={leaf}")
    return ", ".join(texts)
