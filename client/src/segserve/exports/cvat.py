"""CVAT's XML, "CVAT for images 1.1": masks, polygons, boxes and points with scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree import ElementTree as ET

import numpy as np

from segserve.rendering.display import printable
from segserve.results.annotation import AnnotatedResult, Annotation, foreground
from segserve.results.values import Shapes, class_colour
from segserve_common.drawing.canvas import Patch
from segserve_common.errors import BadRequestError

SCORE: Final = "score"


def document(result: AnnotatedResult, file_name: str, *, image_id: int, shapes: Shapes) -> str:
    """Return the document for one image; see `Segmentation.to_cvat`."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "name").text = printable(result.revision)
    ET.SubElement(task, "size").text = "1"
    ET.SubElement(task, "mode").text = "annotation"
    labels = ET.SubElement(task, "labels")
    for segment_class in result.classes:
        label = ET.SubElement(labels, "label")
        red, green, blue = class_colour(segment_class)
        ET.SubElement(label, "name").text = _label(segment_class.name)
        ET.SubElement(label, "color").text = f"#{red:02x}{green:02x}{blue:02x}"
        ET.SubElement(label, "type").text = "any"
        attribute = ET.SubElement(ET.SubElement(label, "attributes"), "attribute")
        fields = {"name": SCORE, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}
        for field, text in fields.items():
            ET.SubElement(attribute, field).text = text
    height, width = result.size
    name = printable(file_name, 1000)
    image = ET.SubElement(root, "image", id=str(image_id), name=name, width=str(width), height=str(height))
    for annotation in foreground(result.annotations()):
        for shape in _shapes(annotation, shapes):
            if annotation.score is not None:
                ET.SubElement(shape, "attribute", name=SCORE).text = f"{annotation.score:.6g}"
            image.append(shape)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


def merge(documents: Sequence[str]) -> str:
    """Return the documents of several images as one, with images renumbered; a CVAT task accepts one file.

    Raises `BadRequestError` for no document.
    """
    roots = [ET.fromstring(document) for document in documents]
    if not roots:
        raise BadRequestError("merge needs at least one document")
    merged = roots[0]
    labels = merged.find("meta/task/labels")
    names = {label.findtext("name") for label in merged.iterfind("meta/task/labels/label")}
    for root in roots[1:]:
        for label in root.iterfind("meta/task/labels/label"):
            if labels is not None and label.findtext("name") not in names:
                names.add(label.findtext("name"))
                labels.append(label)
        merged.extend(root.iterfind("image"))
    for number, image in enumerate(merged.iterfind("image")):
        image.set("id", str(number))
    for size in merged.iterfind("meta/task/size"):
        size.text = str(len(roots))
    ET.indent(merged)
    return ET.tostring(merged, encoding="unicode", xml_declaration=True)


def _shapes(annotation: Annotation, shapes: Shapes) -> list[ET.Element]:
    elements = []
    if annotation.mask is None:
        x1, y1, x2, y2 = (f"{side:.2f}" for side in annotation.box)
        elements.append(_shape(annotation, "box", xtl=x1, ytl=y1, xbr=x2, ybr=y2))
    elif shapes == "mask":
        patch = annotation.mask.patch()
        if patch.pixels.size:
            elements.append(_shape(annotation, "mask", **_mask(patch)))
    else:
        rings = (zip(polygon[::2], polygon[1::2], strict=True) for polygon in annotation.mask.polygons)
        elements += [_shape(annotation, "polygon", points=_points(ring)) for ring in rings]
    if annotation.points is not None and len(annotation.points):
        elements.append(_shape(annotation, "points", points=_points(annotation.points[:, :2].tolist())))
    return elements


def _shape(annotation: Annotation, kind: str, **attributes: str) -> ET.Element:
    common = {"label": _label(annotation.class_name), "source": "auto", "occluded": "0", "z_order": "0"}
    return ET.Element(kind, common | {"group_id": str(annotation.number)} | attributes)


def _mask(patch: Patch) -> dict[str, str]:
    """Return the runs of a mask's rectangle in row order, starting outside the mask."""
    values = patch.pixels.ravel()
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    runs = np.diff(borders, prepend=0, append=values.size).tolist()
    x1, y1, x2, y2 = patch.box
    rle = ", ".join(map(str, [0, *runs] if values[0] else runs))
    return {"rle": rle, "left": str(x1), "top": str(y1), "width": str(x2 - x1), "height": str(y2 - y1)}


def _points(points: Iterable[Iterable[float]]) -> str:
    return ";".join(",".join(f"{number:.2f}" for number in point) for point in points)


def _label(name: str) -> str:
    return printable(name, 200)
