"""Hand-made networks that find the white rectangle in an image by what they get beside it: a mask, or sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

HEIGHT, WIDTH = 48, 64
BRIGHT: Final = 200.0
KINDS: Final = {
    "masked": {"pixel_mask": TensorProto.INT64},
    "sized": {"orig_target_sizes": TensorProto.INT64},
    "scaled": {"im_shape": TensorProto.FLOAT, "scale_factor": TensorProto.FLOAT},
}
"""The inputs beside the image of DETR, of RT-DETR and D-FINE, and of PaddleDetection."""


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: Any, out: str | None = None, **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        given = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        self.nodes.append(helper.make_node(operator, given, [name], **attributes))
        return name

    def _constant(self, value: Any) -> str:
        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return f"c{len(self.constants) - 1}"

    def extent(self, plane: str, over: int) -> tuple[str, str]:
        """Return the first place above 0 and the one behind the last, [N, 1], in planes [N, H, W] without an axis."""
        line = self("ReduceMax", plane, axes=[over], keepdims=0)
        ends = self("CumSum", self("Add", self("Mul", line, 0.0), 1.0), 1)
        last = self("ReduceMax", self("Mul", line, ends), axes=[1])
        starts = self("Where", self("Greater", line, 0.0), self("Sub", ends, 1.0), 1e6)
        return self("ReduceMin", starts, axes=[1]), last


def write(path: Path, kind: str, *, batch: str | int = "batch", image_first: bool = True, single: bool = False) -> Path:
    """Write a network for images uint8 (48, 64).

    `masked` answers as DETR with masks does, its boxes relative to where the mask is 1; `sized` as RT-DETR's and
    `scaled` with the same outputs, in pixels of the sizes. A `single` network's image has no batch.
    """
    graph = _Graph()
    image = graph("Unsqueeze", "image", [0]) if single else "image"
    pixels = graph("Cast", image, to=TensorProto.FLOAT)
    mean = graph("ReduceMean", pixels, axes=[1], keepdims=0)
    white = graph("Cast", graph("Greater", mean, BRIGHT), to=TensorProto.FLOAT)
    within = graph("Add", graph("Mul", white, 0.0), 1.0)
    if kind == "masked":
        within = graph("Cast", "pixel_mask", to=TensorProto.FLOAT)
    sides = [graph.extent(white, over) + graph.extent(within, over) for over in (1, 2)]
    parts = [
        [graph("Div", graph("Sub", at, low), graph("Sub", high, low)) for at in ends] for *ends, low, high in sides
    ]
    (left, right), (top, bottom) = parts
    zero = graph("Mul", left, 0.0)
    if kind == "masked":
        centres = [graph("Mul", graph("Add", *ends), 0.5) for ends in parts]
        lengths = [graph("Sub", end, start) for start, end in parts]
        graph("Unsqueeze", graph("Concat", *centres, *lengths, axis=1), [1], out="pred_boxes")
        scores = graph("Concat", graph("Add", zero, 5.0), graph("Add", zero, -5.0), axis=1)
        graph("Unsqueeze", scores, [1], out="logits")
        graph("Unsqueeze", graph("Mul", graph("Sub", white, 0.5), 20.0), [1], out="pred_masks")
        outputs = {"logits": [1, 2], "pred_boxes": [1, 4], "pred_masks": [1, HEIGHT, WIDTH]}
    else:
        size = graph("Cast", next(iter(KINDS[kind])), to=TensorProto.FLOAT)
        if kind == "scaled":
            size = graph("Div", size, "scale_factor")
        around = graph("Gather", size, [0, 1, 0, 1] if kind == "sized" else [1, 0, 1, 0], axis=1)
        boxes = graph("Mul", graph("Concat", left, top, right, bottom, axis=1), around)
        graph("Unsqueeze", boxes, [1], out="boxes")
        graph("Add", zero, 0.75, out="scores")
        graph("Cast", zero, to=TensorProto.INT64, out="labels")
        outputs = {"labels": [1], "boxes": [1, 4], "scores": [1]}
    shapes = {name: [HEIGHT, WIDTH] if name == "pixel_mask" else [2] for name in KINDS[kind]}
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 3, HEIGHT, WIDTH][single:])]
    extra = [helper.make_tensor_value_info(name, KINDS[kind][name], [batch, *shapes[name]]) for name in KINDS[kind]]
    inputs = [*inputs, *extra] if image_first else [*extra, *inputs]
    found = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name == "labels" else TensorProto.FLOAT, [batch, *shape]
        )
        for name, shape in outputs.items()
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "g", inputs, found, graph.constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def picture(height: int, width: int, box: Sequence[int]) -> NDArray[np.uint8]:
    """Return a black image (height, width, 3) with a white rectangle x1 y1 x2 y2."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels
