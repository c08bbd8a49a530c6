"""Samples as a COCO data set for labelling tools, and the corrected data set as labels of a golden set. Pure."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pycocotools import mask as coco

from segserve_builder.capture.store import ManifestRow
from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import GoldenLabels
from segserve_common.errors import ProtocolError
from segserve_common.mask_encodings import annotation_counts


def file_name(row: ManifestRow) -> str:
    """Return the name of a sample's image without its folder."""
    return PurePosixPath(row.image).name


def data_set(samples: Iterable[tuple[ManifestRow, Mapping[str, Any] | None]]) -> dict[str, Any]:
    """Return samples with their documents as one COCO data set; answers that failed have no annotations."""
    images, annotations, categories = list[Any](), list[Any](), dict[int, Any]()
    for number, (row, document) in enumerate(samples, 1):
        height, width = row.size
        images.append({"id": number, "width": width, "height": height, "file_name": file_name(row)})
        for each in () if document is None else document["annotations"]:
            annotations.append({**each, "id": len(annotations) + 1, "image_id": number})
        categories |= {each["id"]: each for each in ([] if document is None else document["categories"])}
    ordered = [categories[number] for number in sorted(categories)]
    return {"images": images, "categories": ordered, "annotations": annotations}


@dataclass(frozen=True, slots=True)
class CorrectedImage:
    """The labels of an image that people corrected."""

    file_name: str
    labels: GoldenLabels


def corrected(content: bytes, classes: Mapping[str, int], *, joins: bool) -> list[CorrectedImage]:
    """Read a COCO data set, as CVAT, Label Studio and others export it.

    `classes` are the model's ids by name: tools number categories anew. `joins` makes one mask of each class, as
    semantic models have. Raises `GoldenError` if it is not such a data set, or names an unknown class.
    """
    try:
        document = json.loads(content)
        names = {each["id"]: str(each["name"]) for each in document["categories"]}
        by_image = defaultdict(list)
        for each in document["annotations"]:
            by_image[each["image_id"]].append(each)
        images = [
            CorrectedImage(
                PurePosixPath(str(image["file_name"])).name,
                _labels(by_image[image["id"]], (int(image["height"]), int(image["width"])), names, classes, joins),
            )
            for image in document["images"]
        ]
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, ProtocolError) as error:
        raise GoldenError(f"not a COCO data set with images, categories and annotations: {error!r}") from error
    if repeated := [name for name, count in Counter(each.file_name for each in images).items() if count > 1]:
        raise GoldenError(f"the labels list {', '.join(repeated[:3])} more than once; expected each image once")
    return images


def _labels(
    annotations: list[Any], size: tuple[int, int], names: Mapping[Any, str], classes: Mapping[str, int], joins: bool
) -> GoldenLabels:
    ids, masks, boxes = list[int](), list[bytes](), list[tuple[float, float, float, float]]()
    for each in annotations:
        name = names[each["category_id"]]
        if name not in classes:
            raise GoldenError(f"the labels have a class {name!r}; the model has {', '.join(classes)}")
        ids.append(classes[name])
        if each.get("segmentation"):
            masks.append(annotation_counts(each["segmentation"], *size))
        x, y, width, height = each.get("bbox") or (0.0, 0.0, 0.0, 0.0)
        boxes.append((x, y, x + width, y + height))
    if masks and len(masks) != len(ids):
        raise GoldenError(f"{len(ids) - len(masks)} of {len(ids)} annotations of an image have no segmentation")
    if joins and masks:
        by_class = defaultdict(list)
        for number, mask in zip(ids, masks, strict=True):
            by_class[number].append({"size": list(size), "counts": mask})
        ids = sorted(by_class)
        masks = [coco.merge(by_class[number])["counts"] for number in ids]
    # An image without anything has an empty list of masks, which says so.
    has_boxes = bool(ids) and not masks
    return GoldenLabels(
        size=size,
        classes=tuple(ids),
        masks=None if has_boxes else tuple(mask.decode("ascii") for mask in masks),
        boxes=tuple(boxes) if has_boxes else None,
    )
