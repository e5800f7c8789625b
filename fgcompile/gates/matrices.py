"""The weight matrices of a model that belong to coupled groups, as modules hold them.

What methods that act on whole matrices share: which matrices there are, whose forward
reads them, and which of their dims makes outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.fx import Node

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.analysis.steps import Align, Slot
from fgcompile.errors import GateError
from fgcompile.gates.low_rank import low_rank_groups, low_rank_updates
from fgcompile.gates.module_sites import Calls, NoSiteError, parameter_owner
from fgcompile.program import module_path


@dataclass(frozen=True)
class Matrix:
    """A weight that one operator multiplies data with.

    Attributes:
        parameter: Name of the weight in the program and the model.
        rows: Its dim that makes outputs; the other one, `columns`, is summed over.
        shape: Outputs and inputs [count].
        reader: Path of the module whose forward reads the weight.
        weight: Name of the weight relative to `reader`.
        bias: Name of what is added to the outputs, relative to `reader`; None if
            nothing is, or not by the same operator.
        whole: Whether a call of `reader` takes the inputs as its only argument and
            returns the outputs, so that both can be seen from outside.
        uses: The nodes that read it, and the position of the data among their
            arguments.
    """

    parameter: str
    rows: int
    shape: tuple[int, int]
    reader: str
    weight: str
    bias: str | None
    whole: bool
    uses: tuple[tuple[str, int], ...] = field(compare=False)

    @property
    def columns(self) -> int:
        """The dim that is summed over."""
        return 1 - self.rows


def chosen_groups(analysis: Analysis, kinds: Sequence[str]) -> list[CoupledGroup]:
    """Groups of these kinds that may shrink, those inside blocks where there are any.

    A group is inside a block if every matrix beside it reads or writes something that
    may shrink as well, such as the residual stream: a classifier's hidden layer, beside
    the outputs of the model, is not. A dim of size 1 is no unit, and cannot shrink.
    """
    inner = low_rank_groups(analysis)
    groups = [
        group
        for group in analysis.groups
        if group.kind in kinds and not group.reasons and group.name not in inner
    ]
    fixed = {
        (member.parameter, member.dim)
        for group in analysis.pinned
        for member in group.members
    }
    for _, slot in _products(analysis):
        weight, columns = _weight(analysis, slot)
        if analysis.program.parameter(weight).shape[1 - columns] == 1:
            fixed.add((str(weight.target), 1 - columns))
    inside = [
        group
        for group in groups
        if not any((m.parameter, 1 - m.dim) in fixed for m in group.members)
    ]
    return inside or groups


def matrices(
    analysis: Analysis,
    model: nn.Module | None,
    kinds: Sequence[str] = ("mlp", "head"),
) -> list[Matrix]:
    """Every matrix with rows or columns in a chosen group, in the order of the graph.

    Args:
        analysis: Of `model`.
        model: The eager model; None for the graph of the program, where no matrix has
            a reader.
        kinds: Kinds of the groups; with `head` also what is inside heads.

    Raises:
        GateError: If there is none.
    """
    calls = None if model is None else Calls(analysis.program, model)
    if "head" in kinds:
        # Keys and values that all heads share belong to no head.
        kinds = (*kinds, "qk", "vo")
    members = {
        member.parameter
        for group in chosen_groups(analysis, kinds)
        for member in group.members
    }
    updates = list(low_rank_updates(analysis.program.graph))
    totals = {update.base: update.total for update in updates}
    inner = {node for update in updates for node in (update.down, update.up)}
    read: dict[str, list[Matrix]] = {}
    for step, slot in _products(analysis):
        name = str(_weight(analysis, slot)[0].target)
        if name in members and step.node not in inner:
            matrix = _matrix(analysis, calls, step, slot, totals.get(step.node))
            if matrix is not None:
                read.setdefault(name, []).append(matrix)
    found = [
        replace(ways[0], uses=tuple(use for way in ways for use in way.uses))
        for ways in read.values()
        # Read in two ways, as tied weights are: no one change serves both.
        if all(way == ways[0] for way in ways)
    ]
    seen = _users(analysis)
    # So is one that is read through a view, transposed for instance.
    found = [m for m in found if seen[m.parameter] <= {name for name, _ in m.uses}]
    if not found:
        raise GateError(
            f"no weight matrix belongs to a group of kind {', '.join(kinds)}\n"
            "  fgcompile.analyze(model) lists the groups that there are."
        )
    return found


def _users(analysis: Analysis) -> dict[str, set[str]]:
    """The nodes that read each attribute, by its name."""
    users: dict[str, set[str]] = {}
    for node in analysis.program.graph.nodes:
        if node.op == "get_attr":
            names = users.setdefault(str(node.target), set())
            names.update(user.name for user in node.users)
    return users


def weight_of(model: nn.Module, matrix: Matrix) -> nn.Parameter:
    """The parameter that a matrix is, in `model`."""
    owner, _, name = matrix.parameter.rpartition(".")
    parameter = model.get_submodule(owner)._parameters[name]
    assert parameter is not None
    return parameter


def units_along(group: CoupledGroup, matrix: Matrix, dim: int) -> Tensor | None:
    """Unit of `group` at every index of a dim; -1 for others, None if all are."""
    for member in group.members:
        if member.parameter == matrix.parameter and member.dim == dim:
            return member.index
    return None


def _products(analysis: Analysis) -> Iterator[tuple[Align, Slot]]:
    """Contractions of data with a whole parameter of two dims, at its summed dim."""
    for step in analysis.flow.steps:
        if not isinstance(step, Align) or step.rule.kind != "contraction":
            continue
        for slot in step.slots:
            node = analysis.flow.values[slot.value].node
            if node.op != "get_attr" or slot.operand in step.rule.addends:
                continue
            summed = slot.axes and slot.axes[-1] in step.contracted
            if summed and analysis.program.parameter(node).dim() == 2:
                yield step, slot


def _weight(analysis: Analysis, slot: Slot) -> tuple[Node, int]:
    """The node of the weight that `_products` found, and its summed dim."""
    value = analysis.flow.values[slot.value]
    plane = value.planes[slot.plane]
    return value.node, max(range(2), key=lambda dim: plane.shape[dim])


def _matrix(
    analysis: Analysis,
    calls: Calls | None,
    step: Align,
    slot: Slot,
    total: Node | None,
) -> Matrix | None:
    """The matrix that a step multiplies with; `total` is the sum with its update."""
    weight_node, columns = _weight(analysis, slot)
    shape = analysis.program.parameter(weight_node).shape
    name, data = str(weight_node.target), _data_position(step, slot)
    if data is None:
        return None
    matrix = Matrix(
        name,
        1 - columns,
        (shape[1 - columns], shape[columns]),
        "",
        name,
        None,
        False,
        ((step.node.name, data),),
    )
    if calls is None:
        return matrix
    result = step.node if total is None else total
    reader = module_path(result)
    try:
        owner, weight = parameter_owner(calls, reader, name)
    except NoSiteError:
        owner, weight = None, ""
    whole = calls.is_product(result) and owner == reader
    if total is not None and not whole:
        raise GateError(
            f"the low-rank update of {name} is added outside of its module\n"
            "  Insert gates before fgcompile's adapters; both act as one then."
        )
    if owner is None:
        return None
    return replace(
        matrix,
        reader=owner,
        weight=weight,
        bias=_bias(calls, step, owner),
        whole=whole,
    )


def _data_position(step: Align, slot: Slot) -> int | None:
    """Position of the other factor among the arguments of the step's node."""
    for position, source in enumerate(step.sources):
        if position == slot.operand or position in step.rule.addends:
            continue
        if source is not None and source in step.node.args:
            return step.node.args.index(source)
    return None


def _bias(calls: Calls, step: Align, reader: str) -> str | None:
    for position in step.rule.addends:
        source = step.sources[position]
        if isinstance(source, Node) and source.op == "get_attr":
            owner, name = parameter_owner(calls, reader, str(source.target))
            return name if owner == reader else None
    return None


def oriented(weight: Tensor, matrix: Matrix) -> Tensor:
    """`weight` as outputs by inputs; its own inverse."""
    return weight if matrix.rows == 0 else weight.T
