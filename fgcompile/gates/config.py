"""What the user can choose about gates, and the settings of the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fgcompile.errors import GateError
from fgcompile.gates.latency import LatencyTable
from fgcompile.gates.parametrization import Parametrization, parametrization


def check_choices(config: Any) -> None:
    """Raises unless every option is one of the choices that its type lists.

    Raises:
        GateError: If one is not; the choices are named.
    """
    for name, hint in get_type_hints(type(config)).items():
        hints = (hint, *get_args(hint))
        choices = [c for h in hints if get_origin(h) is Literal for c in get_args(h)]
        value = getattr(config, name)
        if choices and isinstance(value, str) and value not in choices:
            raise GateError(
                f"{type(config).__name__}({name}={value!r}): expected one of "
                f"{', '.join(choices)}"
            )


def _check_not_negative(config: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise GateError(
                f"{type(config).__name__}({name}={value}): expected at least 0"
            )


@dataclass(frozen=True)
class Budget:
    """How much of the cost may stay when training ends.

    A limit is a fraction in (0, 1] of the gated cost: what the units of all gates are
    worth together, as counted by the analysis. With `of="model"` it is a fraction of
    the whole model, of which the ungated part always stays. If several limits are
    given, all hold.

    A limit on latency is always a fraction of what the dense model takes in ONNX
    Runtime on `batch` rows of `length` tokens. `insert_gates` measures that on this
    machine, once: the dense model, and what the units of a group take part in with
    fewer of them.

    The allowed cost falls linearly from everything to the limit during the first
    `steps` optimizer steps, and stays there. At every step the counted cost of the
    open units is at or below it, by less than the cost of the cheapest unit (with
    latency, of any unit). Which units stay open is final once the limit is reached.

    Attributes:
        params: Limit on parameters.
        macs: Limit on multiply-accumulates.
        latency: Limit on the predicted latency in ONNX Runtime.
        batch: Rows that latency is measured with.
        length: Tokens in a row; not read for models without a dynamic length.
        threads: Threads of the runtime while measuring.
        measured: What `measure_latency` found, here or on another machine; None
            measures when the gates are inserted.
        steps: Optimizer steps until the limit is reached; a third to a half of the
            training is a good choice. None means 100, so that short runs meet it too.
        begin: Optimizer steps before anything is pruned.
        of: What a limit on parameters or MACs is a fraction of.
        evenness: Every group keeps at least this fraction of the units that it would
            keep if all groups were pruned alike, so that none becomes a bottleneck.
            With 0 a whole group may go, and its block of the model with it.
        ascent: Rate at which the multipliers of a penalty grow (CoFi's Lagrangian),
            times the square root of the number of units; 0.1 is a choice. With 0 there
            is no penalty: importance alone decides which units go, and those that
            stay feel nothing but the task.
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    batch: int = 1
    length: int = 128
    threads: int = 1
    measured: LatencyTable | None = field(default=None, repr=False)
    steps: int | None = None
    begin: int = 0
    of: Literal["gated", "model"] = "gated"
    evenness: float = 0.7
    ascent: float = 0.0

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            GateError: If there is no limit, one is not in (0, 1], or another number
                or choice is none.
        """
        check_choices(self)
        if not self.limits:
            raise GateError("Budget needs a limit: params=0.6, macs=0.5 or latency=0.7")
        for what, limit in self.limits.items():
            if not 0 < limit <= 1:
                raise GateError(
                    f"Budget({what}={limit}): a limit is the fraction that may stay, "
                    "in (0, 1]"
                )
        for name in ("steps", "batch", "length", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise GateError(f"Budget({name}={number}): expected at least 1")
        if not 0 <= self.evenness <= 1:
            raise GateError(f"Budget(evenness={self.evenness}): expected 0 to 1")
        _check_not_negative(self, ("begin", "ascent"))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by what they limit."""
        given = {"params": self.params, "macs": self.macs, "latency": self.latency}
        return {what: limit for what, limit in given.items() if limit is not None}

    @property
    def ramp(self) -> int:
        """Optimizer steps until the limit is reached."""
        return 100 if self.steps is None else self.steps


@dataclass(frozen=True)
class GateConfig:
    """Which gates to insert, and how they are trained.

    The defaults are ours; they make gates learn in any training loop, with whatever
    learning rate and weight decay the optimizer has for the weights:

    - `rate` paces the gates by themselves: the optimizer gives the direction, and its
      largest step so far moves a gate by `rate` of the way from open to closed. A
      learning-rate schedule keeps its shape. Scaling the logits by a constant would
      be right for one learning rate only.
    - Gates start at factor exactly 1 (the eval model is unchanged), where the clamp
      is just about to be linear; the papers start beyond it, where gates feel no
      task gradient at first.
    - `straight_through` lets saturated and pruned units keep learning, so that a unit
      pruned by mistake can come back.

    Attributes:
        coupling: `shared` is one gate per coupled group, whose closed units vanish
            everywhere. `none` is what the papers do: two gates for every matrix of
            the groups, on its outputs (with the bias) and on its inputs. Lowering then
            removes what both sides of a group closed, or what no longer matters.
        kinds: Kinds of coupled group that get a gate; each must be there. None is
            `mlp` and `head`, as far as the model has them, or `conv` where it has
            neither.
        gate: `finegates`, `hard_concrete` or `plain`.
        budget: What may stay; without one, `objective` is `finegates`.
        objective: `budget`, `finegates` or `none`; None chooses by `budget`.
        target_sparsity: Of the `finegates` objective; not the fraction of zeros.
        weight: Factor of the `finegates` objective (lambda); the papers use 50 with
            gates that move slower.
        begin: Optimizer steps before the `finegates` objective starts.
        weighting: Of the groups in that objective: by what they cost, or all equal.
        kurtosis: Weight rows and columns in that objective by how evenly the weights
            behind them are used; the papers' variant, for `coupling="none"`.
        init_mean: Mean of the logits at the start; None is the edge of the clamp,
            where the factor is 1.
        init_std: Their standard deviation; None is 0.
        noise: Standard deviation of the noise in training (`finegates` only).
        bound: Largest magnitude of a `finegates` logit.
        rate: See above; "auto" is 0.02, or 0.002 with a budget, whose selection does
            not wait for gates to move. None leaves the steps to the optimizer.
        straight_through: See above.
        lr: Learning rate for `param_groups`; None means that of the weights.
        seed: Of the logits at the start.
    """

    coupling: Literal["shared", "none"] = "shared"
    kinds: tuple[str, ...] | None = None
    gate: str = "finegates"
    budget: Budget | None = None
    objective: Literal["budget", "finegates", "none"] | None = None
    target_sparsity: float = 0.4
    weight: float = 5.0
    begin: int = 0
    weighting: Literal["cost", "equal"] = "cost"
    kurtosis: bool = False
    init_mean: float | None = None
    init_std: float | None = None
    noise: float = 0.1
    bound: float = 1.5
    rate: float | Literal["auto"] | None = "auto"
    straight_through: bool = True
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the choices, by themselves and against each other.

        Raises:
            GateError: If one is none, or the objective cannot work with the others.
        """
        check_choices(self)
        _check_not_negative(self, ("weight", "begin", "init_std", "noise", "lr"))
        if self.rate != "auto" and self.rate is not None and not self.rate > 0:
            raise GateError(f"GateConfig(rate={self.rate}): expected above 0")
        if not self.bound > 0:
            raise GateError(f"GateConfig(bound={self.bound}): expected above 0")
        self.parametrization()
        if (self.resolved_objective == "budget") != (self.budget is not None):
            raise GateError(
                f"GateConfig: objective {self.objective!r} with budget {self.budget}\n"
                "  Give a Budget and leave objective alone, or neither."
            )
        if self.budget is not None and self.gate == "plain":
            raise GateError("GateConfig: plain gates do not learn, so no budget holds")
        if self.budget is not None and self.coupling == "none":
            raise GateError(
                "GateConfig: with coupling='none' a unit has no cost of its own, so no "
                "budget can be counted\n"
                "  Use target_sparsity, or coupling='shared' with the Budget."
            )
        uncoupled = self.coupling == "none" and self.resolved_objective == "finegates"
        if self.kurtosis and not uncoupled:
            raise GateError(
                "GateConfig: kurtosis weights the rows and columns of single matrices\n"
                "  Use it with coupling='none' and the finegates objective."
            )
        self._check_target()
        self._check_feeling()

    def _check_target(self) -> None:
        # Openness spans Phi(-1) to Phi(3): 1 - target below it cannot be reached.
        if self.resolved_objective == "finegates" and not (
            0 <= self.target_sparsity <= 0.841
        ):
            raise GateError(
                f"GateConfig: target_sparsity {self.target_sparsity} is unreachable; "
                "the openness of a gate is at least 0.159\n"
                "  Choose at most 0.841, or give a Budget, which counts zeros."
            )

    def _check_feeling(self) -> None:
        # Steps are counted by what moves; the schedule waits for the first of them.
        deaf = self.gate == "finegates" and not self.noise and not self.straight_through
        if deaf and (self.begin or self.budget is not None):
            raise GateError(
                "GateConfig: without noise and straight_through, open gates feel no "
                "loss, so that no step would ever be counted\n"
                "  Give one of the two, or neither begin nor a budget."
            )

    @property
    def resolved_objective(self) -> str:
        """The objective, chosen by the other settings where it is not given."""
        if self.objective is not None:
            return self.objective
        if self.budget is not None:
            return "budget"
        return "finegates" if self.gate == "finegates" else "none"

    @property
    def resolved_rate(self) -> float | None:
        """The rate, chosen by the other settings where it is "auto"."""
        if self.rate == "auto":
            return 0.02 if self.budget is None else 0.002
        return self.rate

    def parametrization(self) -> Parametrization:
        """The parametrisation with the options set here."""
        options: dict[str, float] = {}
        if self.gate != "plain":
            # A little beyond the edge, or rounding could leave a factor below 1.
            edge = 1.001 * parametrization(self.gate).span / 2
            options |= {"mean": edge, "std": 0.0}
        if self.gate == "finegates":
            options |= {"noise": self.noise, "bound": self.bound}
        if self.init_mean is not None:
            options["mean"] = self.init_mean
        if self.init_std is not None:
            options["std"] = self.init_std
        return parametrization(self.gate, **options)

    @classmethod
    def paper_finegates_glue(cls) -> GateConfig:
        """FineGates on GLUE with RoBERTa: target 0.4, lambda 50, lr 1e-3, no decay."""
        return cls._paper(lr=1e-3)

    @classmethod
    def paper_finegates_posttrain(cls) -> GateConfig:
        """FineGates after training (Llama-2-7B on C4): target 0.3, lr 1e-2.

        The authors also gate the output head, whose outputs no lowering can remove.
        """
        return cls._paper(target_sparsity=0.3, lr=1e-2)

    @classmethod
    def paper_finegates_pretrain(cls) -> GateConfig:
        """FineGates in pre-training (1B Llama): lambda 100 from step 1000, lr 1e-2.

        The authors leave the projection back to the residual stream without gates.
        """
        return cls._paper(weight=100.0, begin=1000, lr=1e-2)

    @classmethod
    def peft_finegates(cls) -> GateConfig:
        """The authors' PEFT defaults: no noise, mean 0.9, target 0.2, lambda 0.01."""
        return cls._paper(
            init_mean=0.9, noise=0.0, target_sparsity=0.2, weight=1e-2, lr=None
        )

    @classmethod
    def _paper(
        cls,
        *,
        lr: float | None,
        target_sparsity: float = 0.4,
        weight: float = 50.0,
        begin: int = 0,
        init_mean: float = 1.0,
        noise: float = 0.1,
    ) -> GateConfig:
        # Source: FineGates, the authors' scripts; see FineGates in parametrization.
        return cls(
            coupling="none",
            objective="finegates",
            target_sparsity=target_sparsity,
            weight=weight,
            begin=begin,
            weighting="equal",
            init_mean=init_mean,
            init_std=0.1,
            noise=noise,
            bound=math.inf,
            rate=None,
            straight_through=False,
            lr=lr,
        )
