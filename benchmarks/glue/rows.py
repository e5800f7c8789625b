"""The rows of the table: one recipe per method, from a new model to a trained one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

import fgcompile
from benchmarks.glue.training import Run, count_trainable, train_only
from fgcompile import Budget, GateConfig, methods

FULL_LR = 5e-5
SMALL_LR = 1e-3
"""Peak rates where all weights are trained, and where few are."""

GATES_LR = 1e-2
"""Of FineGates as published, at a twelfth of its 100 epochs: the authors' 1e-3 would
close nothing in so few steps."""

PST_LR = 5e-5
"""The paper's. U and A are drawn from N(0, 1), so one step moves a weight by nearly
three times the rate: at `SMALL_LR` nothing of the model is left."""

SMALL_EPOCHS = 1.6
"""Passes of rows that train few parameters, relative to full fine-tuning."""

PRUNE, RECOVER = 0.4, 0.8
"""Passes until a budget is met, and at least after it, relative to full fine-tuning."""

RECOVER_LR = 1e-4
"""Peak rate of the smaller model. Small BERTs are commonly trained at higher rates than
large ones; every row that recovers has the same, with a teacher or without."""

Recipe = Callable[[Run], nn.Module]


@dataclass(frozen=True)
class Row:
    """One method: what the table calls it, how it is trained, what it removes.

    Attributes:
        title: In the table.
        recipe: From a run to the trained model, which `lower` takes.
        removed: Fraction of the encoder's linear parameters that it is asked to
            remove, by default; 0 for methods that remove none.
        quantization: How the file's weights are rounded. It is the file that is scored.
    """

    title: str
    recipe: Recipe
    removed: float = 0.0
    quantization: Literal["int8"] | None = None


def full(run: Run) -> nn.Module:
    """All weights, no gates; kept as the teacher of its task and seed."""
    model = run.fresh()
    run.fit(model, run.epochs, FULL_LR)
    run.keep(model)
    return model


def lora(run: Run) -> nn.Module:
    """LoRA of `peft`: rank 8 on queries and values, as in its paper."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        modules_to_save=["classifier", "pooler"],
    )
    model: Any = get_peft_model(run.fresh(), config)
    run.fit(model, SMALL_EPOCHS * run.epochs, SMALL_LR)
    merged: nn.Module = model.merge_and_unload()
    return merged


def bitfit(run: Run) -> nn.Module:
    """The biases alone."""
    model = run.fresh()
    train_only(model, lambda name: name.endswith("bias"))
    run.fit(model, SMALL_EPOCHS * run.epochs, SMALL_LR, weight_decay=0.0)
    return model


def finegates(run: Run) -> nn.Module:
    """As published: independent gates, biases and head; the weights are frozen."""
    config = replace(GateConfig.paper_finegates_glue(), lr=GATES_LR, seed=run.seed)
    model = fgcompile.insert_gates(run.fresh(), config=config)
    train_only(model, _is_gated_bias)
    run.fit(
        model,
        SMALL_EPOCHS * run.epochs,
        SMALL_LR,
        decay=(1.0, 1.0),
        weight_decay=0.0,
    )
    run.notes["counted_removed"] = 1 - fgcompile.status(model)["cost"]["params"]
    return model


def shared(run: Run) -> nn.Module:
    """One gate per coupled group and a budget; the weights are frozen."""
    epochs = SMALL_EPOCHS * run.epochs
    model = _gated(run, run.fresh(), epochs / 3)
    train_only(model, _is_gated_bias)
    run.fit(model, epochs, SMALL_LR, weight_decay=0.0)
    return model


def shared_low_rank(run: Run) -> nn.Module:
    """Shared gates and a budget; the weights adapt by updates of rank 8."""
    epochs = SMALL_EPOCHS * run.epochs
    model = _gated(run, run.fresh(), epochs / 3)
    methods.insert_low_rank(model, rank=8)
    train_only(model, lambda name: False)
    run.fit(model, epochs, SMALL_LR, weight_decay=0.0)
    return model


def shared_full(run: Run) -> nn.Module:
    """Shared gates, a budget, all weights; what is left is trained on as it is."""
    return _prune_and_recover(run, run.fresh(), GateConfig(), teacher=None)


def shared_dense(run: Run) -> nn.Module:
    """The same from the dense model, which does not teach."""
    return _prune_and_recover(run, run.teacher(), GateConfig(), teacher=None)


def shared_distilled(run: Run) -> nn.Module:
    """The same from the dense model, which also teaches."""
    model = run.teacher()
    return _prune_and_recover(run, model, GateConfig(), teacher=run.teacher())


def cofi(run: Run) -> nn.Module:
    """Hard-concrete gates under CoFi's Lagrangian, all weights, no teacher."""
    config = GateConfig(gate="hard_concrete")
    return _prune_and_recover(run, run.fresh(), config, teacher=None, ascent=0.1)


def pst(run: Run) -> nn.Module:
    """PST with whole units; the weights are frozen."""
    epochs = SMALL_EPOCHS * run.epochs
    config = methods.PstConfig(
        steps=run.steps(epochs), sparsity=run.removed, structured=True, seed=run.seed
    )
    model = methods.insert_pst(run.fresh(), config)
    train_only(model, lambda name: False)
    run.fit(model, epochs, PST_LR, weight_decay=0.0)
    return methods.bake_pst(model)


def s2ft(run: Run) -> nn.Module:
    """S2FT: one head and a twentieth of the channels of every layer."""
    config = methods.S2ftConfig(heads=1 / 12, channels=0.05, seed=run.seed)
    model = methods.insert_s2ft(run.fresh(), config)
    train_only(model, lambda name: False)
    run.fit(model, SMALL_EPOCHS * run.epochs, SMALL_LR, weight_decay=0.0)
    return methods.remove_s2ft(model)


def dense(run: Run) -> nn.Module:
    """The fine-tuned model as it is, for what needs no training."""
    model: nn.Module = run.teacher()
    run.trainable = count_trainable(model)
    return model


def taylor(run: Run) -> nn.Module:
    """Torch-Pruning by Taylor's criterion from the dense model, then trained on."""
    return _torch_pruning(run, "taylor")


def magnitude(run: Run) -> nn.Module:
    """Torch-Pruning by magnitude from the dense model, then trained on."""
    return _torch_pruning(run, "magnitude")


def _torch_pruning(run: Run, criterion: str) -> nn.Module:
    """As many passes as rows with a budget have, at the rate that these recover at."""
    from benchmarks.glue import with_torch_pruning as peer

    model: nn.Module = run.teacher()
    peer.prune(run, model, peer.CRITERIA[criterion])
    run.fit(model, (PRUNE + recovery(run.removed)) * run.epochs, RECOVER_LR)
    return model


ROWS = {
    "full": Row("full fine-tuning", full),
    "int8": Row("full fine-tuning, int8 weights", dense, quantization="int8"),
    "lora": Row("LoRA", lora),
    "bitfit": Row("BitFit", bitfit),
    "s2ft": Row("S2FT", s2ft),
    "finegates": Row("FineGates as published", finegates),
    "pst": Row("PST, structured", pst, 0.4),
    "shared": Row("shared gates, frozen weights", shared, 0.4),
    "shared-lora": Row("shared gates, low rank", shared_low_rank, 0.4),
    "cofi": Row("hard-concrete, CoFi's Lagrangian", cofi, 0.5),
    "shared-full": Row("shared gates, all weights", shared_full, 0.5),
    "taylor": Row("Torch-Pruning, Taylor", taylor, 0.4),
    "magnitude": Row("Torch-Pruning, magnitude", magnitude, 0.4),
    "shared-dense": Row("shared gates, from dense, no teacher", shared_dense, 0.5),
    "shared-distilled": Row("shared gates, distilled", shared_distilled, 0.5),
}


def recovery(removed: float) -> float:
    """Passes after the budget is met: more where more is gone, as steps cost less.

    0.8 up to 50 %, 1.2 at 65 %, 1.6 at 80 %, relative to full fine-tuning.
    """
    return RECOVER + max(0.0, removed - 0.5) * 8 / 3


def _is_gated_bias(name: str) -> bool:
    return ".encoder." in name and name.endswith("bias") and "LayerNorm" not in name


def _gated(
    run: Run,
    model: nn.Module,
    epochs: float,
    config: GateConfig | None = None,
    ascent: float = 0.0,
) -> nn.Module:
    """`model` with gates that meet the budget after so many passes."""
    budget = Budget(params=1 - run.removed, steps=run.steps(epochs), ascent=ascent)
    config = replace(config or GateConfig(), budget=budget, seed=run.seed)
    return fgcompile.insert_gates(model, config=config)


def _prune_and_recover(
    run: Run,
    model: nn.Module,
    config: GateConfig,
    teacher: nn.Module | None,
    ascent: float = 0.0,
) -> nn.Module:
    """Trains under gates until the budget is met, then the smaller model itself.

    The selection is final once a budget is met, so nothing is lost by lowering there,
    and every later step is as much faster as the model is smaller. Logits, hidden
    states and the task count alike: while 80 % of MRPC's model went, their terms were
    about 0.1, 0.17 and 0.5.
    """
    prune, recover = PRUNE * run.epochs, recovery(run.removed) * run.epochs
    model = _gated(run, model, 0.9 * prune, config, ascent)
    if teacher is not None:
        methods.distill(model, teacher)
    run.fit(model, prune, FULL_LR, decay=(1.0, 1.0))
    if teacher is not None:
        methods.remove_distillation(model)
    small: nn.Module = fgcompile.lower(model, "module").model
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    if teacher is not None:
        methods.distill(small, teacher)
    run.fit(small, recover, RECOVER_LR)
    return methods.remove_distillation(small)
