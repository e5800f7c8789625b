"""The kinds of change between two models: plain frozen data.

Every tuple is in a stable order and nothing here depends on the time, the
machine or a path, so that equal inputs give equal bytes in every rendering.
Counts are exact integers; `None` means "not known", never zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["added", "removed", "changed"]
InterfaceKind = Literal[
    "added", "removed", "renamed", "dtype", "shape", "order", "opset"
]


def digest_of_indices(indices: Sequence[int]) -> str:
    """Twelve hexadecimal digits that name this list of indices."""
    text = ",".join(str(index) for index in indices)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Measure:
    """One count before and after."""

    before: int | None = None
    after: int | None = None

    @property
    def known(self) -> bool:
        return self.before is not None and self.after is not None

    @property
    def delta(self) -> int | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def ratio(self) -> float | None:
        """Relative change; -0.25 means a quarter less."""
        if not self.before or self.after is None:
            return None
        return (self.after - self.before) / self.before


@dataclass(frozen=True)
class Verification:
    """The two models were run on the same inputs.

    Args:
        max_difference: Largest absolute difference over all compared outputs.
        tolerance: Largest difference that counts as equal.
        shapes: The input shapes that were run, as text.
        method: What was compared, such as "fx" or "onnxruntime".
    """

    max_difference: float
    tolerance: float | None = None
    shapes: tuple[str, ...] = ()
    method: str = ""

    @property
    def ok(self) -> bool:
        return self.tolerance is None or self.max_difference <= self.tolerance


@dataclass(frozen=True)
class BudgetResult:
    """One limit that the user set, and whether `after` meets it."""

    measure: str
    limit: str
    actual: str
    ok: bool


@dataclass(frozen=True)
class Verdict:
    """The summary: sizes, whether it was verified, whether budgets hold.

    Args:
        parameters: Parameters [count]; a shared tensor counts once.
        macs: Multiply-accumulates [count] of one forward pass at `macs_shape`.
        size_bytes: Bytes of parameters and buffers.
        macs_shape: The input shape that `macs` is stated for.
        verified: None when nobody ran the two models side by side.
        budgets: One entry per limit that was asked for.
    """

    parameters: Measure = field(default_factory=Measure)
    macs: Measure = field(default_factory=Measure)
    size_bytes: Measure = field(default_factory=Measure)
    macs_shape: str = ""
    verified: Verification | None = None
    budgets: tuple[BudgetResult, ...] = ()

    @property
    def within_budget(self) -> bool:
        return all(budget.ok for budget in self.budgets)


@dataclass(frozen=True)
class InterfaceChange:
    """A caller of the model can see this change.

    Args:
        side: "input", "output" or "model".
        name: The input's or output's name.
        kind: What about it changed.
        before: Its state before, as text; empty if it was not there.
        after: Its state after, as text; empty if it is gone.
        breaking: An existing caller may fail.
    """

    side: Literal["input", "output", "model"]
    name: str
    kind: InterfaceKind
    before: str
    after: str
    breaking: bool


@dataclass(frozen=True)
class Member:
    """One parameter dim of a coupled group, and its size before and after."""

    parameter: str
    dim: int
    before: int
    after: int


@dataclass(frozen=True)
class GroupChange:
    """Parameter dims that shrink (or grow) together.

    Args:
        name: Stable name, such as "encoder.layer.3.mlp".
        kind: "mlp", "head", "qk", "vo", "residual", "expert", "conv", ... or
            "dim" where nothing more is known.
        before: Units before [count].
        after: Units after [count].
        unit_parameters: Parameters [count] that one unit costs before.
        members: The coupled parameter dims.
        kept: Sorted indices of the units that stayed; None if not known.
        entries_per_unit: Indices of a member's dim that make up one unit, for
            a head its head size; 1 where a unit is one index.
    """

    name: str
    kind: str
    before: int
    after: int
    unit_parameters: int | None = None
    members: tuple[Member, ...] = ()
    kept: tuple[int, ...] | None = None
    entries_per_unit: int = 1

    @property
    def kept_digest(self) -> str | None:
        return None if self.kept is None else digest_of_indices(self.kept)


@dataclass(frozen=True)
class AttributeChange:
    """One attribute, operand or output type of a node, before and after."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class NodeChange:
    """A node that came, went, or computes something else.

    Args:
        action: "added", "removed" or "changed".
        op: Operator name, such as "aten.linear" or "MatMul".
        module: Module path; empty where the graph does not say.
        line: Source line "file.py:12" without folders; empty where unknown.
        changes: What changed; empty for added and removed nodes.
        follows: It is the same operation at the new sizes of its operands or
            results, and nothing else about it changed.
    """

    action: Action
    op: str
    module: str = ""
    line: str = ""
    changes: tuple[AttributeChange, ...] = ()
    follows: bool = False


@dataclass(frozen=True)
class ParameterChange:
    """A parameter that came, went, or has another shape, dtype or values."""

    action: Action
    name: str
    shape_before: tuple[int, ...] | None = None
    shape_after: tuple[int, ...] | None = None
    dtype_before: str = ""
    dtype_after: str = ""
    values_changed: bool = False


@dataclass(frozen=True)
class Layer:
    """Parameters [count] that one module owns itself, before and after."""

    module: str
    parameters: Measure
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pinned:
    """Units that had to stay whole, and why.

    Args:
        name: The group or parameter dim.
        size: Units [count] that stay.
        reason: One sentence.
        node: The operator that pinned it.
        module: Its module path.
        line: Its source line, without folders.
        remedy: What the reader can do; empty if nothing.
    """

    name: str
    size: int
    reason: str
    node: str = ""
    module: str = ""
    line: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Variant:
    """One of several files of the same model, measured side by side.

    Args:
        name: Such as "lowered int8".
        size_bytes: Bytes of the file, with the file of its weights.
        latency_ratio: Median time of a call over that of the first variant, measured
            in turns; this one number depends on the machine. None if not measured.
        difference: Largest difference to `reference`, relative to the largest
            magnitude of an output; None if there is none.
        reference: What it was compared with.
    """

    name: str
    size_bytes: int
    latency_ratio: float | None = None
    difference: float | None = None
    reference: str = ""


@dataclass(frozen=True)
class Note:
    """One sentence that the reader needs, such as a closed unit that stayed.

    `level` "info" explains, "warning" asks for attention.
    """

    text: str
    subject: str = ""
    level: Literal["info", "warning"] = "info"
