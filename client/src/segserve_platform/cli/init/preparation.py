"""Resizing and normalisation of images for a network, from its graph, metadata and family."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from segserve_builder.export.image_processor import FILE_NAME
from segserve_builder.families.base import IMAGENET, ULTRALYTICS, Family, LibraryPreprocessing
from segserve_builder.families.yolo import literal
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.init.network import Choice, ImageInput, NetworkFile, Remark, StageOptions

PLACE: Final = ("spec", "preprocess")
SAFE_MULTIPLE: Final = 32
SAME_ASPECT: Final = 0.02
RESIZED: Final = {"letterbox": "letterboxed", "stretch": "stretched", "shortSide": "padded right and below"}
BYTES: Final = "0 to 255"
USUAL: Final[Mapping[str, StageOptions]] = {
    "0 to 1": {},
    "0 to 1 with ImageNet's mean and deviation": IMAGENET,
    "-1 to 1": {"mean": [0.5], "std": [0.5]},
    BYTES: {"scale": 1.0},
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
    if image.size is not None:
        return _to_fixed(family, network, image.size, sizes)
    library = _library(family, network)
    if library is not None and library.free_side is not None:
        size = _image_size(network)
        side = size or library.free_side
        text = f"any size works; {side} is that of its metadata"
        if size is None:
            text = f"any size works; {side} is usual. {library.networks} take {RESIZED[library.resize['mode']]} images"
        options: StageOptions = {"mode": "letterbox", "size": side}
        if library.resize["mode"] == "stretch":
            options = {"mode": "stretch", "height": side, "width": side}
        elif isinstance(args := literal(network.metadata.get("args", "")), dict) and args.get("dynamic"):
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
    library = _library(family, network)
    if library is not None and (library.resize["mode"] != "shortSide" or height == width):
        mode = library.resize["mode"]
        own = {"shortSide": {"size": height, "maxSize": height, "multipleOf": height}, "letterbox": sides}
        resized = {**library.resize, **own.get(mode, {"height": height, "width": width})}
        if network.image.dtype.startswith("UINT"):
            resized.pop("rounding", None)
        text = f"the size is fixed, {height} x {width}; {library.networks} take {RESIZED[mode]} images"
        return _resize(resized, Remark(PLACE, text))
    processed = network.processor.resize(size, 1)
    if processed is not None:
        how = "stretched" if processed["mode"] == "stretch" else "resized and padded"
        return _resize(processed, Remark(PLACE, f"{how}, according to the {FILE_NAME} beside the file"))
    filters = (
        ". The interpolation is OpenCV's bilinear, as the file does not tell it: torchvision has antialias with "
        "rounding eachPass, float tensors have rounding none"
    )
    if network.processor.config or all(one == size for one in sizes):
        filters = ""
    if sizes and all(math.isclose(w / h, width / height, rel_tol=SAME_ASPECT) for h, w in sizes):
        text = f"the size is fixed, {height} x {width}, and your images have that aspect ratio{filters}"
        return _resize(stretch, Remark(PLACE, text, sure=not filters))
    is_stretched = family.fixed_size_resize == "stretch"
    options, how = (stretch, "stretched") if is_stretched else (fit, "letterboxed")
    other = "letterbox" if is_stretched else "stretch"
    text = (
        f"the size is fixed, {height} x {width}, your images have another aspect ratio, and the file does not say how "
        f"training resized them: they are {how} here (mode {options['mode']}; the alternative is {other}){filters}"
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
    library = _library(family, network)
    if library is not None:
        sure = library.pixels.sure or "task" in network.metadata
        return _normalise(library.normalise, Remark(PLACE, library.pixels.text, sure=sure))
    order = ", nor whether channels are RGB (as here) or BGR (input.colour)" if image.channels == 3 else ""
    return Choice(None, Remark(PLACE, f"the file does not say how pixels are normalised{order}", sure=False))


def colour_of(family: Family, network: NetworkFile, image: ImageInput) -> dict[str, str]:
    """Return the `input` of the resource: the order of three channels is the family's or the image processor's."""
    if image.channels == 1:
        return {"colour": image.colour}
    library = _library(family, network)
    return {"colour": network.processor.colour if library is None else library.colour}


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


def _library(family: Family, network: NetworkFile) -> LibraryPreprocessing | None:
    """Return the preprocessing of the library that the network comes from, None if it may come from any."""
    usual = family.preprocessing
    if usual is not None and usual.output in (None, *(tensor.name for tensor in network.signature.outputs)):
        return usual
    return ULTRALYTICS if "imgsz" in network.metadata else None


def _image_size(network: NetworkFile) -> int | None:
    try:
        sides = json.loads(network.metadata.get("imgsz", ""))
    except ValueError:
        return None
    numbers = sides if isinstance(sides, list) else [sides]
    return max(numbers) if numbers and all(isinstance(side, int) and side > 0 for side in numbers) else None
