"""Files of exporters, and how `segserve init` takes each: the matrix of tests/e2e/test_exporters.py and its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET_BGR: Final = {name: values[::-1] for name, values in IMAGENET.items()}
OWN_SIZE: Final = "`own size`"


@dataclass(frozen=True)
class Served:
    """A file that is served without an edit, and how near its answers are to its library's.

    `labels` is the largest share of pixels with another class. Boxes, scores and masks are those of the same object;
    up to `more` objects are only in the answer.
    `normalise` and `colour` are what training decides: no file says it, and `init` marks it with CHECK. `arguments` are
    those of `init` beside the file and the photographs.
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
    "ultralytics-yolo11-obb": Refused(U, "YOLO11 rotated boxes", "task 'obb'"),
    "ultralytics-yolo11-cls": Refused(U, "YOLO11 classify", "task 'classify'"),
    "rf-detr": Served("RF-DETR", "RF-DETR Nano", "detr-sigmoid", why=OWN_SIZE),
    "rf-detr-seg": Served("RF-DETR", "RF-DETR-Seg Nano", "detr-sigmoid-seg", why=OWN_SIZE),
    "transformers-segformer": Served(HF, "SegFormer", "semantic-logits", labels=0.01),
    "transformers-dpt": Served(HF, "DPT", "semantic-logits", labels=0.01),
    "transformers-mobilevit": Served(HF, "MobileViT, which reads BGR", "semantic-logits", why=OWN_SIZE),
    "transformers-detr": Served(HF, "DETR", "detr"),
    "transformers-conditional-detr": Served(HF, "Conditional DETR", "deformable-detr", score=0.002),
    "transformers-rt-detr": Served(HF, "RT-DETR", "detr-sigmoid", score=0.002),
    "transformers-maskformer": Served(HF, "MaskFormer", "maskformer", labels=0.01),
    "transformers-eomt": Served(HF, "EoMT", "eomt", labels=0.01),
    "smp-unet": Served(SMP, "U-Net", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "smp-deeplabv3plus": Served(SMP, "DeepLabV3+", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "smp-segformer": Served(SMP, "SegFormer", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "smp-unet-one-class": Served(SMP, "U-Net of one class", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "smp-unet-sigmoid": Served(
        SMP, 'U-Net, `activation="sigmoid"`', "semantic-probabilities", why=OWN_SIZE, normalise=IMAGENET
    ),
    "smp-unet-softmax": Served(
        SMP, 'U-Net, `activation="softmax2d"`', "semantic-probabilities", why=OWN_SIZE, normalise=IMAGENET
    ),
    "smp-unet-aux": Served(SMP, "U-Net, `aux_params`", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "smp-unet-argmax": Served(
        SMP, "U-Net with argmax in the graph", "semantic-labels", why=OWN_SIZE, normalise=IMAGENET, arguments=FOUR
    ),
    "smp-unet-bgr": Served(
        SMP, "U-Net trained on BGR", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET_BGR, colour="BGR"
    ),
    "torchvision-fcn": Served("torchvision", "FCN, `aux_loss`", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET),
    "monai-unet": Served(
        "MONAI", "BasicUNet of grey images", "semantic-logits", labels=0.002, why=OWN_SIZE, normalise={}
    ),
    "keras-unet": Served(
        "tf2onnx", "U-Net of Keras, channels last", "semantic-logits", why=OWN_SIZE, normalise=IMAGENET
    ),
}


def page(versions: Mapping[str, str]) -> str:
    """Return the page of the documentation; `versions` are those of the exporters' packages."""
    return "\n".join(_lines(versions)) + "\n"


def _lines(versions: Mapping[str, str]) -> Iterator[str]:
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield from (
        "# Files of exporters",
        "",
        "`segserve init PHOTOS FILE.onnx` serves these files without an edit as their library answers, or refuses",
        f"them by name. A test exports each with random weights ({named})",
        "and compares answers to two photographs with the library's own (`make test-oracles`). At most 0.1% of pixels",
        "have another label, boxes are within 0.01 px, scores within 0.001, and masks have an IoU of 0.999 or more, if",
        "the last column has nothing else. With `own size` images are not resized, which some libraries do without",
        "rounding to 8 bits.",
        "",
        "| exporter | network, options | family | differs |",
        "|---|---|---|---|",
    )
    for row in ROWS.values():
        yield f"| {row.exporter} | {row.network} | {_result(row)} |"
    yield from (
        "",
        "What no file says is marked with CHECK in the resource: the normalisation of networks that come without a",
        "`preprocessor_config.json` (the rows of segmentation_models_pytorch have that of its documentation),",
        "the names of their classes, and whether they read BGR.",
    )


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
