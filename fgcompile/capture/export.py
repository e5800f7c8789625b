"""torch.export, with as many symbolic sizes as the model allows."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fgcompile.capture.diagnosis import export_failure, is_hopeless
from fgcompile.capture.memory import forget_traces, remember_trace
from fgcompile.capture.others import resized
from fgcompile.capture.shapes import distinct_plans, grow_batch
from fgcompile.capture.state import tracing_state

logger = logging.getLogger(__name__)


def export(
    model: nn.Module, inputs: dict[str, Any], fixed: bool = False
) -> tuple[ExportedProgram, dict[str, Any]]:
    """The exported model, and the inputs that it was traced with.

    Args:
        model: In the state in which it is traced.
        inputs: Example inputs by name.
        fixed: Whether no size may become a symbol.

    Raises:
        CaptureError: If the model cannot be exported even with fixed sizes.
    """
    grown = inputs if fixed else grow_batch(inputs)
    failure: Exception | None = None
    for candidate in [grown] if grown is inputs else [grown, inputs]:
        for label, shapes in distinct_plans(candidate, fixed):
            try:
                exported = _export_once(model, candidate, shapes)
            except Exception as error:
                failure = error
                if is_hopeless(model, candidate, error):
                    break
                _log_refusal(label, str(error))
                continue
            if _keeps_its_word(model, candidate, exported):
                return exported, candidate
            _log_refusal(label, "the model runs at no other length")
    assert failure is not None
    raise export_failure(model, inputs, failure) from failure


def _export_once(
    model: nn.Module, inputs: dict[str, Any], shapes: dict[str, Any]
) -> ExportedProgram:
    forget_traces()
    with tracing_state(model):
        exported = torch.export.export(
            model, (), inputs, dynamic_shapes=shapes, strict=False
        )
    remember_trace(exported.graph.nodes)
    return exported


def _log_refusal(label: str, reason: str) -> None:
    first = reason.strip().partition("\n")[0]
    logger.info("symbolic %s sizes were refused: %s", label, first)


def _keeps_its_word(
    model: nn.Module, inputs: dict[str, Any], exported: ExportedProgram
) -> bool:
    """Whether the lengths of feature sequences that became symbols really may vary.

    torch.export keeps some conditions on sizes for the time when the program runs, so
    that a table of one fixed length only shows then; fake tensors cost no arithmetic.
    """
    values = _placeholder_values(exported)
    lengths = [
        leaf.shape[1]
        for leaf, value in zip(pytree.tree_leaves(inputs), values, strict=True)
        if isinstance(leaf, Tensor)
        and leaf.is_floating_point()
        and leaf.dim() > 1
        and _is_symbol(value.shape[1])
    ]
    return not lengths or any(
        _runs(model, resized(inputs, values, _batch_size(inputs) + 1, length))
        for length in (2 * lengths[0], lengths[0] // 2 + 1)
    )


def _placeholder_values(exported: ExportedProgram) -> list[Any]:
    """What was traced for each flattened input."""
    names = {
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    }
    return [
        node.meta.get("val")
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]


def _batch_size(inputs: dict[str, Any]) -> int:
    """Size of dim 0 of the first tensor."""
    return next(
        leaf.shape[0]
        for leaf in pytree.tree_leaves(inputs)
        if isinstance(leaf, Tensor) and leaf.dim()
    )


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _runs(model: nn.Module, inputs: dict[str, Any]) -> bool:
    with tracing_state(model), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = pytree.tree_map(
            lambda leaf: mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf,
            inputs,
        )
        try:
            model(**fake)
        except Exception:
            return False
    return True
