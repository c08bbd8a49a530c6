"""Smaller files: FP16 weights, or INT8 calibrated on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve_builder.export.graph import INPUT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def to_fp16(source: Path, target: Path) -> None:
    """Write `source` with FP16 weights and arithmetic; inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    onnx.save(model, target)


def to_int8(source: Path, target: Path, batches: Sequence[NDArray[Any]]) -> None:
    """Write `source` with INT8 convolutions and products, their ranges calibrated on uint8 batches.

    Standard operators only (QuantizeLinear and DequantizeLinear around the others), weights by channel.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._left, None)
            return None if batch is None else {INPUT: batch}

    prepared = target.with_suffix(".prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _drop_unused_domains(target)
    finally:
        prepared.unlink(missing_ok=True)


def _drop_unused_domains(path: Path) -> None:
    """Forget the operator sets that no node is of: quantisation lists all that ONNX Runtime knows."""
    import onnx

    model = onnx.load(path)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, path)
