"""One training run: its models, its loop, and what the record says about it."""

from __future__ import annotations

import logging
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

import fgcompile
from benchmarks.glue.data import SETTINGS, TaskData
from fgcompile import methods
from fgcompile.gates import find_container
from fgcompile.methods.distillation import DistillHook

logger = logging.getLogger("benchmarks.glue")

HEAD = ("classifier", "pooler")
"""Parts that every row trains, and that papers leave out of their counts."""

WARM_UP = 0.06


@dataclass
class Run:
    """What a row's recipe works with, and what it leaves behind.

    Attributes:
        data: Rows of the task.
        removed: Fraction of the encoder's linear parameters to remove; recipes
            without a budget ignore it.
        seed: Of the new classifier, order, dropout and gates.
        work: Folder for the weights of dense models.
        dense: How a dense model is trained, for teachers that are not there.
        scale: Factor on all epochs, for trying out.
        notes: What the recipe wants the record to say.
    """

    data: TaskData
    removed: float
    seed: int
    work: Path
    dense: Callable[[Run], nn.Module]
    scale: float = 1.0
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    trainable: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Passes over the rows in full fine-tuning."""
        return SETTINGS[self.data.task].epochs

    @property
    def _dense_folder(self) -> Path:
        return self.work / "dense" / f"{self.data.task}-s{self.seed}"

    def fresh(self) -> Any:
        """The pretrained encoder with a new classifier, from the seed."""
        set_seed(self.seed)
        return self.data.model()

    def teacher(self) -> Any:
        """The dense model of this task and seed, trained if it is not there."""
        folder = self._dense_folder
        if not (folder / "config.json").is_file():
            inner = Run(
                self.data, 0.0, self.seed, self.work, self.dense, scale=self.scale
            )
            self.dense(inner)
        set_seed(self.seed)
        return AutoModelForSequenceClassification.from_pretrained(folder)

    def keep(self, model: Any) -> None:
        """Saves `model` as the dense one of this task and seed, in place of another.

        A kill at any time leaves a whole folder or none: what it leaves beside it is
        removed by the next call.
        """
        folder = self._dense_folder
        partial, old = folder.with_suffix(".partial"), folder.with_suffix(".old")
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)
        model.save_pretrained(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many passes."""
        return max(1, round(epochs * self.scale * self.data.steps_per_epoch))

    def fit(
        self,
        model: nn.Module,
        epochs: float,
        lr: float,
        *,
        decay: tuple[float, float] = (1.0, 0.0),
        weight_decay: float = 0.01,
    ) -> None:
        """Trains `model` in place with AdamW.

        Args:
            model: Returns a loss; what it trains is what requires gradients.
            epochs: Passes over the rows.
            lr: Peak rate of everything but gates that bring their own.
            decay: Factor of the rates at the start and at the end, linear between.
            weight_decay: Of everything but gates.
        """
        steps = self.steps(epochs)
        if not self.trainable:
            self.trainable = count_trainable(model)
        optimizer = torch.optim.AdamW(_groups(model, lr, weight_decay), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _factor(step, steps, decay)
        )
        losses: list[float] = []
        times: list[float] = []
        start = time.perf_counter()
        model.train()
        for inputs in self._inputs(steps):
            began = time.process_time()
            loss = model(**inputs)["loss"]
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            times.append(time.process_time() - began)
            losses.append(loss.item())
            if len(losses) % self.data.steps_per_epoch == 0 or len(losses) == steps:
                recent = losses[-self.data.steps_per_epoch :]
                _log(model, len(losses), steps, statistics.fmean(recent))
        model.eval()
        self.stages.append(
            {
                "epochs": epochs * self.scale,
                "steps": steps,
                "lr": lr,
                "decay": list(decay),
                "parameters": sum(p.numel() for p in model.parameters()),
                "step_cpu_s": statistics.median(times),
                "wall_s": time.perf_counter() - start,
                "loss": statistics.fmean(losses[-self.data.steps_per_epoch :]),
                "distances": distances(model),
            }
        )

    def _inputs(self, steps: int) -> Iterable[dict[str, torch.Tensor]]:
        # Stages go on where the last one stopped: other orders, not the same again.
        generator = torch.Generator().manual_seed(self.seed + 1000 * len(self.stages))
        done = 0
        while done < steps:
            for inputs in self.data.batches(generator):
                if done == steps:
                    return
                yield inputs
                done += 1


def count_trainable(model: nn.Module) -> dict[str, int]:
    """Parameters that are trained: `head` (pooler, classifier), and all the `rest`."""
    counts = {"rest": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = any(part in name for part in HEAD)
            counts["head" if head else "rest"] += parameter.numel()
    return counts


def train_only(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Only the head, the gates and the parameters whose name is `wanted` train."""
    for name, parameter in model.named_parameters():
        own = "fgcompile" in name or any(part in name for part in HEAD)
        parameter.requires_grad_(own or wanted(name))


def _groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    if find_container(model) is not None:
        return fgcompile.param_groups(model, lr, weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": trained, "lr": lr, "weight_decay": weight_decay}]


def _factor(step: int, steps: int, decay: tuple[float, float]) -> float:
    warm = max(1, int(WARM_UP * steps))
    along = step / steps
    return min(1.0, (step + 1) / warm) * (decay[0] + (decay[1] - decay[0]) * along)


def distances(model: nn.Module) -> dict[str, float]:
    """To the teacher in the last step, by what is compared; empty without one."""
    hooks = model._forward_hooks.values()
    found = [hook.last for hook in hooks if isinstance(hook, DistillHook)]
    return {name: float(value) for last in found for name, value in last.items()}


def _log(model: nn.Module, step: int, steps: int, loss: float) -> None:
    words = f"step {step} of {steps}, loss {loss:.4f}"
    if find_container(model) is not None:
        cost = fgcompile.status(model)["cost"]["params"]
        words += f", {cost:.1%} of the gated parameters open"
    for name, value in distances(model).items():
        words += f", {name} {value:.3f} from the teacher's"
    if methods.find_pst(model) is not None:
        words += f", {methods.pst_status(model)['zeros']:.1%} masked"
    logger.info(words)
