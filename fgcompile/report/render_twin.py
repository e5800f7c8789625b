"""One model as text: what git and a reviewer on the web compare line by line.

A line changes only if what it describes changes: no generated names, no positions,
no totals inside of module sections.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fgcompile.report.cost import count_macs
from fgcompile.report.load import summarize
from fgcompile.report.load_onnx import load_onnx
from fgcompile.report.natural import natural_key
from fgcompile.report.pairs import label_tensors
from fgcompile.report.ports import canonical_order
from fgcompile.report.summary import ModelSummary, Port
from fgcompile.report.templating import plain

TWIN_SUFFIX = ".fg.md"
TWIN_FORMAT = 1


def render_twin(model: Path, with_data: bool = True) -> str:
    """The model's text.

    Args:
        model: A model file.
        with_data: Read values for their digests; without, external data may be
            missing.

    Raises:
        FormatError: If the file is not a model.
    """
    summary = summarize(model) if with_data else load_onnx(model, with_data=False)
    return "\n".join([*_head(summary), *_sections(summary)]) + "\n"


def _head(summary: ModelSummary) -> list[str]:
    macs = count_macs(summary)
    lines = [
        "<!-- text twin written by fgcompile: do not edit -->",
        "",
        f"- parameters {summary.parameter_count:,}",
        f"- bytes {summary.size_bytes:,}",
    ]
    if macs is not None:
        lines.append(f"- MACs {macs:,} at {summary.stated_shape}")
    lines += [f"- opset {d or 'ai.onnx'} {version}" for d, version in summary.opsets]
    lines += [f"- input {_port(port)}" for port in summary.inputs]
    lines += [f"- output {_port(port)}" for port in summary.outputs]
    return lines


def _port(port: Port) -> str:
    """Dynamic dims as "?": an exporter is free to name them."""
    shape = port.type.shape
    if shape is None:
        return plain(f"{port.name} {port.type.dtype}")
    sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in shape)
    return plain(f"{port.name} {port.type.dtype}[{sizes}]")


def _sections(summary: ModelSummary) -> list[str]:
    tensors: dict[str, list[str]] = {}
    for key, label in label_tensors(summary).items():
        parameter = summary.parameters[key]
        module, _, name = label.rpartition(".")
        digest = parameter.digest or "values not read"
        text = f"- {name if module else 'tensor'} {parameter.dtype}"
        text += f"{list(parameter.shape)} {digest}"
        tensors.setdefault(module, []).append(plain(text))
    operations = _operations(summary)
    lines = []
    for module in sorted(tensors.keys() | operations.keys(), key=natural_key):
        lines += ["", f"## {plain(module) or '(no module)'}", ""]
        lines += sorted(tensors.get(module, []))
        lines += operations.get(module, [])
    return lines


def _operations(summary: ModelSummary) -> dict[str, list[str]]:
    """Lines per module: each operation with its attributes, and how often."""
    counts: dict[str, Counter[str]] = {}
    for index in canonical_order(summary):
        node = summary.nodes[index]
        settings = "".join(f" {name}={text}" for name, text in node.attributes)
        text = plain(f"- {node.op}{settings}")
        counts.setdefault(node.display or node.scope, Counter())[text] += 1
    return {
        module: [text if n == 1 else f"{text} (x{n})" for text, n in counter.items()]
        for module, counter in counts.items()
    }
