"""Seconds and memory of every stage between a model and a smaller ONNX file."""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from benchmarks.cells import Result
from benchmarks.machine import peak_memory
from benchmarks.shapes import build, llama
from fgcompile import gates, insert_gates, lower, remove_gates
from fgcompile.capture import capture, default_inputs
from fgcompile.capture.state import tracing_state
from fgcompile.compiler import analyze
from fgcompile.passes.pipeline import eliminate
from fgcompile.program import Program
from fgcompile.targets.extras import quiet
from fgcompile.targets.forms import OnnxForm
from fgcompile.targets.verify import remembered_outputs, verify_equal

CLOSED = 0.5
THREADS = 1


class Clock:
    """Collects seconds and bytes by stage; one entry for each round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.bytes: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body, and watches what memory it takes beyond what was there."""
        _settle_memory()
        with peak_memory() as peak:
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
        self.seconds.setdefault(name, []).append(seconds)
        self.bytes.setdefault(name, []).append(peak.more)

    def medians(self) -> Result:
        """Medians over the rounds: seconds, and megabytes beyond what was there."""
        return {
            "seconds": {
                name: round(statistics.median(found), 3)
                for name, found in self.seconds.items()
            },
            "megabytes": {
                name: round(statistics.median(found) / 1e6, 1)
                for name, found in self.bytes.items()
            },
        }


def all_stages(model: str, rounds: int) -> Result:
    """Every stage on the model of that name, with half of its units closed.

    The two exports of the dense model are the yardstick for `lower`, which is all of
    capture, eliminate, verify and export at once. All take turns, `rounds` times; only
    one model is in memory.
    """
    torch.set_num_threads(THREADS)
    net, clock = build(model), Clock()
    _round(Clock(), build("tiny-bert"))  # imports are no part of a stage
    count = sum(p.numel() for p in net.parameters())
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    for _ in range(rounds):
        _round(clock, net)
    sizes = {"parameters": count, "weight_megabytes": weights / 1e6}
    return {"threads": THREADS, **sizes, **clock.medians()}


def _round(clock: Clock, net: nn.Module) -> None:
    """All stages once; `net` is as it was afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        _dense_exports(clock, net, Path(folder))
        with clock.stage("capture"):
            program = capture(net)
        with clock.stage("analyse"):
            analyze(program)
        with clock.stage("insert"):
            insert_gates(net)
        close_half(net)
        with clock.stage("lower"):
            lower(net, "onnx")
        _parts_of_lower(clock, capture(net), Path(folder) / "small.onnx")
        remove_gates(net)


def analysis_alone(width: int, layers: int, inner: int, vocabulary: int) -> Result:
    """Capture and analysis of a Llama without weights."""
    torch.set_num_threads(THREADS)
    analyze(build("tiny-llama"))  # imports are no part of a stage
    clock = Clock()
    heads = max(1, width // 128)
    with torch.device("meta"):
        model = llama(
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=inner,
            vocab_size=vocabulary,
            num_attention_heads=heads,
            num_key_value_heads=min(heads, 8),
            head_dim=width // heads,
            tie_word_embeddings=False,
        )
    with clock.stage("capture"):
        program = capture(model)
    with clock.stage("analyse"):
        analysis = analyze(program)
    count = sum(p.numel() for p in model.parameters())
    sizes = {"parameters": count, "groups": len(analysis.groups)}
    return {"threads": THREADS, **sizes, **clock.medians()}


def close_half(model: nn.Module) -> nn.Module:
    """`model` with half of the units of every gate closed."""
    generator = torch.Generator().manual_seed(0)
    for gate in gates(model).values():
        gone = torch.randperm(gate.size, generator=generator)
        gate.close(gone[: round(gate.size * CLOSED)])
    return model


def _dense_exports(clock: Clock, net: nn.Module, folder: Path) -> None:
    """What a user runs who only wants an ONNX file of the dense model."""
    inputs, auto = default_inputs(net), torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(v.dim()), auto) for name, v in inputs.items()}
    with quiet(), tracing_state(net):
        with clock.stage("torch.export"):
            exported = torch.export.export(
                net, (), inputs, dynamic_shapes=shapes, strict=False
            )
        with clock.stage("torch.onnx.export"):
            made = torch.onnx.export(exported, dynamo=True, verbose=False)
            assert made is not None
            made.save(str(folder / "dense.onnx"), external_data=True)


def _parts_of_lower(clock: Clock, before: Program, file: Path) -> None:
    with remembered_outputs(before):
        with clock.stage("eliminate"):
            after = eliminate(before)
        with clock.stage("export"):
            OnnxForm(after).write(file)
        with clock.stage("verify"):
            verify_equal(before, after)
            OnnxForm(before).compare(OnnxForm(after).open(file), "the file")


def _settle_memory() -> None:
    """Gives back what was freed, so that a stage does not reuse it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
