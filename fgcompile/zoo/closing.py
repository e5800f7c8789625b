"""Closes gates of a zoo model at random, lowers it, and says what became of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import Analysis
from fgcompile.compiler import analyze
from fgcompile.errors import FgcompileError, GateError
from fgcompile.gates import GateConfig, gates
from fgcompile.gates.attach import attach
from fgcompile.gates.independent import specs_for
from fgcompile.lowering import Lowered, lower
from fgcompile.passes.base import parameter_count
from fgcompile.zoo.models import entry as entry_called
from fgcompile.zoo.registry import Entry

GATED = ("mlp", "head", "qk", "vo", "conv", "residual", "expert")
"""Kinds that can have gates, as tried one after the other."""

ALL = "all"
"""Gates of all these kinds at once."""

Verdict = Literal["equal", "no export", "-"]


@dataclass(frozen=True)
class Closing:
    """One kind of group of one model, closed at random and lowered.

    Attributes:
        kind: Of the gates; `ALL` if there were gates of every kind.
        groups: Number of gates; 0 if there is no place for any, which `notes` explain.
        before: Parameters [count] of the dense model.
        after: Parameters [count] of the lowered one.
        expected: Parameters [count] if every closed unit went.
        difference: Largest difference to the gated model, relative to the output.
        onnx: Whether onnxruntime agrees.
        notes: Why closed units stayed.
        error: What failed, or "".
    """

    kind: str
    groups: int = 0
    before: int = 0
    after: int = 0
    expected: int = 0
    difference: float = 0.0
    onnx: Verdict = "-"
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def share(self) -> float:
        """Of the parameters that the closed units are worth, the part that went."""
        due = self.before - self.expected
        return (self.before - self.after) / due if due else 1.0


@dataclass(frozen=True)
class Result:
    """What became of one model.

    Attributes:
        name: Of the zoo entry.
        groups: Number of groups that may shrink, by kind.
        pinned: Number of groups that stay whole, by reason.
        closings: One per kind.
        seconds: Wall time of all of it [s].
        error: Why it was not even analysed, or "".
    """

    name: str
    groups: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)
    closings: tuple[Closing, ...] = ()
    seconds: float = 0.0
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.error) or any(c.error for c in self.closings)


def close_and_lower(
    entry: Entry,
    kinds: tuple[str, ...] = GATED,
    *,
    onnx: bool = False,
    seed: int = 0,
) -> Result:
    """Tries every kind in `kinds` that `entry` has groups of, one after the other.

    With `onnx`, all of them together as well, with other units, as an ONNX file.
    """
    start = time.perf_counter()
    try:
        analysis = analyze(entry.build(), entry.example_inputs())
    except FgcompileError as error:
        return Result(entry.name, error=first_line(error))
    free = Counter(str(g.kind) for g in analysis.groups if g.pinned is None)
    whole = Counter(g.pinned.text for g in analysis.groups if g.pinned is not None)
    present = tuple(kind for kind in kinds if free[kind])
    closings = [_close(entry, analysis, (kind,), False, seed) for kind in present]
    gated = tuple(closing.kind for closing in closings if closing.groups)
    if onnx and gated:
        closings.append(_close(entry, analysis, gated, True, seed + 1))
    seconds = time.perf_counter() - start
    return Result(entry.name, dict(free), dict(whole), tuple(closings), seconds)


def close_by_name(name: str, kinds: tuple[str, ...], onnx: bool, seed: int) -> Result:
    """`close_and_lower` for a process of its own."""
    torch.set_num_threads(1)
    return close_and_lower(entry_called(name), kinds, onnx=onnx, seed=seed)


def _close(
    entry: Entry, analysis: Analysis, kinds: tuple[str, ...], onnx: bool, seed: int
) -> Closing:
    model, label = entry.build(), ALL if onnx else kinds[0]
    try:
        config = GateConfig(kinds=kinds, gate="plain")
        try:
            specs = specs_for(analysis, config, model)
        except GateError as error:
            return Closing(label, notes=tuple(_reasons(error)))
        attach(model, specs, config, model_macs=float(analysis.macs))
        closed = close_at_random(model, seed)
        lowered, verdict = _lower(entry, model, onnx)
    except FgcompileError as error:
        return Closing(label, error=first_line(error))
    assert lowered.comparison is not None
    return Closing(
        label,
        len(specs),
        analysis.parameters,
        parameter_count(lowered.program),
        analysis.parameters_after(closed),
        lowered.comparison.relative,
        verdict,
        _notes(lowered, analysis, closed),
    )


def _reasons(error: GateError) -> list[str]:
    """One line for each group that has no place for a gate."""
    lines = str(error).splitlines()[1:-1]
    return [f"no gate: {line.strip()}" for line in lines]


def close_at_random(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Closes half of the units of every gate; which ones, by gate name."""
    generator = torch.Generator().manual_seed(seed)
    closed = {}
    for name, gate in gates(model).items():
        units = torch.randperm(gate.size, generator=generator)[: gate.size // 2]
        if len(units):
            gate.close(units)
            closed[name] = units
    return closed


def _lower(entry: Entry, model: nn.Module, onnx: bool) -> tuple[Lowered, Verdict]:
    """The graph, or the ONNX model of it, which is compared after the graph was."""
    if not onnx:
        return lower(model, example_inputs=entry.example_inputs()), "-"
    try:
        return lower(model, "onnx", example_inputs=entry.example_inputs()), "equal"
    except FgcompileError:
        if _exports(entry):
            raise
    return lower(model, example_inputs=entry.example_inputs()), "no export"


def _exports(entry: Entry) -> bool:
    try:
        lower(entry.build(), "onnx", example_inputs=entry.example_inputs())
    except FgcompileError:
        return False
    return True


def _notes(
    lowered: Lowered, analysis: Analysis, closed: dict[str, Tensor]
) -> tuple[str, ...]:
    if parameter_count(lowered.program) <= analysis.parameters_after(closed):
        return ()
    stays = [note for note in lowered.report.notes if note.level == "warning"]
    return tuple(f"{note.subject}: {note.text}" for note in stays)


def first_line(error: Exception) -> str:
    """What failed, without the details."""
    return str(error).partition("\n")[0]
