"""How images come to suit a network: size and normalisation, from its graph, its metadata and its family."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.cli.init.remarks import Remark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from segserve.cli.init.image_input import ImageInput
    from segserve.cli.init.network import NetworkFile

    Stage = Mapping[str, Any]

PLACE: Final = ("spec", "preprocess")
SAFE_MULTIPLE: Final = 32
YOLO_SIDE: Final = 640
SAME_ASPECT: Final = 0.02
IMAGENET: Final[Stage] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
USUAL: Final[Mapping[str, Stage]] = {
    "0 to 1": {},
    "0 to 1 with ImageNet's mean and deviation": IMAGENET,
    "-1 to 1": {"mean": [0.5], "std": [0.5]},
    "0 to 255": {"scale": 1.0},
}
"""What float networks are usually given, and the options of `normalise` for it."""


@dataclass(frozen=True)
class Said:
    """Stages of a pipeline and the reason; None is to be found out."""

    steps: tuple[Stage, ...] | None
    remark: Remark


def resize_of(
    family: str, network: NetworkFile, image: ImageInput, sizes: Sequence[tuple[int, int]], multiple: int | None
) -> Said:
    """Return how images get the network's size; `sizes` (H, W) are those of the user's images."""
    from_config = _preprocessor(network).get("size") or {}
    if image.size is not None:
        return _to_fixed(family, network, image.size, from_config, sizes)
    if _is_yolo(family, network):
        side = _image_size(network) or YOLO_SIDE
        text = f"any size is possible; {side} is what its metadata says" if _image_size(network) else (
            f"any size is possible; {side} is usual for YOLO. Images are made to fit as in Ultralytics"
        )  # fmt: skip
        return _resize({"mode": "letterbox", "size": side}, Remark(PLACE, text, sure=_image_size(network) is not None))
    if {"height", "width"} <= from_config.keys():
        options = {"mode": "stretch", "height": from_config["height"], "width": from_config["width"]}
        return _resize(options, Remark(PLACE, "the size is that of the preprocessor_config.json beside the file"))
    if {"shortest_edge", "longest_edge"} <= from_config.keys():
        options = {"mode": "shortSide", "size": from_config["shortest_edge"], "maxSize": from_config["longest_edge"]}
        text = "the size is that of the preprocessor_config.json beside the file"
        return _resize(options | {"multipleOf": SAFE_MULTIPLE}, Remark(PLACE, text))
    return _as_they_are(multiple)


def _as_they_are(multiple: int | None) -> Said:
    step = SAFE_MULTIPLE if multiple in (None, 1) else multiple
    why = {
        None: f"multiples of {step} are a guess: nothing was tried",
        1: f"it takes any size; {step} is what networks usually divide by",
    }.get(multiple, f"it takes sides that are multiples of {step}: others were tried and fail")
    text = f"images keep their size, as the network's is free; {why}"
    options = {"mode": "keep", "multipleOf": step, "padding": "edge"}
    return _resize(options, Remark(PLACE, text, sure=multiple is not None))


def _to_fixed(
    family: str,
    network: NetworkFile,
    size: tuple[int, int],
    config: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
) -> Said:
    height, width = size
    stretch: Stage = {"mode": "stretch", "height": height, "width": width}
    fit: Stage = {"mode": "letterbox"} | ({"size": height} if height == width else {"height": height, "width": width})
    if _is_yolo(family, network):
        return _resize(fit, Remark(PLACE, f"the size is fixed, {height} x {width}; YOLO networks are given images so"))
    if {"height", "width"} <= config.keys():
        return _resize(stretch, Remark(PLACE, "stretched, as the preprocessor_config.json beside the file says"))
    if sizes and all(math.isclose(w / h, width / height, rel_tol=SAME_ASPECT) for h, w in sizes):
        return _resize(
            stretch, Remark(PLACE, f"the size is fixed, {height} x {width}, and your images have that aspect")
        )
    options, how = (stretch, "stretched") if family == "semantic-logits" else (fit, "fitted in, with a grey border")
    other = "letterbox" if options is stretch else "stretch"
    text = (
        f"the size is fixed, {height} x {width}, your images have another aspect, and how they were made to fit in "
        f"training is not in the file: they are {how} here (mode {options['mode']}; the other way is {other})"
    )
    return _resize(options, Remark(PLACE, text, sure=False))


def normalise_of(family: str, network: NetworkFile, image: ImageInput) -> Said:
    """Return what pixels go through once an image has its size."""
    found = network.arithmetic
    if image.dtype.startswith("UINT"):
        inside = "" if found is None or found.does_nothing else f": {_formula(found.factor, found.offset)}"
        text = f"pixels go in as {image.dtype}; the normalisation is in the graph{inside}"
        return Said((), Remark(PLACE, text))
    config = _preprocessor(network)
    if found is not None and not found.does_nothing:
        unit = "0 to 255" if found.of_bytes else "0 to 1"
        text = f"the graph itself does {_formula(found.factor, found.offset)}, so it wants pixels of {unit}"
        return _normalise({"scale": 1.0} if found.of_bytes else {}, Remark(PLACE, text))
    if config.get("image_mean") and config.get("do_normalize", True):
        options = {"mean": config["image_mean"], "std": config["image_std"]}
        scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        told = options if math.isclose(scale, 1 / 255, rel_tol=1e-6) else options | {"scale": scale}
        return _normalise(told, Remark(PLACE, "mean and std are those of the preprocessor_config.json beside the file"))
    if _is_yolo(family, network):
        sure = "task" in network.metadata
        return _normalise({}, Remark(PLACE, "YOLO networks are given pixels of 0 to 1", sure=sure))
    return Said(None, Remark(PLACE, "nothing in the file says how pixels are normalised", sure=False))


def _resize(options: Stage, remark: Remark) -> Said:
    return Said(({"resize": options},), remark)


def _normalise(options: Stage, remark: Remark) -> Said:
    return Said(({"normalise": options},), remark)


def _formula(factor: Sequence[float], offset: Sequence[float]) -> str:
    """Write `pixel * factor + offset` as people know it: less a mean, by a deviation."""
    many = max(len(factor), len(offset))
    scales, shifts = (list(one) * (many // len(one)) for one in (factor, offset))
    mean = ", ".join(f"{-shift / scale:.4g}" for scale, shift in zip(scales, shifts, strict=True))
    deviation = ", ".join(f"{1 / scale:.4g}" for scale in scales)
    return f"(pixel - {_grouped(mean)}) / {_grouped(deviation)}"


def _grouped(numbers: str) -> str:
    return f"({numbers})" if "," in numbers or numbers.startswith("-") else numbers


def _is_yolo(family: str, network: NetworkFile) -> bool:
    return family.startswith("yolo") or "imgsz" in network.metadata


def _image_size(network: NetworkFile) -> int | None:
    try:
        sides = json.loads(network.metadata.get("imgsz", ""))
    except ValueError:
        return None
    numbers = sides if isinstance(sides, list) else [sides]
    return max(numbers) if numbers and all(isinstance(side, int) and side > 0 for side in numbers) else None


def _preprocessor(network: NetworkFile) -> Mapping[str, Any]:
    try:
        found = json.loads((network.path.parent / "preprocessor_config.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    size = found.get("size")
    return {**found, "size": size if isinstance(size, dict) else {}}
