"""Gate specs for the groups of an analysis."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import nn

from fgcompile.analysis.coupling import Analysis
from fgcompile.errors import GateError
from fgcompile.gates.layout import Layout, Target
from fgcompile.gates.low_rank import low_rank_groups
from fgcompile.gates.module_sites import Calls, NoSiteError, eager_sites, value_index
from fgcompile.gates.places import places_of
from fgcompile.gates.queries import query_side
from fgcompile.gates.readers import Place
from fgcompile.gates.spec import GateSite, GateSpec
from fgcompile.program import module_path

logger = logging.getLogger(__name__)

DEFAULT_KINDS = ("mlp", "head")
"""Channels inside of feed-forward blocks, and heads of attention."""


def gate_specs(
    analysis: Analysis, kinds: Sequence[str] | None, model: nn.Module | None = None
) -> list[GateSpec]:
    """A spec for every group of these kinds that may shrink, in order of depth.

    Args:
        analysis: The groups.
        kinds: Kinds of group to gate; None for the default ones that can be.
        model: The eager model that the sites are for; None for sites in the graph of
            the program, whose `node` and `name` tell the value.

    Raises:
        GateError: If a kind has no group that can be gated; says why. If `kinds` is
            None, that is a warning, as long as another has one.
    """
    wanted = default_kinds(analysis) if kinds is None else kinds
    layout = Layout(analysis)
    calls = None if model is None else Calls(analysis.program, model)
    specs: list[GateSpec] = []
    refused: dict[str, str] = {}
    inner = low_rank_groups(analysis)
    for group in analysis.groups:
        if group.kind not in wanted or group.pinned is not None:
            continue
        if group.name in inner:
            refused[group.name] = "the rank of an update that merging removes"
            continue
        target = layout.target(group)
        if group.kind == "qk":
            target = query_side(target)
        try:
            sites = _sites(target, calls)
            specs.append(
                GateSpec(
                    group.name,
                    group.kind,
                    group.size,
                    _distinct(sites, calls is None),
                    group.parameters,
                    group.macs,
                )
            )
        except NoSiteError as error:
            refused[group.name] = str(error)
            logger.info("no gate for %s: %s", group.name, error)
    found = {spec.kind for spec in specs}
    for kind in wanted:
        if kind not in found:
            nothing = _nothing_found(analysis, kind, refused)
            if kinds is not None or not found:
                raise nothing
            logger.warning("%s", nothing)
    return specs


def default_kinds(analysis: Analysis) -> tuple[str, ...]:
    """Those of `mlp` and `head` that the model has, or `conv` if it has neither.

    Both if an operator is unknown, as it may hide one of them.
    """
    reasons = [reason for group in analysis.pinned for reason in group.reasons]
    present = {group.kind for group in analysis.groups}
    found = tuple(kind for kind in DEFAULT_KINDS if kind in present)
    if not found and "conv" in present:
        return ("conv",)
    unknown = any(reason.remedy for reason in reasons)
    return found if found and not unknown else DEFAULT_KINDS


def _sites(target: Target, calls: Calls | None) -> list[GateSite]:
    """Where the units of a group can be gated.

    Raises:
        NoSiteError: If they can be nowhere.
    """
    places = places_of(target)
    if not places:
        raise NoSiteError("nothing reads its units")
    sites = [
        site
        for place in places
        for site in (
            _graph_sites(target, place)
            if calls is None
            else eager_sites(target, place, calls)
        )
    ]
    if not sites:
        raise NoSiteError("none of its values can be gated")
    return sites


def _graph_sites(target: Target, place: Place) -> list[GateSite]:
    found = value_index(target, place.value)
    if found is None:
        raise NoSiteError(f"units lie along several dims of {place.value}")
    node = place.node
    if place.operand in node.args:
        name = str(node.args.index(place.operand))
        return [GateSite("", "input", name, *found, node.name)]
    where: Literal["parameter", "output"] = (
        "parameter" if place.value.op == "get_attr" else "output"
    )
    return [GateSite("", where, "0", *found, place.value.name)]


def _distinct(sites: Iterable[GateSite], in_graph: bool) -> tuple[GateSite, ...]:
    """One site per place: a module that is called twice is gated by one hook."""
    found: dict[tuple[object, ...], GateSite] = {}
    for site in sites:
        node = site.node if in_graph else ""
        key = (site.module, site.where, site.name, site.dim, node)
        first = found.setdefault(key, site)
        if not torch.equal(first.index, site.index):
            raise NoSiteError(f"{site} holds other units in another call")
    return tuple(found.values())


def _nothing_found(analysis: Analysis, kind: str, refused: dict[str, str]) -> GateError:
    lines = [f"0 {kind} groups found that can be gated"]
    for group in analysis.groups:
        if group.kind != kind:
            continue
        why = refused.get(group.name)
        if group.pinned is not None:
            place = module_path(group.pinned.node) or "the model"
            why = f"{group.pinned.text} ({group.pinned.node.name} in {place})"
        lines.append(f"  {group.name}, {group.size} units: {why}")
    if len(lines) == 1:
        unknown = {r.text for g in analysis.pinned for r in g.reasons if r.remedy}
        lines += [f"  {text}, which may hide them" for text in sorted(unknown)]
    shown = lines[: MOST + 1]
    if len(lines) > len(shown):
        shown.append(f"  ... and {len(lines) - len(shown)} more")
    there = sorted({group.kind for group in analysis.groups if not group.reasons})
    shown.append(
        f"  Kinds of group that may shrink: {', '.join(there) or 'none'}. Choose them "
        "with GateConfig(kinds=...); fgcompile.analyze(model) lists all groups."
    )
    return GateError("\n".join(shown))


MOST = 10
"""Groups that an error names at most."""
