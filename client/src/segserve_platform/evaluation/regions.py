"""Labels and answers of one image as regions of the model's classes, which the scores compare."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve.errors import DatasetError
from segserve.exports.coco import image_entry
from segserve.exports.samples import SampleResult
from segserve.results.annotation import AnnotatedResult
from segserve.results.masks import EncodedMask, masks_of_labels, text_rle
from segserve.results.values import SegmentClass
from segserve.tiled.grid import Window
from segserve.tiled.sources import DataMask
from segserve_builder.scoring.quality import MATCH, MOST_OBJECTS, Regions, most_of_a_class
from segserve_common.drawing.overlays import is_background
from segserve_common.errors import BadRequestError, ProtocolError
from segserve_common.image_file import ImageFileError, describe_file
from segserve_common.mask_encodings import annotation_counts
from segserve_platform.evaluation.datasets import Dataset, LabelledImage, few

Classes = Mapping[int, SegmentClass]
"""The model's classes by the ids that the data set has for them."""

NOT_LABELLED: Final = 255
"""The value of a label map where nothing is labelled."""
SURE: Final = 0.5
"""The least score of detections that the score of an image counts."""
_MAP_FORMATS: Final = ("PNG", "TIFF")
_GREY: Final = frozenset({"L", "P", "I", "I;16", "I;16B", "1"})


def pixel_labels(dataset: Dataset, image: LabelledImage, classes: Classes) -> Regions:
    """Return a mask of each labelled class.

    Pixels without a label do not count, which in a label map are of 255 or below its first class. In a data set of
    objects each pixel counts except pixels of objects of several classes; where there is no object, it is of the class
    called background, if the model has one.
    """
    if dataset.labels == "objects":
        return _pixels_of_objects(image, classes)
    if dataset.labels == "maps":
        assert image.label_map is not None
        values = read_map(image, image.label_map)
        if (valid := data_of(image)) is not None:
            values = np.where(valid, values, NOT_LABELLED)
        category = {value: value for value in dataset.classes or ()}
        if strange := [
            value
            for value in np.unique(values).tolist()
            if value not in {*range(dataset.labels_from), *category, NOT_LABELLED}
        ]:
            raise DatasetError(f"{unknown_values(image, dataset, strange)}; {NOT_LABELLED} is not labelled")
    else:
        values = _read_ids(image)
        category = {int(each["id"]): int(each["category_id"]) for each in image.annotations}
    masks = {value: mask.rle for value, mask in masks_by_value(values).items() if value in category}
    by_class = defaultdict(list)
    for value, mask in masks.items():
        if category[value] in classes:
            by_class[classes[category[value]].id].append(mask)
    counted = coco.merge(list(masks.values())) if masks else EncodedMask.empty(*image.size).rle
    return Regions(
        image.size,
        tuple(by_class),
        tuple(coco.merge(own)["counts"] for own in by_class.values()),
        counted=None if coco.area(counted) == values.size else counted["counts"],
    )


def segment_labels(image: LabelledImage, classes: Classes) -> tuple[Regions, Regions]:
    """Return the segments of a panoptic data set, and apart from them its crowds; pixels of no segment do not count."""
    values = _read_ids(image)
    masks = masks_by_value(values)
    void = masks.pop(0, None)
    if lacking := masks.keys() - {int(each["id"]) for each in image.annotations}:
        raise DatasetError(f"{image.label_map} has pixels of the segments {sorted(lacking)[:3]}, which are not listed")
    own = [each for each in image.annotations if int(each["category_id"]) in classes and int(each["id"]) in masks]
    counted = None
    if void is not None:
        counted = EncodedMask.of(values != 0).rle["counts"]
    segments, crowds = (
        Regions(
            image.size,
            tuple(classes[int(each["category_id"])].id for each in own if bool(each.get("iscrowd")) is is_crowd),
            tuple(masks[int(each["id"])].rle["counts"] for each in own if bool(each.get("iscrowd")) is is_crowd),
            counted=counted,
        )
        for is_crowd in (False, True)
    )
    return segments, crowds


def object_labels(image: LabelledImage, classes: Classes, *, masks: bool) -> tuple[Regions, Regions]:
    """Return the objects of a COCO data set with masks or boxes, and apart from them its crowds."""
    own = [each for each in image.annotations if int(each["category_id"]) in classes]
    objects, crowds = ([each for each in own if bool(each.get("iscrowd")) is is_crowd] for is_crowd in (False, True))
    return _objects(image, objects, classes, masks=masks), _objects(image, crowds, classes, masks=masks)


def counts_of(annotation: Mapping[str, Any], image: LabelledImage) -> bytes:
    """Return the RLE counts of a COCO annotation's mask; raises `DatasetError` for one that is not of the image."""
    try:
        return annotation_counts(annotation["segmentation"], *image.size)
    except (ProtocolError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{image.name}: an annotation's segmentation cannot be read: {error}") from error


def box_of(annotation: Mapping[str, Any], image: LabelledImage) -> tuple[float, float, float, float]:
    """Return x, y, width and height of a COCO annotation's box, or else of its mask."""
    box = annotation.get("bbox") or coco.toBbox(_rles(image.size, counts_of(annotation, image)))[0].tolist()
    try:
        x, y, width, height = map(float, box)
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{image.name}: an annotation's bbox must be x, y, width and height, got {box!r}") from error
    return x, y, width, height


def unknown_values(image: LabelledImage, dataset: Dataset, values: Sequence[int]) -> str:
    """Return the beginning of an error that names values of a label map, and the classes."""
    classes = [f"{value} {name}" for value, name in (dataset.classes or {}).items()]
    counted = "; if they count from 1: --labels-from 1" if values == [len(classes)] else ""
    return f"{image.label_map} has the values {few(map(str, values))}; classes are {few(classes, 20)}{counted}"


def sure_detections(answer: SampleResult) -> SampleResult:
    """Return an answer without the detections of low scores, of which AP needs many and which people do not use."""
    sure = [each for each in answer.document["annotations"] if each.get("score", 1.0) >= SURE]
    return replace(answer, document={**answer.document, "annotations": sure})


def check_size(result: AnnotatedResult, image: LabelledImage) -> None:
    """Raise `DatasetError` if an answer is of another size than the labels."""
    if result.size != image.size:
        raise DatasetError(
            f"{image.name}: the labels have {image.size[1]} x {image.size[0]} pixels, the answer {result.size[1]} x "
            f"{result.size[0]}: were they made before the image was scaled, or rotated by its EXIF orientation?"
        )


def answer_regions(
    result: AnnotatedResult | None, image: LabelledImage, classes: frozenset[int], *, masks: bool
) -> Regions:
    """Return the regions of an answer that are of these classes; none at all for a missing answer."""
    found = [] if result is None else [each for each in result.annotations() if each.class_id in classes]
    return Regions(
        image.size,
        tuple(each.class_id for each in found),
        tuple(each.mask.rle["counts"] for each in found if each.mask is not None) if masks else None,
        np.array([each.box for each in found], np.float64).reshape(-1, 4),
        np.array([1.0 if each.score is None else each.score for each in found], np.float64),
    )


def without_ignored(answer: Regions, labels: Regions, crowds: Regions) -> Regions:
    """Return an answer without pixels that do not count, and without regions that count neither as right nor as wrong.

    As in COCO's code these are regions of which more than half is in crowds of their class or does not count, unless
    they match a label.
    """
    within = _rles(labels.size, labels.counted)
    kept, masks = [], []
    for index, number in enumerate(answer.classes):
        shape = _shapes(answer, [index])
        own_crowds = [place for place, other in enumerate(crowds.classes) if other == number]
        ignored = (
            float(coco.iou(shape, _shapes(crowds, own_crowds), [1] * len(own_crowds)).sum()) if own_crowds else 0.0
        )
        if within and (area := int(coco.area(shape)[0])):
            shape = [coco.merge([*shape, *within], intersect=True)]
            ignored += 1 - int(coco.area(shape)[0]) / area
        own = [place for place, other in enumerate(labels.classes) if other == number]
        if ignored <= MATCH or (own and coco.iou(shape, _shapes(labels, own), [0] * len(own)).max() > MATCH):
            kept.append(index)
            masks += [each["counts"] for each in shape] if answer.masks is not None else []
    return replace(
        answer,
        classes=tuple(answer.classes[index] for index in kept),
        masks=None if answer.masks is None else tuple(masks),
        boxes=None if answer.boxes is None else answer.boxes[kept],
        scores=None if answer.scores is None else answer.scores[kept],
    )


def document_of(labels: Regions, image: LabelledImage, classes: Sequence[SegmentClass]) -> dict[str, Any]:
    """Return labels as a COCO document of this image, as answers have."""
    height, width = image.size
    annotations: list[dict[str, Any]] = []
    for index, number in enumerate(labels.classes):
        annotation: dict[str, Any] = {"category_id": number}
        if labels.masks is not None:
            annotation["segmentation"] = {"size": [height, width], "counts": labels.masks[index].decode("ascii")}
        x, y, *opposite = labels.boxes[index].tolist() if labels.boxes is not None else (0.0, 0.0, 0.0, 0.0)
        annotations.append(annotation | {"bbox": [x, y, opposite[0] - x, opposite[1] - y]})
    return {
        "images": [image_entry(1, image.size, image.name)],
        "categories": [{"id": one.id, "name": one.name} for one in classes],
        "annotations": annotations,
    }


def _pixels_of_objects(image: LabelledImage, classes: Classes) -> Regions:
    background = next((number for number, one in classes.items() if is_background(one.name)), None)
    by_class = defaultdict(list)
    for each in image.annotations:
        by_class[int(each["category_id"])].append({"size": list(image.size), "counts": counts_of(each, image)})
    masks = {number: EncodedMask(coco.merge(own)["counts"], *image.size).bitmap for number, own in by_class.items()}
    layers = np.zeros(image.size, np.uint16)
    for mask in masks.values():
        layers += mask
    if background is not None and background not in masks:
        masks[background] = layers == 0
    counted = layers <= 1
    if (valid := data_of(image)) is not None:
        counted &= valid
    shown = [number for number in masks if number in classes]
    return Regions(
        image.size,
        tuple(classes[number].id for number in shown),
        tuple(EncodedMask.of(masks[number]).rle["counts"] for number in shown),
        counted=None if counted.all() else EncodedMask.of(counted).rle["counts"],
    )


def _objects(image: LabelledImage, own: Sequence[Mapping[str, Any]], classes: Classes, *, masks: bool) -> Regions:
    boxes = np.array([box_of(each, image) for each in own], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Regions(
        image.size,
        tuple(classes[int(each["category_id"])].id for each in own),
        tuple(counts_of(each, image) for each in own) if masks else None,
        boxes,
    )


def read_map(image: LabelledImage, file: Path) -> NDArray[Any]:
    """Return the values of a map of an image's size, unsigned (H, W), a GeoTIFF's `nodata` as `NOT_LABELLED`.

    Raises `DatasetError` for any other file.
    """
    values = _pixels(image, file, _GREY)
    nodata = describe_file(file).nodata
    return values if nodata is None else np.where(values == nodata, NOT_LABELLED, values)


def objects_of_maps(dataset: Dataset, known: Sequence[SegmentClass], chosen: Sequence[str] | None) -> Dataset:
    """Return label maps without names of classes as objects of the only class of the model, or the only one chosen.

    Values are then numbers of objects, 0 for none. Other data sets, and several classes, are left as they are.
    """
    names = [one.name for one in known if (one.name in chosen if chosen else not is_background(one.name))]
    if dataset.labels != "maps" or dataset.classes is not None or len(names) != 1:
        return dataset
    listed = []
    for image in dataset.images:
        assert image.label_map is not None
        values = _pixels(image, image.label_map, _GREY).astype(np.int64)
        values[values == describe_file(image.label_map).nodata] = 0
        found = [{"category_id": 1, "segmentation": text_rle(mask)} for mask in masks_of_labels(values).values()]
        listed.append(replace(image, annotations=tuple(found), label_map=None))
    counts = [len(image.annotations) for image in listed]
    note = f"values of label maps are read as numbers of objects: {sum(counts)} of {names[0]!r}"
    note += "; no map shows more than one: perhaps they are of classes" * (max(counts) < 2)
    return replace(dataset, labels="objects", images=tuple(listed), classes={1: names[0]}, notes=(*dataset.notes, note))


def detections_beyond_coco(labels: Iterable[Regions], found: Iterable[Regions]) -> list[int]:
    """Return the largest number of detections of a class if an image has more labelled ones than COCO counts."""
    return [max(most_of_a_class(found), MOST_OBJECTS)] * (most_of_a_class(labels) > MOST_OBJECTS)


def limits_of(
    labels: Sequence[tuple[Regions, Regions]],
    answers: Sequence[SampleResult | None],
    max_detections: int | None,
    of_model: int | None = None,
) -> list[str]:
    """Return which limits of COCO's protocol, of the request or else `of_model`, and of its network cut answers."""
    if labels[0][0].boxes is None:
        return []
    found = [[] if answer is None else answer.document["annotations"] for answer in answers]
    counts = [Counter(each["category_id"] for each in own) for own in found]
    beyond = [over for own in counts if (over := sum(max(count - MOST_OBJECTS, 0) for count in own.values()))]
    most, limit = most_of_a_class(own for own, _ in labels), max_detections or of_model
    reached = sum(len(own) >= limit for own in found) if limit else 0
    highest = max(map(len, found))
    full = [len(own.classes) > highest for (own, _), each in zip(labels, found, strict=True) if len(each) == highest]
    # Few objects, or one answer of such a number, are chance, unless it is a usual limit.
    is_likely = any(full) and (highest % 50 == 0 or (sum(full) > 1 and highest >= 10))
    name = "--max-detections" if max_detections else "the model's limit (maxDetections of output or a stage)"
    notes = {
        f"an image has {most} labelled objects of a class: AP counts all detections, AR100 the 100 best": most > 100,
        "AP and AR count the 100 best objects of a class, as COCO's do; "
        f"answers with more: {len(beyond)}, by {sum(beyond)} objects": beyond and most <= 100,
        f"answers that reached {name}, {limit} objects, and were perhaps cut: {reached}": reached,
        f"images with more labelled objects than the {highest} of their answer, the most of any: {sum(full)}; perhaps "
        "a limit of the model cut them (output.maxDetections, or its network's)": not reached and is_likely,
    }
    return [text for text, holds in notes.items() if holds]


def data_of(image: LabelledImage) -> NDArray[np.bool_] | None:
    """Return where an image has data, bool (H, W), None if it has them everywhere; see `tiled.sources.DataMask`."""
    try:
        if not (file := describe_file(image.path)).gaps:
            return None
        with closing(DataMask(image.path, file)) as mask:
            return mask.read(Window(0, 0, *image.size))
    except (OSError, ImageFileError, BadRequestError) as error:
        raise DatasetError(f"image {str(image.path)!r} cannot be read: {error}") from error


def without_gaps(annotations: Sequence[Mapping[str, Any]], image: LabelledImage) -> list[Mapping[str, Any]]:
    """Return COCO's annotations of an image without what lies where it has no data."""
    if (valid := data_of(image)) is None:
        return list(annotations)
    kept: list[Mapping[str, Any]] = []
    for each in annotations:
        if each.get("segmentation"):
            before = EncodedMask(counts_of(each, image), *image.size)
            mask = EncodedMask.of(before.bitmap & valid)
            if mask.area == before.area:
                kept.append(each)
            elif mask.area:
                x1, y1, x2, y2 = map(float, mask.box)
                rle = {"size": list(image.size), "counts": mask.rle["counts"].decode("ascii")}
                kept.append({**each, "segmentation": rle, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": mask.area})
        else:
            x, y, width, height = box_of(each, image)
            rows, columns = (
                slice(max(math.floor(low), 0), math.ceil(low + side)) for low, side in ((y, height), (x, width))
            )
            kept += [each] if valid[rows, columns].any() else []
    return kept


def _read_ids(image: LabelledImage) -> NDArray[Any]:
    """Return the map of segment ids of COCO's panoptic format: red + 256 green + 65536 blue."""
    assert image.label_map is not None
    red, green, blue = np.moveaxis(_pixels(image, image.label_map, frozenset({"RGB"})).astype(np.int64), -1, 0)
    ids: NDArray[Any] = red + (green << 8) + (blue << 16)
    valid = data_of(image)
    return ids if valid is None else np.where(valid, ids, 0)


def _pixels(image: LabelledImage, file: Path, modes: frozenset[str]) -> NDArray[Any]:
    from PIL import Image

    try:
        # Formats that Pillow guesses from the content may start programs.
        with Image.open(file, formats=_MAP_FORMATS) as opened:
            if opened.mode not in modes:
                raise DatasetError(f"{file} has the mode {opened.mode}; expected {', '.join(sorted(modes))}")
            pixels = np.asarray(opened)
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"labels {str(file)!r} cannot be read: {error}") from error
    if pixels.shape[:2] != image.size:
        raise DatasetError(
            f"{file} has {pixels.shape[1]} x {pixels.shape[0]} pixels; its image {image.name} has "
            f"{image.size[1]} x {image.size[0]}"
        )
    return pixels


def masks_by_value(values: NDArray[Any]) -> dict[int, EncodedMask]:
    """Return the mask of each value of a map (H, W), including 0."""
    return {value - 1: mask for value, mask in masks_of_labels(values.astype(np.int64) + 1).items()}


def _rles(size: tuple[int, int], *counts: bytes | None) -> list[dict[str, Any]]:
    return [{"size": list(size), "counts": each} for each in counts if each is not None]


def _shapes(regions: Regions, indices: Sequence[int]) -> Any:
    """Return the regions in the form that pycocotools compares."""
    if regions.masks is not None:
        return _rles(regions.size, *(regions.masks[index] for index in indices))
    assert regions.boxes is not None
    boxes = regions.boxes[list(indices)]
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
