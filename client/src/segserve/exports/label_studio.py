"""Label Studio: tasks with predictions, masks in the run-length encoding of its brush."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import printable
from segserve.results.annotation import AnnotatedResult, Annotation, foreground
from segserve.results.values import Shapes, class_colour

Json: TypeAlias = dict[str, Any]

# The control tag of each kind of region, and its name in the labelling configuration.
TAGS: Final = {
    "brushlabels": ("BrushLabels", "brush"),
    "polygonlabels": ("PolygonLabels", "polygon"),
    "rectanglelabels": ("RectangleLabels", "box"),
    "keypointlabels": ("KeyPointLabels", "point"),
}
# The widths of a run's length in bits; each run selects one with two bits.
_LENGTH_BITS: Final = np.array([3, 4, 8, 16])
_LONGEST_RUN: Final = 1 << 16
# Run flag, width selector, length, value.
_RUN_BITS: Final = 1 + 2 + 16 + 8


def task(result: AnnotatedResult, image: str, *, shapes: Shapes) -> Json:
    """Return a task for the image at a URL, with one prediction; see `Segmentation.to_label_studio`."""
    annotations = list(foreground(result.annotations()))
    scores = [one.score for one in annotations if one.score is not None]
    found = [region for one in annotations for region in regions(one, result.size, shapes)]
    prediction: Json = {"model_version": result.revision, "result": found}
    if scores:
        prediction["score"] = sum(scores) / len(scores)
    return {"data": {"image": image}, "predictions": [prediction]}


def labelling_config(result: AnnotatedResult) -> str:
    """Return the labelling configuration (XML) of a project for results of this model."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
    for tag, name in TAGS.values():
        control = ET.SubElement(view, tag, name=name, toName="image")
        for segment_class in result.classes:
            red, green, blue = class_colour(segment_class)
            ET.SubElement(
                control, "Label", value=_label(segment_class.name), background=f"#{red:02x}{green:02x}{blue:02x}"
            )
    return ET.tostring(view, encoding="unicode")


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask, bool (H, W), in the encoding of Label Studio's brush: bit-packed runs of RGBA bytes."""
    values = mask.ravel()
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    lengths = np.diff(starts, append=values.size) * 4
    pieces = -(-lengths // _LONGEST_RUN)
    runs = np.full(int(pieces.sum()), _LONGEST_RUN)
    runs[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST_RUN
    size = np.searchsorted(1 << _LENGTH_BITS, runs)
    bits = _LENGTH_BITS[size]
    colour = np.repeat(values[starts].astype(np.int64) * 255, pieces)
    codes = (((1 << 2 | size) << bits | (runs - 1)) << 8) | colour
    columns = np.arange(_RUN_BITS - 1, -1, -1)
    is_used = columns < (bits + 11)[:, np.newaxis]
    stream = ((codes[:, np.newaxis] >> columns) & 1).astype(np.uint8)[is_used]
    packed: list[int] = np.packbits(np.concatenate((_header(values.size * 4), stream))).tolist()
    return packed


def read_brush(encoded: Iterable[int], height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask, bool (H, W), of a brush, also of one that Label Studio wrote; raises ValueError for others."""
    bits = io.StringIO("".join(f"{byte:08b}" for byte in encoded))
    size, word, *lengths = (int(bits.read(count), 2) for count in (32, 5, 4, 4, 4, 4))
    if size != height * width * 4:
        raise ValueError(f"a brush of {size} values is not of an image of {height} x {width}")
    values, filled = list[NDArray[np.uint8]](), 0
    while filled < size:
        is_run, length = int(bits.read(1)), int(bits.read(lengths[int(bits.read(2), 2)] + 1), 2) + 1
        own = [int(bits.read(word + 1), 2) for _ in range(1 if is_run else length)]
        values.append(np.repeat(np.array(own, np.uint8), length if is_run else 1))
        filled += length
    return np.asarray(np.concatenate(values).reshape(height, width, 4)[..., 3] > 0)


def _header(count: int) -> NDArray[np.uint8]:
    text = f"{count:032b}{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS)
    return np.frombuffer(text.encode(), np.uint8) - ord("0")


def regions(annotation: Annotation, size: tuple[int, int], shapes: Shapes) -> Iterator[Json]:
    """Yield the regions of an annotation in an image of `size`, height and width, for `labelling_config`."""
    height, width = size
    percent = np.array([100 / width, 100 / height])
    name = f"object-{annotation.number}"
    if annotation.mask is None:
        # Label Studio rejects boxes that leave the image.
        x1, y1, x2, y2 = np.clip(annotation.box, 0, (width, height, width, height))
        (x, y), (across, down) = (percent * (x1, y1)).tolist(), (percent * (x2 - x1, y2 - y1)).tolist()
        value = {"x": x, "y": y, "width": across, "height": down, "rotation": 0}
        yield _region(name, "rectanglelabels", value, annotation, size)
    elif shapes == "mask":
        patch = annotation.mask.patch()
        if patch.pixels.size:
            mask = np.zeros(size, np.bool_)
            mask[patch.window] = patch.pixels
            yield _region(name, "brushlabels", {"format": "rle", "rle": brush_rle(mask)}, annotation, size)
    else:
        for number, polygon in enumerate(annotation.mask.polygons):
            value = {"points": (np.array(polygon).reshape(-1, 2) * percent).tolist(), "closed": True}
            yield _region(f"{name}-part-{number}", "polygonlabels", value, annotation, size)
    for number, (x, y, score) in enumerate([] if annotation.points is None else annotation.points.tolist()):
        left, top = (percent * (x, y)).tolist()
        region = _region(
            f"{name}-point-{number}", "keypointlabels", {"x": left, "y": top, "width": 0.5}, annotation, size
        )
        yield region | {"score": score, "parentID": name}


def _region(name: str, kind: str, value: Json, annotation: Annotation, size: tuple[int, int]) -> Json:
    region = {
        "id": name,
        "type": kind,
        "from_name": TAGS[kind][1],
        "to_name": "image",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": value | {kind: [_label(annotation.class_name)]},
    }
    return region if annotation.score is None else region | {"score": annotation.score}


def _label(name: str) -> str:
    return printable(name, 200)
