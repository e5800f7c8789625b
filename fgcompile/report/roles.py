"""What an operator does with a stored tensor: which dim is in, which is out.

The one table that labels, costs and couplings share. A role is one letter per
dim of the tensor: "i" is contracted with the data, "o" appears in the result,
"n" is looked up (vocabulary), "g" groups (experts, conv groups) and "k" is a
kernel position. Operators that are not listed are taken as elementwise: every
dim lines up with the result from the right.
"""

from __future__ import annotations

from fgcompile.report.summary import Node, ParameterRef

_ATEN = {
    "aten.linear": {1: "oi", 2: "o"},
    "aten.addmm": {0: "o", 2: "io"},
    "aten.conv1d": {1: "oik", 2: "o"},
    "aten.conv2d": {1: "oikk", 2: "o"},
    "aten.conv3d": {1: "oikkk", 2: "o"},
    "aten.convolution": {1: "oi", 2: "o"},
    "aten.embedding": {0: "no"},
    "aten.matmul": {0: "oi", 1: "io"},
    "aten.mm": {0: "oi", 1: "io"},
    "aten.bmm": {1: "gio"},
    "aten.baddbmm": {2: "gio"},
    "module.Linear": {1: "oi", 2: "o"},
    "module.Conv1d": {1: "oik", 2: "o"},
    "module.Conv2d": {1: "oikk", 2: "o"},
    "module.Embedding": {1: "no"},
}
_ONNX = {
    "MatMul": {0: "oi", 1: "io"},
    "Conv": {1: "oi", 2: "o"},
    "ConvInteger": {1: "oi"},
    "Gather": {0: "no"},
    "MatMulInteger": {1: "io"},
    "com.microsoft::FusedMatMul": {1: "io"},
    "com.microsoft::DynamicQuantizeMatMul": {1: "io", 4: "o"},
    "com.microsoft::MatMulIntegerToFloat": {1: "io", 6: "o"},
    "QLinearMatMul": {3: "io"},
    "QLinearConv": {3: "oi", 8: "o"},
}
_NORMS = {
    "aten.layer_norm": (1, 2),
    "aten.rms_norm": (1, 2),
    "aten.group_norm": (1, 2),
    "aten.batch_norm": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1, 2),
    "com.microsoft::SkipLayerNormalization": (2, 3),
}
_CONVOLUTIONS = ("aten.conv", "Conv", "QLinearConv", "module.Conv")
_EMBEDDINGS = ("aten.embedding", "Gather", "module.Embedding")


def role_of(node: Node, slot: int, rank: int) -> str | None:
    """One letter per dim of the tensor at `slot`; None if it is elementwise."""
    if node.op == "Gemm":
        return _gemm_role(node, slot)
    role = _ATEN.get(node.op, {}).get(slot) or _ONNX.get(node.op, {}).get(slot)
    if role is None or rank == 0:
        return None
    if is_convolution(node) and len(role) > 1:
        return role[:2].ljust(rank, "k")
    # Further leading dims are batches of matrices: experts.
    return role[-rank:] if rank < len(role) else role.rjust(rank, "g")


def is_convolution(node: Node) -> bool:
    """Channels are dim 1 of the data, not the last one."""
    return node.op.startswith(_CONVOLUTIONS)


def is_embedding(node: Node) -> bool:
    """A table lookup, if operand 0 is a stored tensor."""
    return node.op in _EMBEDDINGS


def is_norm(node: Node) -> bool:
    """A normalisation with a weight."""
    return node.op in _NORMS


def is_matmul(node: Node) -> bool:
    """A product of two operands over the last and the second last dim."""
    return node.op.rpartition("::")[2] in _MATMULS


_MATMULS = {
    "aten.matmul",
    "aten.mm",
    "aten.bmm",
    "MatMul",
    "MatMulInteger",
    "FusedMatMul",
}


def label_of(node: Node, slot: int, rank: int) -> str:
    """What a module would call the tensor at `slot`: "weight" or "bias"."""
    if is_norm(node):
        return "weight" if slot == _NORMS[node.op][0] else "bias"
    role = role_of(node, slot, rank)
    if role is not None:
        return "bias" if role == "o" else "weight"
    return "bias" if node.op.lower().endswith(("add", "add.tensor")) else "weight"


def stored_operands(node: Node) -> list[tuple[int, ParameterRef]]:
    """The slots of `node` that read stored tensors."""
    return [
        (slot, operand)
        for slot, operand in enumerate(node.operands)
        if isinstance(operand, ParameterRef)
    ]


def _gemm_role(node: Node, slot: int) -> str | None:
    attributes = dict(node.attributes)
    if slot == 1:
        return "oi" if attributes.get("transB") == "1" else "io"
    if slot == 0:
        return "io" if attributes.get("transA") == "1" else "oi"
    return "o" if slot == 2 else None
