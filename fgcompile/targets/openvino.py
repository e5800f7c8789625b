"""Program -> OpenVINO model that computes the same.

Needs the extra `openvino`: `pip install fgcompile[openvino]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fgcompile.errors import ExportError
from fgcompile.program import Program
from fgcompile.targets.exported import export_program
from fgcompile.targets.extras import cause, quiet, require
from fgcompile.targets.feed import feed_of

aten = torch.ops.aten


def write_openvino(program: Program, path: Path) -> None:
    """Writes `program` to `path` (.xml), and its weights beside it (.bin).

    Inputs and outputs have the program's names. Weights keep their type; on processors
    with bfloat16 units OpenVINO rounds to that while it computes, unless it is compiled
    with INFERENCE_PRECISION_HINT="f32", as it is for verification.

    Raises:
        ExportError: If OpenVINO cannot convert the model, or is not installed.
    """
    require("openvino", "openvino")
    import openvino

    try:
        with quiet():
            exported = export_program(_without_empty_rows(program))
            model = openvino.convert_model(exported)
            _set_names(model.outputs, program.output_names)
            openvino.save_model(model, str(path), compress_to_fp16=False)
    except Exception as error:
        raise ExportError(
            f"OpenVINO cannot convert the lowered model: {cause(error)}\n"
            f"  to {path.name}\n"
            '  Lower to "onnx" instead: OpenVINO reads ONNX files as well.'
        ) from error


def read_openvino(file: Path) -> Any:
    """The openvino.Model in `file`."""
    import openvino

    return openvino.Core().read_model(str(file))


class OpenVinoModel:
    """An OpenVINO file, callable with the inputs of the model it came from."""

    def __init__(self, path: str | Path, program: Program, threads: int = 0) -> None:
        """Compiles `path`, whose inputs and outputs are those of `program`.

        Sums are in float32, also on processors with bfloat16 units, and `threads=0`
        lets OpenVINO choose.

        Raises:
            ExportError: If OpenVINO is not installed or refuses the file.
        """
        require("openvino", "openvino")
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.core = openvino.Core()
        self.model = self.core.read_model(str(path))
        try:
            self._compiled = self.core.compile_model(self.model, "CPU", settings)
        except Exception as error:
            raise ExportError(
                f"OpenVINO refuses {Path(path).name}: {cause(error)}\n"
                "  Nothing was kept. Please report the model."
            ) from error
        self._program = program
        self._inputs = {name for port in self.model.inputs for name in port.names}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Outputs by name, in the order of the model's."""
        feed = feed_of(self._program, args, kwargs, self._inputs)
        results = self._compiled(feed)
        return {
            name: torch.from_numpy(results[name].copy())
            for name in self._program.output_names
        }


def _without_empty_rows(program: Program) -> Program:
    """A copy in which every query attends to something.

    Where a mask hides all keys of a query, as in left padding of a causal model,
    PyTorch's attention gives zero and OpenVINO's NaN, which then reaches the rows that
    count: zero times NaN. Nothing that counts reads what such a query attends to.
    """
    copy = program.copy()
    filled: dict[Node, Node] = {}
    for node in list(copy.graph.nodes):
        mask = _boolean_mask(node)
        if mask is None:
            continue
        if mask not in filled:
            with copy.graph.inserting_after(mask):
                some = copy.graph.call_function(aten.any.dim, (mask, -1, True))
            with copy.graph.inserting_after(some):
                none = copy.graph.call_function(aten.logical_not.default, (some,))
            with copy.graph.inserting_after(none):
                filled[mask] = copy.graph.call_function(
                    aten.logical_or.default, (mask, none)
                )
        node.replace_input_with(mask, filled[mask])
    copy.graph_module.recompile()
    return copy


def _boolean_mask(node: Node) -> Node | None:
    """The mask of an attention, where it says which keys count."""
    if node.target is not aten.scaled_dot_product_attention.default:
        return None
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if not isinstance(mask, Node) or mask.meta["val"].dtype != torch.bool:
        return None
    return mask


def _set_names(ports: Any, names: list[str]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})
