"""Labels of other tools: LabelMe's and Label Studio's JSON becomes COCO's, any other form is named in an error."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import numpy as np

from segserve.errors import DatasetError
from segserve.exports.label_studio import read_brush
from segserve.results.masks import EncodedMask, text_rle
from segserve_common.errors import ProtocolError

RegionRows: TypeAlias = Iterator[tuple[object, str, Any, list[float]]]
"""Of each its object, its class, and its mask, bool (H, W), or None and its box, x, y, width, height."""

NNUNET: Final = "nnU-Net's: copy maps and images, as PNG or TIFF of one name, into labels and images"
VIA: Final = "VIA's: export it in VIA as COCO (Annotation, Export Annotations)"
_FORMS: Final = {
    ("image_id", "category_id", "score"): "a list of detections (COCO results): name the file with images",
    ("_via_img_metadata",): VIA,
    ("filename", "regions"): VIA,
    ("project", "attribute", "metadata", "file"): "VIA's: convert it to COCO, for example in VIA 2",
    ("labels", "numTraining"): NNUNET,
    ("categories", "items"): "datumaro's: convert it (datum convert -if datumaro -f coco_instances)",
    ("JPEGImages",): "Pascal VOC's: convert its boxes (supervision's DetectionDataset.from_pascal_voc and as_coco), or "
    "copy its maps and their images into the folders labels and images, with the names of classes in classes.txt",
    ("imagesTr", "labelsTr"): NNUNET,
    ("<annotation>",): "Pascal VOC's: convert it (supervision's DetectionDataset.from_pascal_voc and as_coco)",
    ("<annotations>",): "CVAT's: export it from CVAT as COCO, or convert it (datum convert -if cvat -f coco_instances)",
}
"""Forms by keys of a document, its first item or its first value, by the root of XML, and by names in a folder."""


def refuse_form(name: str, *keys: Iterable[str]) -> None:
    """Raise `DatasetError` for what has the keys of another tool's form."""
    for marks, form in _FORMS.items():
        if any({*marks} <= {*each} for each in keys):
            raise DatasetError(f"{name} is not read, as it is {form}")


def is_labelme(document: Any) -> bool:
    """Return whether a document is LabelMe's, of one image."""
    return isinstance(document, dict) and {"shapes", "imagePath"} <= document.keys()


def as_coco(documents: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Return documents of LabelMe, or one of Label Studio, by the names of their files, as one of COCO, with remarks.

    None for any other document. Raises `DatasetError` for a known form of another tool, and for a kind of region that
    segserve itself does not write.
    """
    (name, document), *_ = documents.items()
    items = document if isinstance(document, list) and document else [document]
    try:
        if is_labelme(document):
            return _coco(_labelme(each, file) for file, each in documents.items()), ()
        if all({"data"} <= {*each} and {"annotations", "predictions"} & {*each} for each in items):
            predicted = sum(not each.get("annotations") for each in items)
            note = f"labels are predictions, not people's annotations, in {predicted} of {len(items)} tasks"
            return _coco(_task(each, f"{name}: task {n}") for n, each in enumerate(items)), (note,) * bool(predicted)
        first = next(iter(document.values()), None) if isinstance(document, dict) else items[0]
        if first is items[0] or not {"images", "annotations"} <= {*document}:
            refuse_form(name, *(each for each in (document, first) if isinstance(each, dict)))
    except (ProtocolError, ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError) as error:
        raise DatasetError(f"{name} has labels that cannot be read: {error!r}") from error
    return None


def _coco(rows: Iterator[tuple[str, tuple[int, int], RegionRows]]) -> dict[str, Any]:
    """Return images with their sizes and regions as COCO's document; regions of one object are joined."""
    images, annotations, numbers = list[Any](), list[Any](), dict[str, int]()
    for number, (file_name, (height, width), regions) in enumerate(rows):
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        objects = defaultdict[Any, list[tuple[Any, list[float]]]](list)
        for owner, label, mask, box in regions:
            objects[owner, label].append((mask, box))
        for (_, label), parts in objects.items():
            one = {"image_id": number, "category_id": numbers.setdefault(label, len(numbers))}
            if all(mask is not None for mask, _ in parts):
                joined = EncodedMask.of(np.any([mask for mask, _ in parts], 0))
                annotations.append(one | {"segmentation": text_rle(joined)})
            else:
                annotations += [one | {"bbox": box} for _, box in parts]
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _labelme(document: Any, name: str) -> tuple[str, tuple[int, int], RegionRows]:
    from PIL import Image, ImageDraw

    size = int(document["imageHeight"]), int(document["imageWidth"])

    def regions() -> RegionRows:
        for number, shape in enumerate(document["shapes"]):
            kind, group, drawn = shape.get("shape_type") or "polygon", shape.get("group_id"), Image.new("1", size[::-1])
            points = [(float(x), float(y)) for x, y in shape["points"]]
            (left, top), (right, bottom) = np.min(points, 0).tolist(), np.max(points, 0).tolist()
            if kind == "point" and group is not None:
                continue  # a keypoint of the object
            if kind == "polygon":  # with its outline, as LabelMe draws it
                ImageDraw.Draw(drawn).polygon(points, fill=1, outline=1)
            elif kind == "mask":
                with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as patch:
                    drawn.paste(Image.fromarray(np.asarray(patch) > 0), (round(left), round(top)))
            elif kind != "rectangle":
                raise DatasetError(f"{name} has a shape {kind!r}; polygon, rectangle and mask are read")
            mask = None if kind == "rectangle" else np.array(drawn)
            owner = ("shape", number) if group is None else group
            yield owner, str(shape["label"]), mask, [left, top, right - left, bottom - top]

    return str(document["imagePath"]), size, regions()


def _task(task: Any, name: str) -> tuple[str, tuple[int, int], RegionRows]:
    done = [each for each in task.get("annotations") or () if not each.get("was_cancelled")] or task.get("predictions")
    if len(done or ()) > 1:
        raise DatasetError(f"{name} has {len(done)} annotations; expected one")
    marks = [mark for each in done or () for mark in each["result"]]
    size = next(((int(each["original_height"]), int(each["original_width"])) for each in marks), (0, 0))
    percent = np.array([*size[::-1], *size[::-1]]) / 100

    def regions() -> RegionRows:
        for mark in marks:
            kind, value, mask, box = mark["type"], mark["value"], None, [0.0] * 4
            if kind == "keypointlabels" and mark.get("parentID"):
                continue  # a keypoint of the object
            if kind == "polygonlabels":
                ring = (np.array(value["points"]) * percent[:2]).ravel().tolist()
                mask = EncodedMask(json.dumps([ring]).encode(), *size).bitmap
            elif kind == "brushlabels":
                mask = read_brush(value["rle"], *size)
            elif kind == "rectanglelabels" and not value.get("rotation"):
                box = (percent * [value[key] for key in ("x", "y", "width", "height")]).tolist()
            else:
                kind = "rotated " * bool(value.get("rotation")) + kind
                raise DatasetError(f"{name} has {kind}; brushlabels, polygonlabels and rectanglelabels are read")
            (label,) = value[kind]
            yield re.sub(r"-part-\d+$", "", str(mark["id"])), str(label), mask, box

    url = str(task["data"].get("image") or next(iter(task["data"].values())))
    return unquote(re.split(r"[?&]d=", url)[-1].partition("?")[0]), size, regions()
