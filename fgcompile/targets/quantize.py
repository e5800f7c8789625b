"""ONNX file -> ONNX file with int8 weights, by onnxruntime's own quantiser.

Dynamic: activations are rounded while the model runs, so no calibration data is
needed. Per channel: every output channel of a matrix has its own scale. Columns and
rows that pruning took away can only make the largest magnitude of a channel smaller,
so what is left is never rounded more coarsely than in the dense model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fgcompile.errors import ExportError
from fgcompile.targets.extras import cause, quiet, require
from fgcompile.targets.onnx import data_file


def quantize_onnx(source: Path, target: Path) -> None:
    """Writes `source` with int8 weights to `target`.

    Tables of embeddings get one scale, matrices one for each output channel.
    Processors without VNNI (before 2019) saturate where two products overflow int16.

    Raises:
        ExportError: If the quantiser fails, finds nothing to quantise, or the extra
            `onnx` is not installed.
    """
    require("onnx", "onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = data_file(source).exists()
    try:
        with quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
            quantize_dynamic(
                _prepared(source, Path(folder)),
                target,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
            )
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot quantise the lowered model: {cause(error)}\n"
            "  Lower without quantization, or quantise the file yourself."
        ) from error
    _check_quantized(target)


def _prepared(source: Path, folder: Path) -> Path:
    """`source` without the shapes of its values.

    The quantiser turns a Gemm into a MatMul whose weight is transposed, and then
    stumbles over the shape that was noted for it (microsoft/onnxruntime#25890).
    """
    import onnx

    model = onnx.load(str(source))
    del model.graph.value_info[:]
    file = folder / "model.onnx"
    onnx.save_model(model, str(file), save_as_external_data=data_file(source).exists())
    return file


def _check_quantized(file: Path) -> None:
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    types = {tensor.data_type for tensor in model.graph.initializer}
    if not types & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}:
        raise ExportError(
            "the model has no weights that onnxruntime quantises\n"
            "  It quantises matrix products, convolutions and embeddings.\n"
            "  Lower without quantization."
        )
