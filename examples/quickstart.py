"""Train a small vision transformer, let gates choose what it needs, ship the rest.

Real data and no downloads: the 1,797 handwritten digits that come with scikit-learn.
Takes about two minutes on two cores and writes out/model.onnx, out/report.md and
out/training.png.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

import fgcompile
from fgcompile.report import GraphDiff

OUT = Path("out")
ONNX = OUT / "model.onnx"
BATCH = 64
WARM_UP = 15  # epochs before the gates, shared by the twins
EPOCHS = 30  # epochs of each twin
KEEP = 0.5  # of all the model's parameters

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Digits:
    """Images [n 1 8 8] in -1..1 and their digits [n], split once for good."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass
class History:
    """One entry per optimizer step."""

    loss: list[float] = field(default_factory=list)
    open: list[float] = field(default_factory=list)


def read_digits() -> Digits:
    """A quarter of the digits is held out, every class in its share."""
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(raw.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.25, stratify=raw.target, random_state=0
    )
    return Digits((images[train], labels[train]), (images[test], labels[test]))


def vision_transformer() -> nn.Module:
    """Four layers, 64 wide, on 16 patches of 2 x 2 pixels: 202,186 parameters."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            hidden_dropout_prob=0.1,
            initializer_range=0.1,
            num_labels=10,
        )
    )


def train(
    model: nn.Module,
    data: Digits,
    epochs: int,
    title: str,
    measure: Callable[[nn.Module], float] = lambda model: 1.0,
) -> History:
    """A plain training loop: only `measure`, for the plot, knows about gates."""
    images, labels = data.train
    steps = epochs * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    history = History()
    model.train()
    with tqdm(total=steps, desc=title, unit="step") as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(labels)).split(BATCH):
                noisy = images[rows] + 0.2 * torch.randn_like(images[rows])
                outputs = model(pixel_values=noisy, labels=labels[rows])
                optimizer.zero_grad()
                outputs.loss.backward()
                optimizer.step()
                schedule.step()
                # The loss that the model returned holds the gates' term as well.
                task_loss = cross_entropy(outputs.logits, labels[rows]).item()
                history.loss.append(task_loss)
                history.open.append(measure(model))
                bar.set_postfix(loss=f"{task_loss:.3f}", refresh=False)
                bar.update()
    model.eval()
    return history


def open_fraction(model: nn.Module) -> float:
    """Share of the gated units that are open."""
    units = torch.cat([gate.open for gate in fgcompile.gates(model).values()])
    return units.float().mean().item()


def in_torch(model: nn.Module) -> Classifier:
    """Logits [n 10] of images."""

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(pixel_values=images).logits

    return run


def in_onnxruntime(path: Path) -> Classifier:
    """Logits [n 10] of images, from a file and on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
        return torch.from_numpy(logits)

    return run


def accuracy(classify: Classifier, data: Digits) -> float:
    """Share of the held-out digits that are read right."""
    images, labels = data.test
    return (classify(images).argmax(-1) == labels).float().mean().item()


def latencies(classifiers: list[Classifier], images: Tensor) -> list[float]:
    """Median milliseconds of each; interleaved, so that all meet the same weather."""
    seconds: list[list[float]] = [[] for _ in classifiers]
    for _ in range(100):
        for classify, times in zip(classifiers, seconds, strict=True):
            start = time.perf_counter()
            classify(images)
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) for times in seconds]


def plot(dense: History, gated: History, path: Path) -> None:
    """Loss of both trainings, and how many units the gates left open."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for history, label in ((dense, "dense"), (gated, "gated")):
        smooth = np.convolve(history.loss, np.ones(20) / 20, mode="valid")
        left.plot(smooth, label=label)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.legend()
    right.plot(gated.open, color="C1")
    right.set(xlabel="step", ylabel="open units", ylim=(0, 1.05))
    figure.savefig(path, dpi=150)


def comparison(
    dense: nn.Module, gated: nn.Module, report: GraphDiff, data: Digits
) -> Table:
    """The models side by side, measured on the held-out digits."""
    images = data.test[0]
    before, after = in_onnxruntime(OUT / "dense.onnx"), in_onnxruntime(ONNX)
    scores = [accuracy(run, data) for run in (in_torch(dense), in_torch(gated), after)]
    difference = (after(images) - in_torch(gated)(images)).abs().max().item()
    slow, fast = latencies([before, after], images[:32])
    sizes = report.verdict.parameters

    table = Table("", "dense", "gated", "ONNX", "change", title="held-out digits")
    points = 100 * (scores[2] - scores[0])
    table.add_row("accuracy", *(f"{s:.1%}" for s in scores), f"{points:+.1f} points")
    table.add_row(
        "parameters", f"{sizes.before:,}", "", f"{sizes.after:,}", f"{sizes.ratio:+.1%}"
    )
    table.add_row(
        "ms for 32 images, ONNX Runtime",
        f"{slow:.2f}",
        "",
        f"{fast:.2f}",
        f"{slow / fast:.2f} x faster",
    )
    table.add_row("largest difference to gated", "", "", f"{difference:.1e}", "")
    return table


def main() -> None:
    """Trains twins, one with gates; lowers both, and compares them in a table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    data = read_digits()

    model = vision_transformer()
    train(model, data, WARM_UP, "both")
    dense, gated = model, copy.deepcopy(model)
    dense_history = train(dense, data, EPOCHS, "dense")

    steps = len(dense_history.loss)
    budget = fgcompile.Budget(params=KEEP, of="model", steps=steps // 3)
    fgcompile.insert_gates(gated, config=fgcompile.GateConfig(budget=budget))
    gated_history = train(gated, data, EPOCHS, "gated", open_fraction)

    fgcompile.lower(dense, "onnx", OUT / "dense.onnx")
    lowered = fgcompile.lower(gated, "onnx", ONNX)
    (OUT / "report.md").write_text(lowered.report.to_markdown(), encoding="utf-8")
    plot(dense_history, gated_history, OUT / "training.png")

    console = Console()
    print(lowered.report.to_terminal(console.width))
    console.print(comparison(dense, gated, lowered.report, data))
    console.print(f"Wrote {', '.join(str(path) for path in sorted(OUT.iterdir()))}")


if __name__ == "__main__":
    main()
