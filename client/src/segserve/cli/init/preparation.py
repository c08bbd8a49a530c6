"""Resizing and normalisation of images for a network, from its graph, metadata and family."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from segserve.cli.errors import CommandError
from segserve.cli.init.network import ImageInput, NetworkFile
from segserve.cli.init.values import Choice, Remark, StageOptions
from segserve_builder.families.base import Family

PLACE: Final = ("spec", "preprocess")
SAFE_MULTIPLE: Final = 32
YOLO_SIDE: Final = 640
SAME_ASPECT: Final = 0.02
IMAGENET: Final[StageOptions] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
USUAL: Final[Mapping[str, StageOptions]] = {
    "0 to 1": {},
    "0 to 1 with ImageNet's mean and deviation": IMAGENET,
    "-1 to 1": {"mean": [0.5], "std": [0.5]},
    "0 to 255": {"scale": 1.0},
}
"""The usual ranges of float pixels, with the options of `normalise` for each, from the most usual on."""


def resize_of(
    family: Family, network: NetworkFile, image: ImageInput, sizes: Sequence[tuple[int, int]], multiple: int | None
) -> Choice:
    """Return how images are resized.

    `sizes` are (height, width) of the user's images; `multiple` is what sides must be multiples of, None if unknown.
    Raises `CommandError` if training split images into parts.
    """
    if _preprocessor(network).get("do_split_image"):
        raise CommandError(
            "the preprocessor_config.json beside the file splits images into parts, which is not supported"
        )
    from_config = _preprocessor(network).get("size") or {}
    if image.size is not None:
        return _to_fixed(family, network, image.size, from_config, sizes)
    if _is_like_ultralytics(family, network):
        size = _image_size(network)
        text = f"any size works; {size} is that of its metadata"
        if size is None:
            text = f"any size works; {YOLO_SIDE} is usual for YOLO. Images are letterboxed as in Ultralytics"
        side = size or YOLO_SIDE
        options: StageOptions = {"mode": "letterbox", "size": side}
        if _is_rt_detr(family):
            options = {"mode": "stretch", "height": side, "width": side}
        return _resize(options, Remark(PLACE, text, sure=size is not None))
    if {"height", "width"} <= from_config.keys():
        options = {"mode": "stretch", "height": from_config["height"], "width": from_config["width"]}
        return _resize(options, Remark(PLACE, "the size is that of the preprocessor_config.json beside the file"))
    if {"shortest_edge", "longest_edge"} <= from_config.keys():
        options = {"mode": "shortSide", "size": from_config["shortest_edge"], "maxSize": from_config["longest_edge"]}
        text = "the size is that of the preprocessor_config.json beside the file"
        return _resize(options | {"multipleOf": SAFE_MULTIPLE}, Remark(PLACE, text))
    return _as_they_are(multiple)


def _as_they_are(multiple: int | None) -> Choice:
    step = SAFE_MULTIPLE if multiple in (None, 1) else multiple
    why = {
        None: f"multiples of {step} are a guess: the network was not run",
        1: f"it takes any size; {step} is the usual stride of networks",
    }.get(multiple, f"its sides must be multiples of {step}: others fail")
    text = f"images keep their size, because the network's is free; {why}"
    options = {"mode": "keep", "multipleOf": step, "padding": "edge"}
    return _resize(options, Remark(PLACE, text, sure=multiple is not None))


def _to_fixed(
    family: Family,
    network: NetworkFile,
    size: tuple[int, int],
    config: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
) -> Choice:
    height, width = size
    stretch: StageOptions = {"mode": "stretch", "height": height, "width": width}
    fit: StageOptions = {"mode": "letterbox"} | (
        {"size": height} if height == width else {"height": height, "width": width}
    )
    if _is_rt_detr(family):
        return _resize(
            stretch, Remark(PLACE, f"the size is fixed, {height} x {width}; Ultralytics stretches for RT-DETR")
        )
    if _is_like_ultralytics(family, network):
        return _resize(
            fit, Remark(PLACE, f"the size is fixed, {height} x {width}; YOLO networks take letterboxed images")
        )
    if {"height", "width"} <= config.keys():
        return _resize(stretch, Remark(PLACE, "stretched, according to the preprocessor_config.json beside the file"))
    if config.get("longest_edge") == height == width and _preprocessor(network).get("do_pad"):
        padded = {"mode": "shortSide", "size": config["shortest_edge"], "maxSize": height, "multipleOf": height}
        text = "resized and padded, according to the preprocessor_config.json beside the file"
        return _resize(padded, Remark(PLACE, text))
    if sizes and all(math.isclose(w / h, width / height, rel_tol=SAME_ASPECT) for h, w in sizes):
        return _resize(
            stretch, Remark(PLACE, f"the size is fixed, {height} x {width}, and your images have that aspect ratio")
        )
    is_stretched = family.fixed_size_resize == "stretch"
    options, how = (stretch, "stretched") if is_stretched else (fit, "letterboxed")
    other = "letterbox" if is_stretched else "stretch"
    text = (
        f"the size is fixed, {height} x {width}, your images have another aspect ratio, and the file does not tell how "
        f"training resized them: they are {how} here (mode {options['mode']}; the alternative is {other})"
    )
    return _resize(options, Remark(PLACE, text, sure=False))


def normalise_of(family: Family, network: NetworkFile, image: ImageInput) -> Choice:
    """Return how pixels are normalised after resizing; its steps are None if trials have to determine it."""
    arithmetic = network.arithmetic
    if image.dtype.startswith("UINT"):
        inside = (
            ""
            if arithmetic is None or arithmetic.does_nothing
            else f": {_formula(arithmetic.factor, arithmetic.offset)}"
        )
        text = f"pixels are {image.dtype}; the normalisation is in the graph{inside}"
        return Choice((), Remark(PLACE, text))
    config = _preprocessor(network)
    if arithmetic is not None and not arithmetic.does_nothing:
        unit = "0 to 255" if arithmetic.of_bytes else "0 to 1"
        text = (
            f"the graph itself applies {_formula(arithmetic.factor, arithmetic.offset)}, so it takes pixels of {unit}"
        )
        return _normalise({"scale": 1.0} if arithmetic.of_bytes else {}, Remark(PLACE, text))
    normalises = bool(config.get("image_mean")) and config.get("do_normalize", True)
    if normalises or "rescale_factor" in config:
        options = {"mean": config["image_mean"], "std": config["image_std"]} if normalises else {}
        scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
        options = options if math.isclose(scale, 1 / 255, rel_tol=1e-6) else options | {"scale": scale}
        values = "mean and std are those" if normalises else "the range of pixels is that"
        return _normalise(options, Remark(PLACE, f"{values} of the preprocessor_config.json beside the file"))
    if _is_like_ultralytics(family, network):
        sure = "task" in network.metadata
        return _normalise({}, Remark(PLACE, "YOLO networks take pixels of 0 to 1", sure=sure))
    return Choice(None, Remark(PLACE, "the file does not tell how pixels are normalised", sure=False))


def _resize(options: StageOptions, remark: Remark) -> Choice:
    return Choice(({"resize": options},), remark)


def _normalise(options: StageOptions, remark: Remark) -> Choice:
    return Choice(({"normalise": options},), remark)


def _formula(factor: Sequence[float], offset: Sequence[float]) -> str:
    """Write `pixel * factor + offset` in the usual form: minus a mean, divided by a deviation."""
    channels = max(len(factor), len(offset))
    scales, shifts = (list(one) * (channels // len(one)) for one in (factor, offset))
    mean = ", ".join(f"{-shift / scale:.4g}" for scale, shift in zip(scales, shifts, strict=True))
    deviation = ", ".join(f"{1 / scale:.4g}" for scale in scales)
    return f"(pixel - {_grouped(mean)}) / {_grouped(deviation)}"


def _grouped(numbers: str) -> str:
    return f"({numbers})" if "," in numbers or numbers.startswith("-") else numbers


def _is_like_ultralytics(family: Family, network: NetworkFile) -> bool:
    return family.ultralytics_preprocessing or "imgsz" in network.metadata


def _is_rt_detr(family: Family) -> bool:
    return family.ultralytics_preprocessing and family.fixed_size_resize == "stretch"


def _image_size(network: NetworkFile) -> int | None:
    try:
        sides = json.loads(network.metadata.get("imgsz", ""))
    except ValueError:
        return None
    numbers = sides if isinstance(sides, list) else [sides]
    return max(numbers) if numbers and all(isinstance(side, int) and side > 0 for side in numbers) else None


def _preprocessor(network: NetworkFile) -> Mapping[str, Any]:
    try:
        config = json.loads((network.path.parent / "preprocessor_config.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    size = config.get("size")
    return {**config, "size": size if isinstance(size, dict) else {}}
