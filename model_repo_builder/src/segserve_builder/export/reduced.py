"""Reduced files: FP16 weights, or INT8 calibrated on images; and how much they change the answers, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segserve_builder.export.graph import INPUT
from segserve_builder.golden.judging import Answer

if TYPE_CHECKING:
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
    """Remove operator sets that no node uses: quantisation lists all that ONNX Runtime knows."""
    import onnx

    model = onnx.load(path)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, path)


def label_map(answer: Answer) -> NDArray[Any]:
    """Return the label map, uint8 or uint16 (H, W), of a semantic answer with `encoding=raw`."""
    import numpy as np

    height, width = (int(side) for side in answer["SIZE"])
    data = answer["LABELS"].item()
    return np.frombuffer(data, "u1" if len(data) == height * width else "<u2").reshape(height, width)


def class_iou(expected: Iterable[NDArray[Any]], actual: Iterable[NDArray[Any]], number: int) -> list[float | None]:
    """Return the IoU of each of `number` classes over pairs of label maps (H, W); None for a class in neither.

    Label maps are uint8 or uint16.
    """
    import numpy as np

    both, either = np.zeros(number, np.int64), np.zeros(number, np.int64)
    for reference, labels in zip(expected, actual, strict=True):
        for index in range(number):
            one, other = reference == index, labels == index
            both[index] += np.count_nonzero(one & other)
            either[index] += np.count_nonzero(one | other)
    return [inner / outer if outer else None for inner, outer in zip(both.tolist(), either.tolist(), strict=True)]


def object_iou(expected: Iterable[Answer], actual: Iterable[Answer], ids: Sequence[int]) -> list[float | None]:
    """Return, for each class, the mean of its expected boxes' best IoU with an actual one; None without boxes."""
    from pycocotools import mask as coco

    best: dict[int, list[float]] = {number: [] for number in ids}
    for reference, answer in zip(expected, actual, strict=True):
        for number in ids:
            boxes, others = _boxes(reference, number), _boxes(answer, number)
            overlaps = coco.iou(boxes, others, [0] * len(others)) if boxes and others else [[0.0]] * len(boxes)
            best[number] += [float(max(row)) for row in overlaps]
    return [sum(ious) / len(ious) if (ious := best[number]) else None for number in ids]


def _boxes(answer: Answer, number: int) -> list[list[float]]:
    boxes = answer["BOXES"][answer["CLASSES"] == number].tolist()
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
