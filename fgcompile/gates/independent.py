"""Gates that are not coupled: two for every matrix, on its outputs and on its inputs.

`y = ((x * g_c) W^T + b) * g_r`: the bias is gated with the outputs, so a closed row is
exactly zero. Source: FineGates (arXiv 2412.12951 and 2602.09169), the authors' code,
which counts what it removes for each matrix alone, as `numel - rows * columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import Analysis
from fgcompile.errors import GateError
from fgcompile.gates.config import GateConfig
from fgcompile.gates.container import GateContainer
from fgcompile.gates.gate import Gate
from fgcompile.gates.matrices import Matrix, matrices
from fgcompile.gates.placement import default_kinds, gate_specs
from fgcompile.gates.spec import GateSite, GateSpec

ROW, COLUMN = "row", "column"
"""Kinds of these gates."""


def specs_for(
    analysis: Analysis, config: GateConfig, model: nn.Module | None = None
) -> list[GateSpec]:
    """Specs of the gates that `config` asks for; arguments are those of `gate_specs`.

    Raises:
        GateError: If there is nothing of these kinds to gate, or kurtosis is asked of
            a graph.
    """
    if config.kurtosis and model is None:
        raise GateError(
            "the inputs of matrices in a GraphModule cannot be watched\n"
            "  Set kurtosis=False, or gate the eager model."
        )
    if config.coupling == "none":
        kinds = config.kinds or default_kinds(analysis)
        return independent_specs(analysis, kinds, model)
    return gate_specs(analysis, config.kinds, model)


def independent_specs(
    analysis: Analysis, kinds: Sequence[str], model: nn.Module | None = None
) -> list[GateSpec]:
    """Specs for the outputs and the inputs of every matrix in groups of these kinds.

    A unit is worth half of what its row or column holds, so that all are worth the
    matrix.

    Raises:
        GateError: If there is no matrix.
    """
    return [
        spec
        for matrix in matrices(analysis, model, kinds)
        for spec in (_rows(matrix, model), _columns(matrix, model))
    ]


def paired(container: GateContainer) -> list[tuple[Gate, Gate]]:
    """Both gates of every matrix; empty if the gates are those of coupled groups."""
    each = container.each()
    if any(gate.kind not in (ROW, COLUMN) for gate in each):
        return []
    return list(zip(each[::2], each[1::2], strict=True))


def _rows(matrix: Matrix, model: nn.Module | None) -> GateSpec:
    outputs, inputs = matrix.shape
    index = torch.arange(outputs)
    if model is None:
        sites = [
            GateSite("", "output", "0", -1, index, node) for node, _ in matrix.uses
        ]
    elif matrix.whole:
        sites = [GateSite(matrix.reader, "output", "0", -1, index)]
    else:
        sites = list(_parameter_rows(matrix, index))
    return _spec(matrix, ROW, outputs, sites, inputs)


def _parameter_rows(matrix: Matrix, index: Tensor) -> Iterator[GateSite]:
    yield GateSite(matrix.reader, "parameter", matrix.weight, matrix.rows, index)
    if matrix.bias is not None:
        yield GateSite(matrix.reader, "parameter", matrix.bias, 0, index)


def _columns(matrix: Matrix, model: nn.Module | None) -> GateSpec:
    outputs, inputs = matrix.shape
    index = torch.arange(inputs)
    if model is None:
        sites = [
            GateSite("", "input", str(position), -1, index, node)
            for node, position in matrix.uses
        ]
    elif matrix.whole:
        sites = [GateSite(matrix.reader, "input", "0", -1, index)]
    else:
        weight, dim = matrix.weight, matrix.columns
        sites = [GateSite(matrix.reader, "parameter", weight, dim, index)]
    return _spec(matrix, COLUMN, inputs, sites, outputs)


def _spec(
    matrix: Matrix, kind: str, size: int, sites: Sequence[GateSite], across: int
) -> GateSpec:
    worth = torch.full((size,), across / 2)
    name = f"{matrix.parameter.removesuffix('.weight')}.{kind}s"
    return GateSpec(
        name,
        kind,
        size,
        tuple(sites),
        worth,
        worth.clone(),
        matrix.parameter,
        matrix.rows == 0,
    )
