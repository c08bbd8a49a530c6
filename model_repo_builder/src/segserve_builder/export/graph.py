"""Writes a torch network as an ONNX file: pixels in, normalisation in the graph, a free batch; and checks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import ExportError
from segserve_builder.steps.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from segserve_builder.export.networks import Preparation

OPSET: Final = 17
INPUT: Final = "image"
OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "semantic-logits": ("logits",),
    "mask2former": ("class_queries_logits", "masks_queries_logits"),
    "maskformer": ("class_queries_logits", "masks_queries_logits"),
    "detr": ("logits", "pred_boxes"),
    "detr-panoptic": ("logits", "pred_boxes", "pred_masks"),
    "yolo-seg": ("output0", "output1"),
    "yolo-detect": ("output0",),
    "yolov5-seg": ("output0", "output1"),
    "yolov5-detect": ("output0",),
    "yolo-nms-free-seg": ("output0", "output1"),
    "yolo-nms-free-detect": ("output0",),
    "retinanet": ("cls_logits", "bbox_regression", "anchors"),
    "ssd": ("cls_logits", "bbox_regression", "anchors"),
    "mask-rcnn": ("boxes", "labels", "scores", "masks"),
    "faster-rcnn": ("boxes", "labels", "scores"),
    "keypoint-rcnn": ("boxes", "labels", "scores", "keypoints"),
}
"""The outputs of each family, in the order in which a network that names none gives them."""
UNBATCHED: Final = frozenset({"mask-rcnn", "faster-rcnn", "keypoint-rcnn"})
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {"logits": ("logits", "out", "segmentation", "pred", "output")}
"""Names under which networks that answer a dict keep an output."""
TOLERANCE: Final = 1e-3
"""How far the file may be from the network, as a part of the outputs' range."""


@dataclass(frozen=True)
class Shape:
    """What the file takes: uint8 images of `channels`; a size that is given is fixed, else it is free."""

    height: int
    width: int
    channels: int
    free_size: bool


def folded(module: Any, family: str, preparation: Preparation) -> Any:
    """Return a network of uint8 (B, C, H, W) whose outputs are those of the family, in order."""
    import torch

    class Folded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            shape = (1, -1, 1, 1)
            self.register_buffer("mean", torch.tensor(preparation.mean).reshape(shape))
            self.register_buffer("std", torch.tensor(preparation.std).reshape(shape))

        def forward(self, image: Any) -> tuple[Any, ...]:
            pixels = (image.to(torch.float32) * preparation.scale - self.mean) / self.std
            return tuple(_picked(self.network(pixels), OUTPUTS[family]))

    return Folded().eval()


def _picked(answer: Any, names: Sequence[str]) -> list[Any]:
    import torch

    if isinstance(answer, torch.Tensor):
        answer = (answer,)
    if isinstance(answer, dict):  # transformers' outputs are dicts too
        found = [next((answer[key] for key in ALIASES.get(name, (name,)) if key in answer), None) for name in names]
        if any(one is None for one in found):
            raise ExportError(f"the network answers {', '.join(answer)}; the family's outputs are {', '.join(names)}")
        return found
    if len(answer) < len(names):
        raise ExportError(f"the network gives {len(answer)} outputs; the family has {', '.join(names)}")
    return list(answer[: len(names)])


def write(network: Any, family: str, shape: Shape, path: Path) -> None:
    """Write the network as ONNX; raises `ExportError` where torch cannot express it."""
    import warnings

    import torch

    names = OUTPUTS[family]
    batched = family not in UNBATCHED
    axes: dict[str, dict[int, str]] = {INPUT: {0: "batch"} if batched else {}}
    axes |= {name: {0: "batch" if batched else "detections"} for name in names}
    if shape.free_size:
        axes[INPUT] |= {2: "height", 3: "width"}
        if family == "semantic-logits":
            axes["logits"] |= {2: "logits_height", 3: "logits_width"}
    example = torch.zeros(1, shape.channels, shape.height, shape.width, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what tracing fixes; the check below sees what matters
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=list(names),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except ExportError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ExportError(f"torch cannot write this network as ONNX: {type(error).__name__}: {reason}") from error


def largest_difference(network: Any, path: Path, batches: Sequence[NDArray[Any]], *, batched: bool) -> float:
    """Return how far the file's outputs are from the network's, as a part of the outputs' range, over uint8 batches.

    Raises `ExportError` where they have other shapes, or, `batched`, not one answer an image.
    """
    import numpy as np
    import torch

    session = open_session(path)
    worst = 0.0
    for batch in batches:
        with torch.no_grad():
            expected = [one.numpy() for one in network(torch.from_numpy(batch))]
        for theirs, ours in zip(expected, session.run(None, {INPUT: batch}), strict=True):
            if theirs.shape != ours.shape:
                raise ExportError(f"the file gives shape {list(ours.shape)}, the network {list(theirs.shape)}")
            if batched and len(ours) != len(batch):
                raise ExportError(
                    f"the network gives a batch of {len(ours)} for {len(batch)} images; as many are allowed"
                )
            if theirs.size:
                spread = max(float(np.ptp(theirs)), 1e-6)
                worst = max(worst, float(np.abs(theirs.astype(np.float64) - ours).max()) / spread)
    return worst
