"""From a place in the graph to a site in the eager model.

A value can be gated in eager mode where it is the argument or the result of a module
that is called; else the parameter that meets it is gated while its reader runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from fgcompile.analysis.kinds import is_weight
from fgcompile.analysis.naming import common_path
from fgcompile.analysis.steps import Align
from fgcompile.gates.layout import Target
from fgcompile.gates.readers import Place
from fgcompile.gates.spec import GateSite
from fgcompile.gates.writers import zero_of_zeros
from fgcompile.program import Program, module_path
from fgcompile.rules.movement import is_movement
from fgcompile.rules.registry import DimRule, is_pointwise, rule_for


class NoSiteError(Exception):
    """A place that no hook and no parameter of the eager model reaches."""


@dataclass
class Calls:
    """Which nodes every call of a module ran, and what goes in and out of it."""

    program: Program
    model: nn.Module
    nodes: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.program.graph.nodes:
            for path in _frames(node):
                self.nodes.setdefault(path, []).append(node)

    def inputs(self, call: str) -> list[Node]:
        """Tensors that a call reads and did not make, parameters aside."""
        inside = set(self.nodes[call])
        found = {
            operand: None
            for node in self.nodes[call]
            for operand in node.all_input_nodes
            if operand not in inside and operand.op != "get_attr"
        }
        return [node for node in found if _is_tensor(node)]

    def results(self, call: str) -> list[Node]:
        """Values that a call made and that are used after it."""
        inside = set(self.nodes[call])
        return [
            node
            for node in self.nodes[call]
            if any(user not in inside for user in node.users) and _is_value(node)
        ]

    def readers(self, parameter: str) -> list[Node]:
        """Nodes that read a parameter."""
        return [
            user
            for node in self.program.graph.nodes
            if node.op == "get_attr" and node.target == parameter
            for user in node.users
        ]

    def is_elementwise(self, call: str) -> bool:
        """Whether a call runs elementwise operators and reductions alone."""
        return all(
            node.op != "call_function"
            or is_pointwise(node.target)
            or is_movement(node)
            or _is_reduction(node)
            for node in self.nodes[call]
        )

    def is_product(self, node: Node) -> bool:
        """Whether the innermost call around `node` maps one argument to its result."""
        call, path = _call(node), module_path(node)
        if call is None or len(self.inputs(call)) != 1:
            return False
        results = self.results(call)
        value = node
        while value not in results and len(value.users) == 1:
            value = next(iter(value.users))
            if _call(value) != call or not is_movement(value):
                return False
        return results == [value] and self.takes_one_argument(path)

    def takes_one_argument(self, path: str) -> bool:
        """Whether the module's forward needs exactly one argument."""
        forward = inspect.signature(self.model.get_submodule(path).forward)
        required = [
            p
            for p in forward.parameters.values()
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
        ]
        return (
            len(required) == 1
            and next(iter(forward.parameters.values())) is (required[0])
        )


def eager_sites(target: Target, place: Place, calls: Calls) -> Iterator[GateSite]:
    """Sites of the eager model that together gate what `place` gates in the graph.

    Raises:
        NoSiteError: If there are none.
    """
    if place.node.op == "get_attr":
        yield _raw_parameter(target, place, calls)
        return
    site = (
        _argument(target, place, calls)
        if place.operand
        else _result(target, place, calls)
    )
    if site is not None:
        yield site
        return
    yield from _parameters(target, place, calls)


def value_index(target: Target, node: Node) -> tuple[int, torch.Tensor] | None:
    """Dim of a node's tensor, from the end, that holds the units; and their index.

    None if they lie along several dims, or beside a batch or sequence, or if the node
    has several results.
    """
    value, tensor = target.flow.value_of(node), node.meta.get("val")
    if value is None or not isinstance(tensor, torch.Tensor):
        return None
    found = []
    for plane in target.flow.values[value].planes:
        index = target.index(plane)
        dims = [d for d, n in enumerate(plane.shape) if n > 1]
        if not (index >= 0).any():
            continue
        if len(dims) != 1 or tensor.shape[dims[0]] != plane.shape[dims[0]]:
            return None
        found.append((dims[0] - plane.ndim, torch.from_numpy(index.reshape(-1))))
    return found[0] if len(found) == 1 else None


def _argument(target: Target, place: Place, calls: Calls) -> GateSite | None:
    call = _call(place.node)
    source = place.operand
    assert source is not None
    while _call(source) == call and is_movement(source):
        source = source.args[0]  # type: ignore[assignment]
    if call is None or calls.inputs(call) != [source]:
        return None
    path, found = module_path(place.node), value_index(target, source)
    if found is None or not calls.takes_one_argument(path):
        return None
    return GateSite(path, "input", "0", *found, place.node.name)


def _result(target: Target, place: Place, calls: Calls) -> GateSite | None:
    call = _call(place.node)
    if call is None:
        return None
    value = place.node
    results = calls.results(call)
    while value not in results and len(value.users) == 1:
        user = next(iter(value.users))
        if _call(user) != call:
            break
        if not (is_movement(user) or zero_of_zeros(user, [value])):
            break
        value = user
    if results != [value] and place.weight is None and len(results) == 1:
        # What an elementwise operator makes may be gated later, in a module that
        # multiplies it with no matrix before it returns.
        value = results[0] if calls.is_elementwise(call) else value
    found = value_index(target, value)
    if results != [value] or found is None:
        return None
    return GateSite(module_path(value), "output", "0", *found, place.node.name)


def _parameters(target: Target, place: Place, calls: Calls) -> Iterator[GateSite]:
    """The weight along the units; for an output, also everything added to it."""
    step, slot = place.step, place.weight
    flow = target.flow
    if not isinstance(step, Align) or slot is None:
        raise NoSiteError(
            f"no module's argument or result is the value of {place.value}"
        )
    slots = [slot]
    if place.operand is None:
        # Rows of the weight, and the same units of everything that is added.
        slots = [s for s in step.slots if s.axes and s.axes[-1] == slot.axes[-1]]
        slots = [s for s in slots if is_weight(flow, step, s.operand, target.data)]
    for one in slots:
        ids = flow.values[one.value].planes[one.plane]
        families = np.unique(target.layout.analysis.classes.family[ids[ids >= 0]])
        if families.size != 1:
            raise NoSiteError(
                f"the weight of {place.node} comes from several parameters"
            )
        family = flow.units.families[int(families[0])]
        index = torch.from_numpy(target.index(family.ids))
        path = module_path(place.node)
        owner, name = parameter_owner(calls, path, family.name)
        yield GateSite(owner, "parameter", name, family.dim, index, place.node.name)


def _raw_parameter(target: Target, place: Place, calls: Calls) -> GateSite:
    found = value_index(target, place.node)
    if found is None:
        raise NoSiteError(f"units lie along several dims of {place.node.target}")
    reader = common_path([module_path(user) for user in place.node.users])
    owner, name = parameter_owner(calls, reader, str(place.node.target))
    dim = found[0] + place.node.meta["val"].dim()
    return GateSite(owner, "parameter", name, dim, found[1], place.node.name)


def parameter_owner(calls: Calls, reader: str, parameter: str) -> tuple[str, str]:
    """The innermost module around `reader` that owns a parameter, and its name there.

    Raises:
        NoSiteError: If nodes outside `reader` would see the parameter gated too.
    """
    aliases = calls.program.aliases.items()
    names = [parameter, *(alias for alias, name in aliases if name == parameter)]
    own = f"{reader}." if reader else ""
    for name in names:
        if name.startswith(own):
            return reader, name[len(own) :]
    path = common_path([reader, parameter])
    for node in calls.readers(parameter):
        if not f"{module_path(node)}.".startswith(own):
            raise NoSiteError(f"{parameter} is read outside {reader} as well")
    return path, parameter[len(path) + 1 if path else 0 :]


def _frames(node: Node) -> list[str]:
    """Calls of modules that `node` ran in, outermost first; repeats are numbered."""
    stack = node.meta.get("nn_module_stack") or {}
    return [key for key, (path, _) in stack.items() if not path.startswith("_empty")]


def _call(node: Node) -> str | None:
    frames = _frames(node)
    return frames[-1] if frames else None


def _is_reduction(node: Node) -> bool:
    rule = rule_for(node.target)
    found = rule(node) if rule is not None else None
    return isinstance(found, DimRule) and found.kind != "contraction"


def _is_value(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (torch.Tensor, list, tuple))


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
