"""Loss against removed parameters: a small story-teller under every method.

    python -m benchmarks.stories --model stories260K/hf --ids stories260K_ids.json

The model is a Llama of 260 thousand parameters that writes children's stories; the file
holds stories as lists of its tokens, which score every method in nats a token. Training
takes other text, which the dense model writes itself: the file's 61 thousand tokens are
so few that the dense model, trained on them, scores worse with every step. One record a
run stays in benchmarks/results/stories.json; a second call does what is missing, and
`--page` writes docs/stories.md and its plot from what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import fgcompile
from benchmarks.glue.records import read_json, write_json
from benchmarks.machine import ROOT
from benchmarks.stories_page import DENSE, picture, text
from fgcompile import Budget, GateConfig, methods

RESULTS = Path(__file__).parent / "results" / "stories.json"
PAGE = ROOT / "docs" / "stories.md"
LEVELS = (0.1, 0.2, 0.3, 0.4)
"""Fractions of all parameters of the model that are to go."""

LENGTH, BATCH, STEPS = 256, 4, 400
WRITERS = 400
"""Rows that are written at once."""

WEIGHTS_LR, FEW_LR = 5e-4, 5e-3
"""Where all weights are trained, and where few parameters are."""


@dataclass(frozen=True)
class Data:
    """Token ids: `train`, `[rows LENGTH]`, and the stories of `test`."""

    train: Tensor
    test: list[list[int]]

    @classmethod
    def read(cls, path: Path, dense: Any, steps: int) -> Data:
        """Stories that `dense` can take, and text of its own for so many steps."""
        limit = dense.config.max_position_embeddings
        stories = json.loads(path.read_text(encoding="utf-8"))
        return cls(_written(dense, BATCH * steps), [story[:limit] for story in stories])


def _written(dense: Any, rows: int) -> Tensor:
    """What `dense` writes from nothing, each token as likely as it holds it."""
    torch.manual_seed(0)
    start = torch.full((rows, 1), dense.config.bos_token_id)
    parts = [
        dense.generate(
            part,
            max_length=LENGTH,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            pad_token_id=0,
        )
        for part in track(start.split(WRITERS), "write", transient=True)
    ]
    return torch.cat(parts)


@dataclass
class Run:
    """What a method works with, and what it adds to the record."""

    dense: Any
    data: Data
    level: float
    seed: int
    steps: int
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the level, in the parameters that heads and hidden channels hold."""
        groups = list(fgcompile.gates(_closable(self)).values())
        held = sum(float(gate.params.sum()) for gate in groups)
        return self.level * count(self.dense) / held

    def gated(self, config: GateConfig | None = None, ascent: float = 0.0) -> Any:
        """The model with shared gates that meet the level half-way."""
        budget = Budget(
            params=1 - self.level, of="model", steps=self.steps // 2, ascent=ascent
        )
        config = replace(config or GateConfig(), budget=budget, seed=self.seed)
        return fgcompile.insert_gates(copy.deepcopy(self.dense), config=config)

    def fit(self, model: Any, lr: float) -> Any:
        """Trains what requires gradients, on every row once."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.0)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, self.steps)
        model.train()
        for ids in self.data.train.split(BATCH):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            decay.step()
        return model.eval()


def random_units(run: Run) -> nn.Module:
    """Random units of every group, nothing is trained."""
    generator = torch.Generator().manual_seed(run.seed)
    return _close(run, lambda name, size: torch.randperm(size, generator=generator))


def small_units(run: Run) -> nn.Module:
    """The units of every group whose weights are smallest, nothing is trained."""
    found = {group.name: group for group in fgcompile.analyze(run.dense).groups}

    def order(name: str, size: int) -> Tensor:
        norms = torch.zeros(size)
        for member in found[name].members:
            weight = run.dense.get_parameter(member.parameter).detach()
            along = weight.square().transpose(0, member.dim).flatten(1).sum(1)
            has = member.index >= 0
            norms.index_add_(0, member.index[has], along[has])
        return norms.argsort()

    return _close(run, order)


def _close(run: Run, order: Callable[[str, int], Tensor]) -> Any:
    """The model without the first units of every group, alike in all of them.

    Unit by unit until the level is reached: heads are few, so the same fraction of
    each group would be far from it.
    """
    model = _closable(run)
    gates = fgcompile.gates(model)
    turns = sorted(
        ((place + number / len(gates)) / gate.size, name, int(unit))
        for number, (name, gate) in enumerate(gates.items())
        for place, unit in enumerate(order(name, gate.size), 1)
    )
    left = run.level * count(run.dense)
    for _, name, unit in turns:
        if left <= 0:
            break
        left -= float(gates[name].params[unit])
        gates[name].close([unit])
    return model


def frozen(run: Run) -> nn.Module:
    """Shared gates with a budget; the weights are frozen."""
    model = run.gated()
    _only_gates(model)
    return run.fit(model, FEW_LR)


def low_rank(run: Run) -> nn.Module:
    """Shared gates with a budget; the weights adapt by updates of rank 4."""
    model = methods.insert_low_rank(run.gated(), rank=4)
    return run.fit(model, FEW_LR)


def trained_on(run: Run) -> nn.Module:
    """Nothing is removed: the dense model, trained for as many steps."""
    return run.fit(copy.deepcopy(run.dense), WEIGHTS_LR)


def whole(run: Run) -> nn.Module:
    """Shared gates with a budget, all weights."""
    return run.fit(run.gated(), WEIGHTS_LR)


def distilled(run: Run) -> nn.Module:
    """The same, taught by the dense model."""
    model = methods.distill(run.gated(), run.dense)
    return methods.remove_distillation(run.fit(model, WEIGHTS_LR))


def cofi(run: Run) -> nn.Module:
    """Hard-concrete gates under CoFi's Lagrangian, all weights."""
    model = run.gated(GateConfig(gate="hard_concrete"), ascent=0.1)
    return run.fit(model, WEIGHTS_LR)


def published(run: Run) -> nn.Module:
    """FineGates as published, at the rate of its post-training; frozen weights."""
    config = GateConfig.paper_finegates_posttrain()
    config = replace(config, target_sparsity=run.share, seed=run.seed)
    model = fgcompile.insert_gates(copy.deepcopy(run.dense), config=config)
    _only_gates(model)
    run.fit(model, 1e-2)
    run.notes["counted_removed"] = 1 - fgcompile.status(model)["cost"]["params"]
    return model


def pst(run: Run, lr: float = FEW_LR) -> nn.Module:
    """PST with whole units; only its small matrices are trained."""
    config = methods.PstConfig(
        steps=run.steps, sparsity=run.share, structured=True, seed=run.seed
    )
    model = methods.insert_pst(copy.deepcopy(run.dense), config)
    return methods.bake_pst(run.fit(model, lr))


def slow_pst(run: Run) -> nn.Module:
    """The same at the rate of weights, which its U and A move several times as far."""
    return pst(run, WEIGHTS_LR)


METHODS: dict[str, Callable[[Run], nn.Module]] = {
    "random units": random_units,
    "smallest weights": small_units,
    "FineGates as published": published,
    "shared gates, frozen weights": frozen,
    "shared gates, low rank": low_rank,
    "PST, structured": pst,
    "PST, structured, a tenth of the rate": slow_pst,
    "hard-concrete, CoFi's Lagrangian": cofi,
    "shared gates, all weights": whole,
    "shared gates, distilled": distilled,
}


def count(model: nn.Module) -> int:
    """Parameters, those that are shared once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _closable(run: Run) -> Any:
    config = GateConfig(objective="none")
    return fgcompile.insert_gates(copy.deepcopy(run.dense), config=config)


def _only_gates(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("fgcompile_gates" in name)


@torch.no_grad()
def loss_of(model: Any, stories: list[list[int]]) -> float:
    """Mean negative log likelihood of all tokens but the first ones [nats a token]."""
    total = 0.0
    for story in stories:
        ids = torch.tensor([story])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        total += float(loss) * (len(story) - 1)
    return total / sum(len(story) - 1 for story in stories)


def record_of(method: str, run: Run) -> dict[str, Any]:
    """Trains and lowers; what is left, and how good it is."""
    torch.manual_seed(run.seed)
    recipe = trained_on if method == DENSE else METHODS[method]
    model = recipe(run).eval()
    lowered = fgcompile.lower(model)
    before, after = count(run.dense), count(lowered.model)
    return {
        "method": method,
        "level": run.level,
        "seed": run.seed,
        "steps": run.steps,
        "loss": loss_of(model, run.data.test),
        "parameters": {"before": before, "after": after},
        "removed_share": 1 - after / before,
        **run.notes,
        "difference": lowered.comparison.absolute if lowered.comparison else None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Does what is missing."""
    options = _options(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    found = {"runs": []} | read_json(options.results)
    if options.model is not None:
        _train(found, options)
    if options.page is not None:
        page = text(found, list(METHODS), LEVELS)
        options.page.write_text(page, encoding="utf-8")
        if found["runs"]:
            picture(found, list(METHODS), options.page.parent / "benchmarks")


def _train(found: dict[str, Any], options: argparse.Namespace) -> None:
    dense = AutoModelForCausalLM.from_pretrained(options.model).eval()
    data = Data.read(options.ids, dense, options.steps)
    found["dense_loss"] = loss_of(dense, data.test)
    done = {(run["method"], run["level"]) for run in found["runs"]}
    jobs = [(DENSE, 0.0)]
    jobs += [(m, level) for level in options.levels for m in METHODS]
    for method, level in track([job for job in jobs if job not in done], "train"):
        run = Run(dense, data, level, 0, options.steps)
        found["runs"].append(record_of(method, run))
        write_json(options.results, found)
        Console().print(f"{method}, {level:.0%}: {found['runs'][-1]['loss']:.3f}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=None, help="folder; to train")
    parser.add_argument("--ids", type=Path, default=None, help="lists of tokens, JSON")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--page", type=Path, nargs="?", const=PAGE, default=None, help="to write"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--levels",
        type=lambda text: tuple(float(level) for level in text.split(",")),
        default=LEVELS,
    )
    options = parser.parse_args(arguments)
    if (options.model is None) != (options.ids is None):
        parser.error("--model and --ids belong together")
    return options


if __name__ == "__main__":
    main()
