"""The contraction with a weight that a node is, in one form for several passes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from fgcompile.passes.shrinkage import fake_like
from fgcompile.program import Program, arguments


@dataclass(frozen=True)
class WeightUse:
    """`node` contracts `operand` with a stored weight, and may add a stored bias.

    `inputs` and `outputs` are the weight's dims; `where` is the position of the bias
    among the node's arguments.
    """

    node: Node
    operand: Node
    weight: Node
    bias: Node | None
    inputs: int
    outputs: int
    where: int

    @property
    def channels(self) -> int:
        """The dim of the operand and of the result that it maps, from the right."""
        return 1 - int(self.weight.meta["val"].dim())


_FORMS = {
    "aten::linear": ("input", "weight", "bias", 1, 0, 2),
    "aten::conv1d": ("input", "weight", "bias", 1, 0, 2),
    "aten::conv2d": ("input", "weight", "bias", 1, 0, 2),
    "aten::conv3d": ("input", "weight", "bias", 1, 0, 2),
    "aten::addmm": ("mat1", "mat2", "self", 0, 1, 0),
}


def weight_use(node: Node) -> WeightUse | None:
    """The contraction that `node` is, None if its weight or bias is computed."""
    schema = getattr(node.target, "_schema", None)
    form = _FORMS.get(schema.name) if schema is not None else None
    if form is None:
        return None
    a = arguments(node)
    operand, weight, bias = (a[name] for name in form[:3])
    if a.get("groups", 1) != 1 or a.get("beta", 1) != 1 or a.get("alpha", 1) != 1:
        return None
    stored = weight.op == "get_attr" and (bias is None or bias.op == "get_attr")
    return WeightUse(node, operand, weight, bias, *form[3:]) if stored else None


def reads(program: Program, name: str) -> list[Node]:
    """All nodes that read the tensor `name`."""
    nodes = [n for n in program.graph.nodes if n.op == "get_attr" and n.target == name]
    return [user for n in nodes for user in n.users]


def replace_tensor(program: Program, node: Node, tensor: nn.Parameter) -> None:
    """The tensor that `node` reads is `tensor`, in every place."""
    owner, _, leaf = str(node.target).rpartition(".")
    setattr(program.graph_module.get_submodule(owner), leaf, tensor)
    for other in program.graph.nodes:
        if other.op == "get_attr" and other.target == node.target:
            other.meta["val"] = fake_like(program, tensor)
