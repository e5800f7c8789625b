"""What int8 costs and saves on a fine-tuned model: MiniLM on SST-2, dense and pruned.

    python -m benchmarks.int8 --data-dir glue

Fine-tunes all-MiniLM-L6-v2 twice with examples/text_classification.py, without and with
gates, quantises both files, and writes accuracy, size and time of the four as JSON. A
second run goes on where the first stopped; `--latency` measures only the times again.
Times are of one row of 128 tokens on one thread, in turns, and medians.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.record import read, write
from examples import glue
from fgcompile.targets.latency.files import onnx_latencies
from fgcompile.targets.quantize import quantize_onnx

RESULT = "int8-sst2"
ROOT = Path(__file__).parents[1]
FILES = {"float32": "model.onnx", "int8": "model-int8.onnx"}
TOKENS = 128


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder with sst2/train.tsv.")],
    work: Annotated[
        Path, typer.Option(help="Where the trained models are kept.")
    ] = Path("out/int8"),
    rows: Annotated[int, typer.Option(help="Training rows, at most.")] = 12_000,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 2,
    params: Annotated[float, typer.Option(help="Gated parameters that stay.")] = 0.6,
    seconds: Annotated[float, typer.Option(help="Time spent on timing.")] = 60.0,
    latency: Annotated[
        bool, typer.Option(help="Only measure the times again.")
    ] = False,
) -> None:
    """Trains, quantises, scores and times what is not yet there; prints the table."""
    arguments = {"rows": rows, "epochs": epochs, "params": params}
    for name in ("dense", "pruned"):
        _train(work / name, data_dir, name == "pruned", arguments)
        _quantize(work / name)
    result = read(RESULT) if latency else {}
    if not latency:
        result |= arguments | {"variants": _variants(work, data_dir)}
    result["latency"] = _latency(work, seconds)
    write(RESULT, result, threads=1)
    Console().print(_table(result))


def _each(work: Path) -> dict[str, Path]:
    """The four files by name."""
    return {
        f"{model} {kind}": work / model / file
        for model in ("dense", "pruned")
        for kind, file in FILES.items()
    }


def _train(
    folder: Path, data_dir: Path, gates: bool, arguments: dict[str, Any]
) -> None:
    """Runs the example, whose result.json is the last thing that it writes."""
    finished = folder / "result.json"
    if finished.is_file():
        return
    options = {
        **{"--data-dir": data_dir, "--out": folder, "--epochs": arguments["epochs"]},
        **{"--max-rows": arguments["rows"], "--params": arguments["params"]},
    }
    script = str(ROOT / "examples" / "text_classification.py")
    call = [sys.executable, script, "sst2", "--gates" if gates else "--no-gates"]
    call += [str(part) for option in options.items() for part in option]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    here = os.environ | {"PYTHONPATH": paths}
    subprocess.run(call, check=True, stdout=sys.stderr, env=here)


def _quantize(folder: Path) -> None:
    if not (folder / FILES["int8"]).is_file():
        quantize_onnx(folder / FILES["float32"], folder / FILES["int8"])


def _variants(work: Path, data_dir: Path) -> dict[str, dict[str, float]]:
    """Accuracy, megabytes, and how far the int8 weights are from the trained ones."""
    dev = glue.load("sst2", data_dir)[1]
    found: dict[str, dict[str, float]] = {}
    for name, file in _each(work).items():
        found[name] = {
            "accuracy": _accuracy(file, dev, name),
            "megabytes": round(file.stat().st_size / 1e6, 2),
        }
        if file.name == FILES["int8"]:
            error = weight_error(file.with_name(FILES["float32"]), file)
            found[name]["weight_error"] = round(error, 6)
    return found


def _accuracy(file: Path, dev: glue.Rows, name: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(file.parent)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    names = [port.name for port in session.get_inputs()]
    logits = []
    for texts in track(dev.texts, name, console=Console(stderr=True)):
        tokens = tokenizer(*texts, truncation=True, return_tensors="np")
        logits += session.run(["logits"], {n: tokens[n] for n in names})
    return glue.score("sst2", np.concatenate(logits), np.array(dev.labels))["accuracy"]


def weight_error(exact: Path, rounded: Path) -> float:
    """Distance of the layers' int8 matrices from those they stand for, over their norm.

    Embeddings, of which pruning takes nothing and which have one scale, do not count.

    Args:
        exact: File with float weights.
        rounded: The same with int8 weights, a scale for each column.
    """
    want = _stored(exact)
    have = _stored(rounded)
    lost = total = 0.0
    for name in (n.removesuffix("_quantized") for n in have if "_quantized" in n):
        matrix, scale = want[name].astype(np.float64), have[f"{name}_scale"]
        if scale.size == 1:
            continue
        integers, zero = have[f"{name}_quantized"], have[f"{name}_zero_point"]
        values = (integers.astype(np.float64) - zero) * scale
        # The quantiser turns the weight of a Gemm into that of a MatMul.
        turned = (v for v in (values, values.T) if v.shape == matrix.shape)
        lost += min(float(((v - matrix) ** 2).sum()) for v in turned)
        total += float((matrix**2).sum())
    return (lost / total) ** 0.5


def _stored(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    model = onnx.load(str(file))
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def _latency(work: Path, seconds: float) -> dict[str, Any]:
    files = _each(work)
    times = onnx_latencies(list(files.values()), 1, TOKENS, 1, seconds)
    return {
        "tokens": TOKENS,
        "threads": 1,
        "milliseconds": {
            name: round(1000 * time, 2) for name, time in zip(files, times, strict=True)
        },
    }


def _table(result: dict[str, Any]) -> Table:
    table = Table("", "accuracy", "size", "time", title="MiniLM on SST-2 dev")
    times = result["latency"]["milliseconds"]
    for name, row in result["variants"].items():
        ratio = times[name] / times["dense float32"]
        table.add_row(
            *(name, f"{row['accuracy']:.1%}", f"{row['megabytes']:.1f} MB"),
            f"{times[name]:.1f} ms, {ratio:.2f} x",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
