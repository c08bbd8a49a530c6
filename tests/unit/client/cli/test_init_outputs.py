"""Each output of an exporter has one meaning, and no family reads it as another, whatever is renamed, removed or added.

Bound: names, types and shapes. Where these are the same, values decide at the first answer (`FAMILIES[...].read`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path

import pytest

from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkSignature, TensorSpec
from segserve_builder.families.promptable import PromptableFamily
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.guess import _pipeline_for, candidates, misfit
from segserve_platform.cli.init.network import NetworkFile, image_input

READS = {
    "semantic-logits": ("map",),
    "semantic-probabilities": ("map",),
    "semantic-labels": ("label map",),
    "yolo-detect": ("columns",),
    "yolo-seg": ("columns", "prototypes"),
    "yolov5-detect": ("rows",),
    "yolov5-seg": ("rows", "prototypes"),
    "yolox-detect": ("cells",),
    "yolo-nms-free-detect": ("chosen",),
    "yolo-nms-free-seg": ("chosen", "prototypes"),
    "rtdetr-ultralytics": ("chosen",),
    "faster-rcnn": ("boxes", "labels", "scores"),
    "mask-rcnn": ("boxes", "labels", "heads", "scores"),
    "keypoint-rcnn": ("boxes", "labels", "heatmaps", "scores"),
    "retinanet": ("anchor logits", "deltas", "anchors"),
    "ssd": ("anchor logits", "deltas", "anchors"),
    **dict.fromkeys(["mask2former", "maskformer", "eomt"], ("class queries", "mask queries")),
    **dict.fromkeys(["detr", "detr-sigmoid", "deformable-detr"], ("class queries", "box queries")),
    **dict.fromkeys(["detr-panoptic", "detr-sigmoid-seg"], ("class queries", "box queries", "mask queries")),
}
"""What each family reads."""
BESIDE = {"features", "map", "image class", "auxiliary map", "image size"}
"""What no family reads, and no answer lacks."""
SKIPPABLE = {"heads", "heatmaps", "mask queries", "key points", "pasted"}
"""What an answer of boxes alone lacks and is still right, if a user names the family."""


@dataclass(frozen=True)
class Output:
    """An output of a file: its name, meaning, shape and type."""

    name: str
    meaning: str
    shape: tuple[int | None, ...]
    dtype: str = "FP32"

    @property
    def tensor(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


def ints(name: str, meaning: str, *shape: int | None, dtype: str = "INT64") -> Output:
    return Output(name, meaning, shape, dtype)


def pasted(height: int, width: int) -> list[Output]:
    return [
        Output("dets", "boxes", (1, 100, 5)),
        ints("labels", "labels", 1, 100),
        Output("masks", "pasted", (1, 100, height, width)),
    ]


PROTOTYPES = Output("output1", "prototypes", (1, 32, 160, 160))
TORCHVISION = [Output("boxes", "boxes", (None, 4)), ints("labels", "labels", None), Output("scores", "scores", (None,))]
QUERIES = [Output("class_queries_logits", "class queries", (1, 100, 134))]
QUERIES += [Output("masks_queries_logits", "mask queries", (1, 100, 160, 160))]
DETR = [Output("logits", "class queries", (1, 100, 92)), Output("pred_boxes", "box queries", (1, 100, 4))]
ANCHORS = [Output("cls_logits", "anchor logits", (1, 76725, 91)), Output("bbox_regression", "deltas", (1, 76725, 4))]
ANCHORS += [Output("anchors", "anchors", (1, 76725, 4))]

EXPORTERS: dict[str, tuple[tuple[int, int], list[Output]]] = {
    "YOLOv8": ((640, 640), [Output("output0", "columns", (1, 84, 8400))]),
    "YOLOv8 at 320 x 480": ((320, 480), [Output("output0", "columns", (1, 84, 3150))]),
    "YOLOv8 with a stride of 4": ((640, 640), [Output("output0", "columns", (1, 84, 34000))]),
    "YOLOv8 with a stride of 64": ((1280, 1280), [Output("output0", "columns", (1, 84, 34000))]),
    "YOLOv8 segment": ((640, 640), [Output("output0", "columns", (1, 116, 8400)), PROTOTYPES]),
    "YOLOv3 tiny": ((416, 416), [Output("output0", "rows", (1, 2535, 85))]),
    "YOLOv5": ((640, 640), [Output("output0", "rows", (1, 25200, 85))]),
    "YOLOv5 segment": ((640, 640), [Output("output0", "rows", (1, 25200, 117)), PROTOTYPES]),
    "YOLOX": ((640, 640), [Output("output", "cells", (1, 8400, 85))]),
    "YOLOv10": ((640, 640), [Output("output0", "chosen", (1, 300, 6))]),
    "YOLO26 segment": ((640, 640), [Output("output0", "chosen", (1, 300, 38)), PROTOTYPES]),
    "YOLOv7 --end2end": ((640, 640), [Output("output", "end to end", (None, 7))]),
    "raw heads of YOLO": (
        (640, 640),
        [Output(f"out{side}", "raw heads", (1, 255, side, side)) for side in (80, 40, 20)],
    ),
    "raw heads of YOLO tiny": ((416, 416), [Output(str(n), "raw heads", (1, 255, n, n)) for n in (26, 13)]),
    "YOLO-NAS": (
        (640, 640),
        [Output("914", "corners", (1, 8400, 4)), Output("904", "scores of cells", (1, 8400, 80))],
    ),
    "CenterNet": (
        (512, 512),
        [Output(n, "raw heads", (1, c, 128, 128)) for n, c in (("hm", 80), ("wh", 2), ("reg", 2))],
    ),
    "EfficientNMS": (
        (640, 640),
        [
            ints("num_dets", "count", 1, 1, dtype="INT32"),
            Output("det_boxes", "boxes", (1, 100, 4)),
            Output("det_scores", "scores", (1, 100)),
            ints("det_classes", "labels", 1, 100, dtype="INT32"),
        ],
    ),
    "TensorFlow": (
        (640, 640),
        [
            Output("detection_boxes", "relative boxes", (1, 100, 4)),
            Output("detection_classes", "float labels", (1, 100)),
            Output("detection_scores", "scores", (1, 100)),
            Output("num_detections", "count", (1,)),
            Output("detection_masks", "heads", (1, 100, 33, 33)),
        ],
    ),
    "PaddleDetection": (
        (640, 640),
        [Output("multiclass_nms3_0.tmp_0", "end to end", (None, 6)), ints("tmp_2", "count", 1, dtype="INT32")],
    ),
    "MMDetection": ((640, 640), [*pasted(28, 28)[:2], Output("masks", "heads", (1, 100, 28, 28))]),
    "MMDetection, masks of the image": ((640, 640), pasted(640, 640)),
    "MMDetection, masks of a small image": ((128, 128), pasted(128, 128)),
    "MMDetection, masks of an image that is not square": ((128, 160), pasted(128, 160)),
    "masks of the image at a quarter": ((640, 640), pasted(160, 160)),
    "masks of an image of 224, at once": ((224, 224), pasted(224, 224)),
    "torchvision Faster R-CNN": ((640, 640), TORCHVISION),
    "torchvision Mask R-CNN, heads": ((640, 640), [*TORCHVISION, Output("masks", "heads", (None, 1, 28, 28))]),
    "torchvision Mask R-CNN at 448": ((448, 448), [*TORCHVISION, Output("masks", "heads", (None, 1, 28, 28))]),
    "torchvision Mask R-CNN, its own": ((256, 256), [*TORCHVISION, Output("masks", "pasted", (None, 1, 256, 256))]),
    "torchvision Keypoint R-CNN": ((640, 640), [*TORCHVISION, Output("keypoints", "heatmaps", (None, 17, 56, 56))]),
    "torchvision Keypoint R-CNN, its own": (
        (640, 640),
        [
            *TORCHVISION,
            Output("keypoints", "key points", (None, 17, 3)),
            Output("keypoints_scores", "key points", (None, 17)),
        ],
    ),
    "detectron2": (
        (640, 640),
        [
            Output("pred_boxes", "boxes", (None, 4)),
            ints("pred_classes", "labels", None),
            Output("pred_masks", "heads", (None, 1, 28, 28)),
            Output("scores", "scores", (None,)),
            ints("image_size", "image size", 2),
        ],
    ),
    "RetinaNet": ((640, 640), ANCHORS),
    "DETR": ((640, 640), DETR),
    "DETR with hidden states": ((640, 640), [*DETR, Output("encoder_last_hidden_state", "features", (1, 850, 256))]),
    "DETR with masks": ((640, 640), [*DETR, Output("pred_masks", "mask queries", (1, 100, 160, 160))]),
    "MaskFormer": ((640, 640), QUERIES),
    "RF-DETR": (
        (560, 560),
        [Output("dets", "box queries", (1, 300, 4)), Output("labels", "class queries", (1, 300, 91))],
    ),
    "RF-DETR segment": (
        (432, 432),
        [
            Output("dets", "box queries", (1, 300, 4)),
            Output("labels", "class queries", (1, 300, 91)),
            Output("masks", "mask queries", (1, 300, 108, 108)),
        ],
    ),
    "logits": ((512, 512), [Output("logits", "map", (1, 19, 128, 128))]),
    "smp, a classification beside it": (
        (256, 256),
        [Output("masks", "map", (1, 4, 256, 256)), Output("labels", "image class", (1, 4))],
    ),
    "torchvision FCN": (
        (512, 512),
        [Output("out", "map", (1, 21, 512, 512)), Output("aux", "auxiliary map", (1, 21, 512, 512))],
    ),
    "IS-Net, whose features are at many strides": (
        (1024, 1024),
        [
            *(Output(f"d{n}", "map", (1, 1, 1024, 1024)) for n in range(6)),
            *(
                Output(f"x{n}", "features", (1, channels, 512 >> n, 512 >> n))
                for n, channels in enumerate((64, 128, 256, 512, 512, 512))
            ),
        ],
    ),
    "labels": ((512, 512), [ints("labels", "label map", 1, 512, 512)]),
    **{
        f"a map without an axis of classes, {side}": (
            (side, side),
            [Output("output", "map without classes", (1, side, side))],
        )
        for side in (64, 128, 256, 512)
    },
    "half a map without classes": ((256, 512), [Output("output", "map without classes", (1, 128, 256))]),
}
BY_NAME = {"RetinaNet"}
"""Files that only names show: retinanet reads no others."""
ADDED = [
    Output("num_dets", "count", (1, 1), "INT32"),
    Output("extra", "labels", (1, 100), "INT64"),
    Output("extra", "boxes", (1, 57, 4)),
    Output("scores2", "scores", (1, 100)),
    Output("orig_boxes", "boxes", (1, 100, 9)),
]


SAME = {
    "CenterNet without hm": "two maps of two channels, as two heads of the same classes",
    "torchvision FCN, renamed": "two maps of the same channels and size",
    "YOLO-NAS without 914": "a row for each cell, as YOLOX has",
}
"""What names, types and shapes cannot show."""


def network(size: tuple[int, int], outputs: list[Output]) -> NetworkFile:
    image = TensorSpec("image", "FP32", (1, 3, *size))
    signature = NetworkSignature((image,), tuple(each.tensor for each in outputs))
    return NetworkFile(Path("net.onnx"), signature, frozenset(), {}, None)


def anonymous(outputs: list[Output]) -> list[Output]:
    return [replace(each, name=f"t{number}") for number, each in enumerate(outputs)]


def wrong(size: tuple[int, int], outputs: list[Output]) -> Iterator[str]:
    """Yield each family that would read an output as another, or leave out what it needs to read others right."""
    file = network(size, outputs)
    image, meanings = image_input(file.image), {each.name: each.meaning for each in outputs}
    for family in FAMILIES.values():
        classes = family.implied_classes(file) or 1
        if isinstance(family, PromptableFamily) or misfit(family, file, image, classes) is not None:
            continue
        io = family.network_io(file.signature, _pipeline_for(family, image, classes))
        read = [meanings[each.name] for each in io.outputs]
        rest = {meaning for name, meaning in meanings.items() if name not in {each.name for each in io.outputs}}
        expected = [*READS[family.name]]
        whole = [{"heatmaps": "heads"}.get(each, each) for each in read]
        expected = [{"heatmaps": "heads"}.get(each, each) for each in READS[family.name]]
        scored = io.outputs[0].shape[-1] == 5 and "scores" not in read
        if whole != [each for each in expected if each != "scores" or not scored] or rest - BESIDE - SKIPPABLE:
            yield f"{family.name} reads {read} and leaves out {rest}"


def changed() -> Iterator[tuple[str, tuple[int, int], list[Output]]]:
    for exporter, (size, outputs) in EXPORTERS.items():
        for order in islice(permutations(outputs), 24):
            yield exporter, size, list(order)
            yield f"{exporter}, renamed", size, anonymous(list(order))
        for missing in outputs:
            left = [each for each in outputs if each is not missing]
            if left:
                yield f"{exporter} without {missing.name}", size, left
                yield f"{exporter} without {missing.name}, renamed", size, anonymous(left)
        for more in ADDED:
            if more.name not in {each.name for each in outputs}:
                yield f"{exporter} with {more.name}", size, [*outputs, more]


def test_no_family_reads_an_output_as_another_or_leaves_out_what_changes_its_meaning() -> None:
    found = [
        f"{name}: {each}"
        for name, size, outputs in changed()
        # Nothing speaks for or against a map alone.
        if not any(name.startswith(same) for same in SAME) and [len(each.shape) for each in outputs] != [4]
        for each in wrong(size, outputs)
    ]

    assert found == []


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_is_served_as_it_is_or_refused_by_name_in_any_order(exporter: str) -> None:
    size, outputs = EXPORTERS[exporter]
    meanings = {each.meaning for each in outputs}
    servable = any(set(reads) - {"scores"} <= meanings for reads in READS.values()) and not meanings & {
        "pasted",
        "count",
        "key points",
    }
    results = set()
    for order in islice(permutations(outputs), 24):
        file = network(size, list(order))
        try:
            results.add(candidates(file, image_input(file.image))[0].family.name)
        except CommandError:
            results.add("refused")

    assert len(results) == 1
    assert (results != {"refused"}) == servable, results
