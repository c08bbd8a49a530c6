"""Files of exporters, and how `segserve init` takes each: the matrix of tests/e2e/test_exporters.py and its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
UNROUNDED: Final = {"rounding": "none"}
ANTIALIASED: Final = {"antialias": True, "rounding": "eachPass"}
IMAGENET_BGR: Final = {name: values[::-1] for name, values in IMAGENET.items()}


@dataclass(frozen=True)
class Served:
    """A file that is served without an edit, and how near its answers are to its library's.

    `labels` is the largest share of pixels with another class. Boxes, scores and masks are those of the same object;
    up to `more` objects are only in the answer.
    `normalise`, `colour` and `resize`, further options of that stage, are what training decides: no file says it, and
    `init` marks it with CHECK. `arguments` are those of `init` beside the file and the photographs.
    """

    exporter: str
    network: str
    family: str
    labels: float = 0.001
    box_px: float = 0.01
    score: float = 0.001
    iou: float = 0.999
    more: int = 0
    normalise: Mapping[str, Any] | None = None
    colour: str | None = None
    resize: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Refused:
    """A file that is refused with these words."""

    exporter: str
    network: str
    words: str


FOUR: Final = ("--classes", "a,b,c,d")
U, HF, SMP = "Ultralytics", "transformers", "segmentation_models_pytorch"
ROWS: Final[Mapping[str, Served | Refused]] = {
    "ultralytics-yolo11-detect": Served(U, "YOLO11 detect", "yolo-detect"),
    "ultralytics-yolo11-seg": Served(U, "YOLO11 segment", "yolo-seg"),
    "ultralytics-yolo11-seg-dynamic": Served(
        U,
        "YOLO11 segment, `dynamic=True`",
        "yolo-seg",
        more=1,
        why="one object of 226 more, at the threshold of NMS",
    ),
    "ultralytics-yolo11-seg-half": Served(U, "YOLO11 segment, `half=True`", "yolo-seg"),
    "ultralytics-yolov8-seg": Served(U, "YOLOv8 segment", "yolo-seg"),
    "ultralytics-yolov10-detect": Served(U, "YOLOv10 detect", "yolo-detect"),
    "ultralytics-yolo26-detect": Served(U, "YOLO26 detect", "yolo-detect"),
    "ultralytics-yolo26-seg": Served(U, "YOLO26 segment", "yolo-seg"),
    "ultralytics-yolo26-sem": Served(U, "YOLO26 semantic", "semantic-labels"),
    "ultralytics-yolo11-pose": Served(U, "YOLO11 pose", "yolo-pose"),
    "ultralytics-yolo11-obb": Served(U, "YOLO11 rotated boxes", "yolo-obb"),
    "ultralytics-yolo26-obb": Served(U, "YOLO26 rotated boxes", "yolo-obb"),
    "ultralytics-yolo11-seg-nms": Served(U, "YOLO11 segment, `nms=True`", "yolo-nms-free-seg"),
    "ultralytics-yolo11-obb-nms": Served(U, "YOLO11 rotated boxes, `nms=True`", "yolo-nms-free-obb"),
    "ultralytics-yolo11-cls": Refused(U, "YOLO11 classify", "task 'classify'"),
    "rf-detr": Served("RF-DETR", "RF-DETR Nano", "detr-sigmoid"),
    "rf-detr-seg": Served("RF-DETR", "RF-DETR-Seg Nano", "detr-sigmoid-seg"),
    "transformers-segformer": Served(HF, "SegFormer", "semantic-logits"),
    "transformers-dpt": Served(HF, "DPT", "semantic-logits"),
    "transformers-mobilevit": Served(HF, "MobileViT, which reads BGR", "semantic-logits"),
    "transformers-detr": Served(HF, "DETR", "detr"),
    "transformers-detr-mask": Served(HF, "DETR, `pixel_mask`", "detr", resize={"padding": "zeros"}),
    "transformers-conditional-detr": Served(HF, "Conditional DETR", "deformable-detr"),
    "transformers-rt-detr": Served(HF, "RT-DETR", "detr-sigmoid"),
    "transformers-maskformer": Served(HF, "MaskFormer", "maskformer", labels=0.005, why="random queries tie"),
    "transformers-mask2former": Refused(
        HF, "Mask2Former, `dynamo=False`", "export with torch.onnx.export(dynamo=True)"
    ),
    "transformers-mask2former-float32": Served(HF, "the same, its grids cast to float32", "mask2former"),
    "transformers-eomt": Served(HF, "EoMT", "eomt"),
    "smp-unet": Served(SMP, "U-Net", "semantic-logits", normalise=IMAGENET),
    "smp-deeplabv3plus": Served(SMP, "DeepLabV3+", "semantic-logits", normalise=IMAGENET),
    "smp-segformer": Served(SMP, "SegFormer", "semantic-logits", normalise=IMAGENET),
    "smp-unet-one-class": Served(SMP, "U-Net of one class", "semantic-logits", normalise=IMAGENET),
    "smp-unet-sigmoid": Served(SMP, 'U-Net, `activation="sigmoid"`', "semantic-probabilities", normalise=IMAGENET),
    "smp-unet-softmax": Served(
        SMP,
        'U-Net, `activation="softmax2d"`',
        "semantic-probabilities",
        labels=0.01,
        why="logarithms are resized",
        normalise=IMAGENET,
    ),
    "smp-unet-aux": Served(SMP, "U-Net, `aux_params`", "semantic-logits", normalise=IMAGENET),
    "smp-unet-argmax": Served(
        SMP, "U-Net with argmax in the graph", "semantic-labels", normalise=IMAGENET, arguments=FOUR
    ),
    "smp-unet-bgr": Served(SMP, "U-Net trained on BGR", "semantic-logits", normalise=IMAGENET_BGR, colour="BGR"),
    "smp-unet-external": Served(
        SMP, "U-Net, weights in `net.onnx.data` beside it", "semantic-logits", normalise=IMAGENET
    ),
    "smp-unet-external-missing": Refused(SMP, "the same without `net.onnx.data`", "net.onnx.data is not beside it"),
    "smp-unet-int8": Served(SMP, "U-Net, `quantize_static` of ONNX Runtime", "semantic-logits", normalise=IMAGENET),
    "smp-unet-fp16-input": Served(SMP, "U-Net of float16 but its logits", "semantic-logits", normalise=IMAGENET),
    "smp-unet-fp16": Refused(SMP, "U-Net of float16", "convert it with keep_io_types=True"),
    "rapidocr-detector": Served(
        "RapidOCR",
        "PP-OCRv4 text detector, trained",
        "semantic-probabilities",
        normalise={"mean": [0.5], "std": [0.5]},
        colour="BGR",
    ),
    "imgly-isnet": Served(
        "IMG.LY",
        "IS-Net, trained, six masks and six features",
        "semantic-probabilities",
        normalise={"mean": [128 / 255], "std": [256 / 255]},
    ),
    "torchvision-fcn": Served(
        "torchvision", "FCN, `aux_loss`", "semantic-logits", normalise=IMAGENET, resize=ANTIALIASED
    ),
    "monai-unet": Served("MONAI", "BasicUNet of grey images", "semantic-logits", normalise={}, resize=UNROUNDED),
    "keras-unet": Served(
        "tf2onnx", "U-Net of Keras, channels last", "semantic-logits", normalise=IMAGENET, resize=UNROUNDED
    ),
}

SIX: Final = (
    "ultralytics-yolo11-seg",
    "ultralytics-yolo26-sem",
    "rf-detr-seg",
    "transformers-segformer",
    "transformers-maskformer",
    "smp-unet",
)
"""The rows that also go through the real servers, and whose time is measured."""


def page(versions: Mapping[str, str], measured: Mapping[str, Any]) -> str:
    """Return the page of the documentation.

    `versions` are those of the exporters' packages, `measured` is the result of bench/exporters.py.
    """
    return "\n".join(_lines(versions, measured)) + "\n"


def _lines(versions: Mapping[str, str], measured: Mapping[str, Any]) -> Iterator[str]:
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield from (
        "# Files of exporters",
        "",
        "`segserve init PHOTOS FILE.onnx` serves these files without an edit as their library answers, or refuses",
        f"them by name. A test exports each ({named}), with random weights",
        "unless trained, and compares answers to two photographs with the library's own (`make test-oracles`). Default",
        "bounds: 0.1% of labels, boxes 0.01 px, scores 0.001, IoU of masks 0.999.",
        "",
        "| exporter | network, options | family | differs |",
        "|---|---|---|---|",
    )
    for row in ROWS.values():
        yield f"| {row.exporter} | {row.network} | {_result(row)} |"
    yield from (
        "",
        "What no file says is a CHECK in the resource, and here as documented: normalisation and interpolation without",
        "a `preprocessor_config.json`, the names of classes, and BGR.",
        "",
        f"Seconds from a file to its first mask, on {measured['cores']} cores (`bench/exporters.py`):",
        "",
        "| network | `init` | `up` | `predict` |",
        "|---|---|---|---|",
    )
    for case, times in measured["seconds"].items():
        yield f"| {ROWS[case].network} | {times['init']} | {times['up']} | {times['predict']} |"


def _result(row: Served | Refused) -> str:
    if isinstance(row, Refused):
        return f"- | refused: {row.words}"
    usual = Served("", "", "")
    others = [
        f"labels {row.labels:.1%}" if row.labels != usual.labels else "",
        f"scores {row.score:g}" if row.score != usual.score else "",
        row.why,
    ]
    return f"`{row.family}` | {', '.join(filter(None, others))}"
