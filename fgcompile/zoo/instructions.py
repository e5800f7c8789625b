"""Random programs as bytecode: lists of instructions.

Any part of such a list is a valid program again, so that a failure can be shrunk by
dropping instructions.

An instruction is an operator's name and a few small integers. What an integer means
depends on the values that exist when the instruction is reached: integer 0 is the
latest value that fits, the smallest size, the plainest variant. An instruction that
does not fit is skipped.

Which sizes are static is not computed but observed: every operator is run on two
sets of inputs with different batch sizes and lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

LARGEST = 64
"""Integers of instructions are below this."""

SIZES = (4, 6, 8, 2, 12, 3, 5, 16, 1)
BATCHES = ((3, 11), (5, 13))
"""(batch size, length) of the two sets of inputs that every operator is run on."""

Shape = tuple[int | None, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Instruction:
    """One operator of a random program, and the choices that it makes."""

    op: str
    choices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.op}{list(self.choices)}"


@dataclass(frozen=True)
class Recipe:
    """A random program: what it reads, its instructions, and a seed for its weights."""

    inputs: int
    instructions: tuple[Instruction, ...]
    seed: int = 0

    def __str__(self) -> str:
        lines = [f"  {each}" for each in self.instructions]
        return "\n".join([f"inputs {self.inputs}, weights {self.seed}:", *lines])


class DoesNotFitError(Exception):
    """The instruction does not fit the values that exist."""


class Apply(nn.Module):
    """A function as a module, with parameters and buffers of its own."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function, self.names = function, tuple(tensors)
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *values: Tensor) -> Any:
        own = {name: getattr(self, name) for name in self.names}
        return self.function(*values, **own)


@dataclass(frozen=True)
class Step:
    """One module call; its results are appended to the values."""

    module: str
    operands: tuple[int, ...]


class RandomModel(nn.Module):
    """Runs its steps one after the other on the values made so far."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.outputs: list[int] = []

    def forward(self, x: Tensor, z: Tensor | None = None) -> Any:
        values = [x] if z is None else [x, z]
        for step in self.steps:
            values.extend(self.call(step, values))
        results = tuple(values[k] for k in self.outputs)
        return results[0] if len(results) == 1 else results

    def call(self, step: Step, values: Sequence[Tensor]) -> list[Tensor]:
        """Results of one step."""
        found = getattr(self, step.module)(*(values[k] for k in step.operands))
        return list(found) if isinstance(found, (tuple, list)) else [found]


@dataclass
class Builder:
    """A model under construction, and its values on both sets of inputs."""

    model: RandomModel
    runs: list[list[Tensor]]
    name: Callable[[int, str], str]
    choices: list[int] = field(default_factory=list)
    op: str = ""
    marked: list[int] = field(default_factory=list)

    def pick(self, count: int) -> int:
        """A number below `count`."""
        if count <= 0:
            raise DoesNotFitError
        return (self.choices.pop(0) if self.choices else 0) % count

    def choose(self, options: Sequence[T]) -> T:
        """One of `options`; the first for choice 0."""
        return options[self.pick(len(options))]

    def size(self) -> int:
        """A hidden size."""
        return self.choose(SIZES)

    def shape(self, value: int) -> Shape:
        """Shape of a value; None where it depends on the inputs."""
        one, other = (run[value].shape for run in self.runs)
        return tuple(m if m == n else None for m, n in zip(one, other, strict=True))

    def value(self, fits: Callable[[Shape], bool]) -> int:
        """A value of floating point whose shape fits, more likely a late one."""
        found = [
            k
            for k in reversed(range(len(self.runs[0])))
            if self.runs[0][k].is_floating_point() and fits(self.shape(k))
        ]
        choice = self.pick(LARGEST)
        if not found:
            raise DoesNotFitError
        return found[choice * choice * len(found) // LARGEST**2]

    def features(self, rank: int = 2) -> int:
        """A value of at least that rank whose last dim is static."""
        return self.value(lambda s: len(s) >= rank and s[-1] is not None)

    def last(self, value: int) -> int:
        """Static size of the last dim of `value`."""
        size = self.shape(value)[-1]
        if size is None:
            raise DoesNotFitError
        return size

    def static_dim(self, value: int) -> tuple[int, int]:
        """A static dim of `value`, and its size; the last one for choice 0."""
        shape = self.shape(value)
        dims = [k for k in reversed(range(len(shape))) if shape[k] is not None]
        dim = self.choose(dims)
        size = shape[dim]
        assert size is not None
        return dim, size

    def add(self, module: nn.Module | str, *operands: int) -> int:
        """Call a new module, or one that exists by name; the first new value.

        Raises:
            DoesNotFitError: If it does not run on these operands, or yields no
                useful numbers.
        """
        name = module if isinstance(module, str) else self._register(module)
        step = Step(name, operands)
        made = []
        for run in self.runs:
            try:
                with torch.no_grad():
                    results = self.model.call(step, run)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise DoesNotFitError from error
            if not all(_is_useful(r) for r in results):
                raise DoesNotFitError
            made.append(results)
        if [r.dim() for r in made[0]] != [r.dim() for r in made[1]]:
            raise DoesNotFitError
        first = len(self.runs[0])
        for run, results in zip(self.runs, made, strict=True):
            run.extend(results)
        self.model.steps.append(step)
        return first

    def _register(self, module: nn.Module) -> str:
        name = self.name(len(self.model.steps), self.op)
        self.model.add_module(name, module.double().eval())
        randomise(module)
        return name


def _is_useful(result: Any) -> bool:
    return (
        isinstance(result, Tensor)
        and result.dim() <= 6
        and 0 < result.numel() < 100_000
        and bool(result.isfinite().all())
        and float(result.abs().max()) < 1e3
    )


def randomise(module: nn.Module) -> None:
    """Generic weights: matrices of unit gain, vectors off their initial values."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2:
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for each in module.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm):
                assert each.running_mean is not None
                assert each.running_var is not None
                each.running_mean.normal_(0.0, 0.3)
                each.running_var.uniform_(0.5, 1.5)


Op = Callable[[Builder], None]
OPS: dict[str, Op] = {}
WEIGHTS: dict[str, int] = {}


def op(weight: int = 1) -> Callable[[Op], Op]:
    """Register the decorated function as an operator, drawn that often."""

    def register(function: Op) -> Op:
        OPS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register
