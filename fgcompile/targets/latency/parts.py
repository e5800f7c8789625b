"""Several programs as ONNX files, for the price of one export.

The exporter takes seconds for any program, however small, so that all are exported as
one and its parts are cut out of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torch.fx import Graph, GraphModule, Node

from fgcompile.program import Program
from fgcompile.targets.onnx import data_file, write_onnx


def write_parts(programs: Sequence[Program], folder: Path) -> list[Path]:
    """A file in `folder` for each of `programs`, which share neither input nor weight.

    Raises:
        ExportError: As for `write_onnx`.
    """
    import onnx_ir

    together = merge(programs)
    whole = folder / "parts.onnx"
    write_onnx(together, whole)
    model = onnx_ir.load(whole)
    names = [value.name or "" for value in model.graph.inputs]
    files = []
    for number, program in enumerate(programs):
        prefix = f"part_{number}_"
        graph = onnx_ir.convenience.extract(
            model.graph,
            inputs=[name for name in names if name.startswith(prefix)],
            outputs=[f"{prefix}{name}" for name in program.output_names],
        )
        files.append(folder / f"part_{number}.onnx")
        onnx_ir.save(
            onnx_ir.Model(graph, ir_version=model.ir_version),
            files[-1],
            external_data=data_file(files[-1]).name,
        )
    return files


def merge(programs: Sequence[Program]) -> Program:
    """One program that does what all of `programs` do, side by side.

    Names of inputs and outputs get the prefix `part_0_`, `part_1_` ...
    """
    graph, root = Graph(), nn.Module()
    new: dict[Node, Node] = {}
    inputs, outputs, results = {}, [], []
    for number, program in enumerate(programs):
        root.add_module(f"part_{number}", program.graph_module)
        for node in program.placeholders:
            name = f"part_{number}_{node.target}"
            # Programs of one region share the tensor, which would become one input.
            inputs[name] = program.inputs[str(node.target)].clone()
            new[node] = graph.placeholder(name)
        outputs += [f"part_{number}_{name}" for name in program.output_names]
    for number, program in enumerate(programs):
        results += list(graph.graph_copy(program.graph, new))  # type: ignore[arg-type]
        for node in program.graph.nodes:
            if node.op == "get_attr":
                new[node].target = f"part_{number}.{node.target}"
            if node in new:
                new[node].meta = node.meta.copy()
    graph.output(tuple(results))
    return Program(GraphModule(root, graph), inputs, output_names=outputs)
