"""Resizing and normalisation of images for a network, from its graph, metadata and family."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from segserve_builder.export.image_processor import FILE_NAME
from segserve_builder.families.base import Family
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.network import ImageInput, NetworkFile
from segserve_platform.cli.init.values import Choice, Remark, StageOptions

PLACE: Final = ("spec", "preprocess")
SAFE_MULTIPLE: Final = 32
YOLO_SIDE: Final = 640
YOLOX_GREY: Final = 114
RF_DETR: Final = frozenset({"detr-sigmoid", "detr-sigmoid-seg"})
"""The families of RF-DETR, whose own exports name their boxes `dets`."""
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
    if network.processor.splits_images:
        raise CommandError(f"the {FILE_NAME} beside the file splits images into parts, which is not supported")
    choice = _resize_of(family, network, image, sizes, multiple)
    not_done = network.processor.not_done()
    if not not_done:
        return choice
    text = (
        f"{choice.remark.text}. What the {FILE_NAME} beside the file has besides is not done, so answers differ from "
        f"transformers': {', '.join(not_done)}"
    )
    return replace(choice, remark=Remark(PLACE, text, sure=False))


def _resize_of(
    family: Family,
    network: NetworkFile,
    image: ImageInput,
    sizes: Sequence[tuple[int, int]],
    multiple: int | None,
) -> Choice:
    if image.size is not None and family.yolox_preprocessing and image.height == image.width:
        side = image.size[0]
        padded = {"mode": "shortSide", "size": side, "maxSize": side, "multipleOf": side, "padValue": YOLOX_GREY}
        return _resize(padded, Remark(PLACE, "YOLOX networks take images that are padded right and below"))
    if image.size is not None:
        return _to_fixed(family, network, image.size, sizes)
    if _is_like_ultralytics(family, network):
        size = _image_size(network)
        text = f"any size works; {size} is that of its metadata"
        if size is None:
            text = f"any size works; {YOLO_SIDE} is usual for YOLO. Images are letterboxed as in Ultralytics"
        side = size or YOLO_SIDE
        options: StageOptions = {"mode": "letterbox", "size": side}
        if _is_rt_detr(family):
            options = {"mode": "stretch", "height": side, "width": side}
        elif "'dynamic': True" in network.metadata.get("args", ""):
            stride = network.metadata.get("stride", "")
            multiple = int(stride) if stride.isdecimal() else SAFE_MULTIPLE
            if multiple and side % multiple == 0:
                options = {**options, "multipleOf": multiple}
                text += f"; `yolo predict` pads to multiples of {multiple}, not to a square"
        return _resize(options, Remark(PLACE, text, sure=size is not None))
    processed = network.processor.resize(None, multiple or SAFE_MULTIPLE)
    if processed is not None:
        text = f"size and interpolation are from the {FILE_NAME} beside the file"
        if processed["mode"] == "shortSide":
            text += "; transformers rounds sides down, which may differ by a pixel"
        return _resize(processed, Remark(PLACE, text))
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
    sizes: Sequence[tuple[int, int]],
) -> Choice:
    height, width = size
    resampling = network.processor.resampling if network.processor.config else {}
    stretch: StageOptions = {"mode": "stretch", "height": height, "width": width, **resampling}
    sides = {"size": height} if height == width else {"height": height, "width": width}
    fit: StageOptions = {"mode": "letterbox", **sides, **resampling}
    if _is_rt_detr(family):
        return _resize(
            stretch, Remark(PLACE, f"the size is fixed, {height} x {width}; Ultralytics stretches for RT-DETR")
        )
    if _is_like_ultralytics(family, network):
        return _resize(
            fit, Remark(PLACE, f"the size is fixed, {height} x {width}; YOLO networks take letterboxed images")
        )
    processed = network.processor.resize(size, 1)
    if processed is not None:
        how = "stretched" if processed["mode"] == "stretch" else "resized and padded"
        return _resize(processed, Remark(PLACE, f"{how}, according to the {FILE_NAME} beside the file"))
    if sizes and all(math.isclose(w / h, width / height, rel_tol=SAME_ASPECT) for h, w in sizes):
        return _resize(
            stretch, Remark(PLACE, f"the size is fixed, {height} x {width}, and your images have that aspect ratio")
        )
    is_stretched = family.fixed_size_resize == "stretch"
    options, how = (stretch, "stretched") if is_stretched else (fit, "letterboxed")
    other = "letterbox" if is_stretched else "stretch"
    text = (
        f"the size is fixed, {height} x {width}, your images have another aspect ratio, and the file does not say how "
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
    if arithmetic is not None and not arithmetic.does_nothing:
        unit = "0 to 255" if arithmetic.of_bytes else "0 to 1"
        text = (
            f"the graph itself applies {_formula(arithmetic.factor, arithmetic.offset)}, so it takes pixels of {unit}"
        )
        return _normalise({"scale": 1.0} if arithmetic.of_bytes else {}, Remark(PLACE, text))
    processed = network.processor.normalise
    if processed is not None:
        values = "mean and std are those" if "mean" in processed else "the range of pixels is that"
        return _normalise(processed, Remark(PLACE, f"{values} of the {FILE_NAME} beside the file"))
    if family.yolox_preprocessing:
        text = "YOLOX networks take BGR pixels of 0 to 255; those before 0.2 took RGB, normalised as for ImageNet"
        return _normalise({"scale": 1.0}, Remark(PLACE, text, sure=False))
    if family.name in RF_DETR and "dets" in {tensor.name for tensor in network.signature.outputs}:
        return _normalise(IMAGENET, Remark(PLACE, "RF-DETR networks take ImageNet's mean and deviation"))
    if _is_like_ultralytics(family, network):
        sure = "task" in network.metadata
        return _normalise({}, Remark(PLACE, "YOLO networks take pixels of 0 to 1", sure=sure))
    order = ", nor whether channels are RGB (as here) or BGR (input.colour)" if image.channels == 3 else ""
    return Choice(None, Remark(PLACE, f"the file does not say how pixels are normalised{order}", sure=False))


def colour_of(family: Family, network: NetworkFile, image: ImageInput) -> dict[str, str]:
    """Return the `input` of the resource: the order of three channels is the family's or the image processor's."""
    if image.channels == 1:
        return {"colour": image.colour}
    return {"colour": "BGR" if family.yolox_preprocessing else network.processor.colour}


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
