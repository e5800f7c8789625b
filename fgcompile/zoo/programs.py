"""Random programs, and what must hold for every one of them.

Each program is drawn from a seed, some of its units are closed (by gates, some of
them fractional, or by zeros in its parameters), and it is lowered. The lowered model
must compute the same, must not be larger, and must stay as it is when lowered again;
the analysis must not depend on the names of modules, nor the result on the order of
the gates. Some are lowered to the other targets as well.

`python -m fgcompile.zoo.campaign` runs many of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile.analysis.coupling import Analysis, find_groups
from fgcompile.capture import capture
from fgcompile.errors import ExportError, GateError
from fgcompile.gates import GateConfig, GateSpec, gates
from fgcompile.gates.attach import attach
from fgcompile.gates.placement import gate_specs
from fgcompile.lowering import lower
from fgcompile.passes.base import parameter_count
from fgcompile.passes.pipeline import eliminate
from fgcompile.program import Program
from fgcompile.rules.movement import movement_names
from fgcompile.rules.registry import registered_rules
from fgcompile.zoo import random_blocks as random_blocks
from fgcompile.zoo import random_ops as random_ops
from fgcompile.zoo import random_rare_ops as random_rare_ops
from fgcompile.zoo.instructions import (
    BATCHES,
    LARGEST,
    OPS,
    SIZES,
    WEIGHTS,
    Builder,
    DoesNotFitError,
    Instruction,
    RandomModel,
    Recipe,
)

CLOSINGS = ("gates", "groups", "slices")
"""How units are closed: gates; all members of coupled groups; any slices."""

_TURNS = ("groups", "slices", "groups", "slices", "groups", "slices", "gates")
"""Closings by seed: gates need a second trace, which costs most of the time."""

_EVERY = {"symbolic": 2, "names": 8, "order": 3, "module": 20, "onnx": 40}
"""How many seeds apart the dearer checks are, for each way of closing."""

TESTED = ((2, 7), (4, 12), (1, 5))
"""(batch size, length) at which a lowered model is compared."""

TOLERANCE, SINGLE_TOLERANCE = 1e-9, 1e-3
"""Differences that are rounding, in double and in single precision, relative to the
largest output."""

_VOCABULARY = 13
_CHOICES = 10


@dataclass(frozen=True)
class Outcome:
    """What was seen of a program for which everything held.

    Attributes:
        before: Parameters [count].
        after: The same when it was lowered.
        rules: Operators in the captured program that have a rule of their own.
        equal: Other targets to which it was lowered, with equal outputs.
        refused: Other targets that cannot express it, and said so.
    """

    before: int
    after: int
    rules: frozenset[str] = frozenset()
    equal: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class PropertyError(AssertionError):
    """A property does not hold; `stage` names it."""

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(f"{stage}: {text}")
        self.stage = stage


def draw(seed: int) -> Recipe:
    """The random program of that seed."""
    rng = np.random.default_rng(seed)
    names = list(OPS)
    weights = np.array([WEIGHTS[name] for name in names], float)
    drawn = rng.choice(names, int(rng.integers(2, 14)), p=weights / weights.sum())
    instructions = tuple(
        Instruction(str(name), tuple(rng.integers(0, LARGEST, _CHOICES).tolist()))
        for name in drawn
    )
    return Recipe(int(rng.integers(0, LARGEST)), instructions, seed)


def build(recipe: Recipe, name: Callable[[int, str], str] | None = None) -> RandomModel:
    """The model of `recipe`, in float64 and eval mode.

    Args:
        recipe: What to build; the same recipe gives the same weights.
        name: Attribute name of the module of a step, from its number and operator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = RandomModel().eval()
        runs = [list(make_inputs(recipe, *sizes).values()) for sizes in BATCHES]
        builder = Builder(model, runs, name or (lambda k, op: f"{op}{k}"))
        if not runs[0][0].is_floating_point():
            builder.op = "embedding"
            size = SIZES[recipe.seed % len(SIZES)]
            builder.add(nn.Embedding(_VOCABULARY, size), 0)
        for each in recipe.instructions:
            builder.op, builder.choices = each.op, list(each.choices)
            try:
                OPS[each.op](builder)
            except DoesNotFitError:
                continue
        _finish(builder)
    return model


def _finish(builder: Builder) -> None:
    """A head on the last value, so that its units may go; other values as marked."""
    builder.op, builder.choices = "head", []
    last = len(builder.runs[0]) - 1
    if builder.shape(last)[-1:] not in ((), (None,)) and len(builder.marked) < 2:
        # Of numbers that are infinite, or all alike, no head makes better ones.
        with suppress(DoesNotFitError):
            last = builder.add(nn.Linear(builder.last(last), 3), last)
    builder.model.outputs = list(dict.fromkeys([*builder.marked, last]))


def make_inputs(
    recipe: Recipe, batch: int, length: int, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of the kind that `recipe` reads."""
    generator = torch.Generator().manual_seed(seed)
    kind, size = recipe.inputs % 6, SIZES[recipe.inputs // 6 % len(SIZES)]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if kind == 1:
        shape = (batch, length)
        return {"x": torch.randint(0, _VOCABULARY, shape, generator=generator)}
    if kind == 2:
        return {"x": normal(batch, 3, 8, 8)}
    if kind == 3:
        return {"x": normal(batch, size), "z": normal(batch, 5)}
    if kind == 4:
        return {"x": normal(batch, length, size), "z": normal(batch, 1, 6)}
    return {"x": normal(batch, length, size)}


def closing_of(seed: int) -> str:
    """How units of the program of that seed are closed."""
    return _TURNS[seed % len(_TURNS)]


def check(
    recipe: Recipe, closing: str | None = None, fixed: bool | None = None
) -> Outcome:
    """Everything that must hold for `recipe`.

    Args:
        recipe: The program.
        closing: One of `CLOSINGS`; None chooses by the seed.
        fixed: Whether sizes are fixed, so that only one is tested; None chooses by
            the seed.

    Raises:
        PropertyError: If something does not hold.
    """
    closing = closing or closing_of(recipe.seed)
    fixed = not _due("symbolic", recipe) if fixed is None else fixed
    try:
        if closing == "gates":
            return _check_gates(recipe)
        return _check_zeros(recipe, closing, fixed)
    except PropertyError:
        raise
    except Exception as error:
        raise PropertyError(type(error).__name__, str(error)) from error


def _due(name: str, recipe: Recipe) -> bool:
    return recipe.seed // len(_TURNS) % _EVERY[name] == 0


def _check_gates(recipe: Recipe) -> Outcome:
    model, inputs = build(recipe), make_inputs(recipe, *BATCHES[0])
    program = capture(model, inputs)
    analysis = find_groups(program)
    specs = _specs(model, analysis)
    if not specs:
        return _check_zeros(recipe, "groups", fixed=False)
    _attach_closed(model, specs, analysis, recipe)
    before = sum(p.numel() for p in model.parameters())
    lowered = lower(model, example_inputs=inputs)
    _compare(recipe, model, lowered)
    _not_larger(before, lowered.program)
    again = lower(lowered.model, example_inputs=inputs)
    _compare(recipe, model, again)
    _unchanged(lowered.program, again.program)
    if _due("order", recipe):
        other = build(recipe)
        _attach_closed(other, specs[::-1], analysis, recipe)
        _compare(recipe, model, lower(other, example_inputs=inputs))
    targets = _check_targets(recipe, model)
    after = parameter_count(lowered.program)
    return Outcome(before, after, rules_in(program), *targets)


def _specs(model: nn.Module, analysis: Analysis) -> list[GateSpec]:
    """Gates of all kinds that the model has."""
    specs: list[GateSpec] = []
    for kind in dict.fromkeys(g.kind for g in analysis.groups if not g.reasons):
        try:
            specs += gate_specs(analysis, (kind,), model)
        except GateError:
            continue
    return specs


def _attach_closed(
    model: nn.Module, specs: Sequence[GateSpec], analysis: Analysis, recipe: Recipe
) -> None:
    """Gates of which random units are closed, the same ones in every order."""
    attach(model, specs, GateConfig(gate="plain"), model_macs=float(analysis.macs))
    rng = np.random.default_rng(recipe.seed)
    for _, gate in sorted(gates(model).items()):
        share = rng.choice([0.0, 0.3, 0.6, 0.9, 1.0], p=[0.2, 0.3, 0.25, 0.15, 0.1])
        closed = np.flatnonzero(rng.random(gate.size) < share)
        gate.close(torch.from_numpy(closed))
        if rng.random() < 0.4:
            _make_fractional(gate, rng)


def _make_fractional(gate: Any, rng: np.random.Generator) -> None:
    factors = torch.from_numpy(rng.uniform(0.2, 1.0, gate.size)).float()
    with torch.no_grad():
        gate.logits.copy_(factors)
    gate.parametrization = Fractional()


class Fractional:
    """The factor is the logit itself."""

    trainable = False
    span = 1.0
    bound = 1.0

    def initial(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.ones(size)

    def sample_(self, noise: Tensor) -> None:
        noise.zero_()

    def stretched(self, theta: Tensor, noise: Tensor | None) -> Tensor:
        return theta

    def openness(self, theta: Tensor) -> Tensor:
        return theta


def _check_zeros(recipe: Recipe, closing: str, fixed: bool) -> Outcome:
    model, inputs = build(recipe), make_inputs(recipe, *BATCHES[0])
    program = capture(model, inputs, fixed=fixed)
    rng = np.random.default_rng(recipe.seed)
    if closing == "groups":
        analysis = find_groups(program)
        _stable_names(recipe, inputs, analysis, fixed)
        _zero_groups(model, analysis, rng)
    else:
        _zero_slices(model, rng)
    before = parameter_count(program)
    lowered = eliminate(program)
    _compare(recipe, model, lowered)
    _not_larger(before, lowered)
    again = eliminate(lowered)
    _compare(recipe, model, again)
    _unchanged(lowered, again)
    targets = _check_targets(recipe, model)
    return Outcome(before, parameter_count(lowered), rules_in(program), *targets)


def rules_in(program: Program) -> frozenset[str]:
    """Operators of `program` that have a rule of their own, by registered name."""
    schemas = [getattr(node.target, "_schema", None) for node in program.graph.nodes]
    names = {s.name for s in schemas if s is not None}
    names |= {f"{s.name}.{s.overload_name}" for s in schemas if s is not None}
    return frozenset(names & {*registered_rules(), *movement_names()})


def _check_targets(
    recipe: Recipe, model: nn.Module
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The other targets give an equal model, or refuse; which did what."""
    equal, refused = [], []
    for target in ("module", "onnx"):
        if not _due(target, recipe):
            continue
        # Kernels of runtimes are made for single precision.
        single = copy.deepcopy(model).float() if target == "onnx" else model
        inputs = make_inputs(recipe, *BATCHES[0])
        if target == "onnx":
            inputs = {k: _single(v) for k, v in inputs.items()}
        try:
            lowered = lower(single, target, example_inputs=inputs)
        except (ExportError, GateError):
            refused.append(target)
            continue
        _compare(recipe, single, lowered, single=target == "onnx")
        equal.append(target)
    return tuple(equal), tuple(refused)


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _zero_groups(
    model: nn.Module, analysis: Analysis, rng: np.random.Generator
) -> None:
    """Zeros in every member of random units of random groups."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for group in analysis.groups:
        share = rng.choice([0.0, 0.4, 0.7, 1.0], p=[0.35, 0.3, 0.25, 0.1])
        shut = torch.from_numpy(rng.random(group.size) < share)
        for member in group.members:
            if rng.random() < 0.1:
                continue
            rows = (member.index >= 0) & shut[member.index.clamp(min=0)]
            with torch.no_grad():
                indices = rows.nonzero().flatten()
                parameters[member.parameter].index_fill_(member.dim, indices, 0.0)


def _zero_slices(model: nn.Module, rng: np.random.Generator) -> None:
    """Zeros in random slices along random dims of random parameters."""
    for parameter in model.parameters():
        share = rng.choice([0.0, 0.4, 0.8, 1.0], p=[0.4, 0.3, 0.22, 0.08])
        if share and parameter.dim():
            dim = int(rng.integers(parameter.dim()))
            dead = np.flatnonzero(rng.random(parameter.shape[dim]) < share)
            with torch.no_grad():
                parameter.index_fill_(dim, torch.from_numpy(dead), 0.0)


def _compare(
    recipe: Recipe, model: nn.Module, lowered: Any, single: bool = False
) -> None:
    tolerance = SINGLE_TOLERANCE if single else TOLERANCE
    for k, (batch, length) in enumerate((BATCHES[0], *TESTED)):
        inputs = make_inputs(recipe, batch, length, seed=k)
        if single:
            inputs = {name: _single(value) for name, value in inputs.items()}
        with torch.no_grad():
            try:
                expected = pytree.tree_leaves(model(**inputs))
            except (RuntimeError, ValueError, IndexError):  # it refuses these sizes
                continue
            if not _fits(lowered, inputs):
                continue
            actual = pytree.tree_leaves(lowered(**inputs))
        for position, (want, got) in enumerate(zip(expected, actual, strict=True)):
            if want.shape != got.shape:
                text = f"output {position}: {list(got.shape)}, not {list(want.shape)}"
                raise PropertyError("shape", text)
            scale = max(1e-3, float(want.abs().max()))
            wrong = (want - got).abs() > tolerance * scale
            if bool((wrong | (want.isfinite() != got.isfinite())).any()):
                difference = float((want - got).abs().max())
                text = f"output {position} differs by {difference:.3g} of {scale:.3g}"
                raise PropertyError("value", f"{text} at batch {batch}")


def _fits(lowered: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether capture left the sizes that differ from the example's open."""
    program = lowered if isinstance(lowered, Program) else lowered.program
    return all(
        len(node.meta["val"].shape) == value.dim()
        and all(
            not isinstance(want, int) or want == got
            for want, got in zip(node.meta["val"].shape, value.shape, strict=True)
        )
        for node, value in zip(program.placeholders, inputs.values(), strict=True)
    )


def _not_larger(before: int, lowered: Program) -> None:
    """A linear map without bias may get one; nothing else may grow."""
    after = parameter_count(lowered)
    biases = sum(
        program_bias.numel()
        for node in lowered.graph.nodes
        if lowered.is_parameter(node)
        and (program_bias := lowered.parameter(node)).dim() == 1
    )
    if after > before + biases:
        raise PropertyError("larger", f"{before} -> {after} parameters")


def _unchanged(lowered: Program, again: Program) -> None:
    one, other = parameter_count(lowered), parameter_count(again)
    if one != other:
        raise PropertyError("again", f"{one} -> {other} parameters when lowered again")


def _stable_names(recipe: Recipe, inputs: Any, analysis: Analysis, fixed: bool) -> None:
    """The groups of the same model with other module names are the same."""
    if not _due("names", recipe):
        return
    renamed = build(recipe, name=lambda k, op: f"m{(97 * k + 13) % 101}_{k}")
    other = find_groups(capture(renamed, inputs, fixed=fixed))
    one, two = (_fingerprint(a) for a in (analysis, other))
    if one != two:
        raise PropertyError("names", f"groups {one} became {two}")


def _fingerprint(analysis: Analysis) -> list[tuple[Any, ...]]:
    return [
        (g.kind, g.size, len(g.members), bool(g.reasons), float(g.parameters.sum()))
        for g in analysis.groups
    ]
