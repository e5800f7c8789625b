"""A graph that was exported in training mode, as it runs in eval mode."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from fgcompile.capture.functional import is_mutable
from fgcompile.errors import CaptureError

aten = torch.ops.aten

# Op -> (position and name of the argument that differs, its value in eval mode).
_EVAL_ARGUMENTS = {
    aten.dropout.default: (2, "train", False),
    aten.alpha_dropout.default: (2, "train", False),
    aten.feature_dropout.default: (2, "train", False),
    aten.batch_norm.default: (5, "training", False),
    aten.scaled_dot_product_attention.default: (4, "dropout_p", 0.0),
}


def evaluate(graph_module: GraphModule) -> None:
    """Dropout passes everything, and batch norm reads its running statistics."""
    for node in graph_module.graph.nodes:
        if node.target not in _EVAL_ARGUMENTS:
            continue
        position, name, value = _EVAL_ARGUMENTS[node.target]
        if len(node.args) > position:
            node.update_arg(position, value)
        elif name in node.kwargs:
            node.update_kwarg(name, value)


def remove_unread_updates(graph_module: GraphModule) -> set[str]:
    """Erase writes to buffers that this forward pass does not read afterwards.

    Counters of batches and the like: they change the model, not what it computes now.

    Returns:
        The names of the buffers that were written.
    """
    found = [node for node in graph_module.graph.nodes if _is_unread_update(node)]
    written = {str(node.all_input_nodes[0].target) for node in found}
    for node in found:
        graph_module.graph.erase_node(node)
    return written


def _is_unread_update(node: Node) -> bool:
    if not is_mutable(node) or node.users:
        return False
    written = node.args[0]
    return (
        isinstance(written, Node)
        and written.op == "get_attr"
        and all(user <= node for user in written.users)
    )


def refuse_state(graph_module: GraphModule, written: set[str]) -> None:
    """Refuses models whose next forward pass depends on this one.

    Args:
        graph_module: Without dead code.
        written: Buffers that the forward pass wrote.

    Raises:
        CaptureError: If the outputs depend on one of them.
    """
    for node in graph_module.graph.find_nodes(op="get_attr"):
        if node.target in written:
            raise CaptureError(
                f"buffer {node.target} is read and written by the same forward pass\n"
                "  What a model computes must not depend on earlier calls: pass such "
                "state as an input,\n  or freeze it before the model is captured."
            )
