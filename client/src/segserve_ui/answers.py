"""Answers of models as the page draws them: masks as run lengths, colours, and what is kept for downloads."""

from __future__ import annotations

import csv
import io
import json
import pickle
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

from segserve.exports.coco import merge
from segserve.rendering.display import printable
from segserve.results.annotation import Annotation
from segserve.results.masks import EncodedMask, masks_of_labels
from segserve.results.objects import DetectionResult, InstanceResult, KeypointResult
from segserve.results.result import PanopticResult, Result, SemanticResult
from segserve.results.values import class_colour
from segserve_common.drawing.overlays import is_background
from segserve_common.drawing.palette import Colour, palette
from segserve_common.errors import BadRequestError, ControlError

Json = dict[str, Any]
KEPT: Final = 8
"""Answers that can still be downloaded, of all pages together."""
IMAGES: Final = 200
"""Images of one batch."""
BATCHES: Final = 2
"""Batches of images whose answers can still be downloaded, of all pages together."""
BATCH_BYTES: Final = 256 * 2**20
"""Most bytes of the answers of a batch, as they are kept."""
KINDS: Final[Mapping[type[Any], str]] = {
    SemanticResult: "semantic",
    InstanceResult: "instance",
    DetectionResult: "detection",
    PanopticResult: "panoptic",
    KeypointResult: "keypoints",
}


def describe_answer(result: Result) -> Json:
    """Return a result as the page reads it.

    `objects` are objects, segments or classes, the topmost first; their `mask` is the `counts` of a COCO run-length
    encoding, columns first, or None. With `overlaps` a pixel may belong to several of them.
    """
    height, width = result.size
    strange = result.out_of_distribution
    return {
        "kind": KINDS[type(result)],
        "model": result.model,
        "revision": result.revision,
        "requestId": result.request_id,
        "width": width,
        "height": height,
        "classes": [
            {"id": known.id, "name": printable(known.name), "colour": _hex(class_colour(known)),
             "background": is_background(known.name)}
            for known in result.classes
        ],
        "objects": [_object(each, result) for each in _annotations(result)],
        "overlaps": not isinstance(result, PanopticResult) and getattr(result, "encoded", None) is None,
        "atLimit": result.at_limit,
        "strange": None if strange is None else {"score": strange.score, "threshold": strange.threshold,
                                                 "flagged": strange.flagged},
    }  # fmt: skip


def _annotations(result: Result) -> Iterator[Annotation]:
    if not isinstance(result, SemanticResult) or result.encoded is None:
        yield from result.annotations()
        return
    # One pass over the label map for all classes, instead of one for each.
    masks = masks_of_labels(result.labels)
    for known in result.classes:
        if result.areas.get(known.name):
            mask = masks.get(known.id)
            if mask is None and not is_background(known.name):
                mask = EncodedMask.of(result.mask(known.id))
            score = None if result.confidence is None else result.confidence[known.name]
            yield Annotation(known.id, known.id, known.name, score, None, mask)


def _object(found: Annotation, result: Result) -> Json:
    semantic = isinstance(result, SemanticResult)
    by_class = {known.id: class_colour(known) for known in result.classes}
    own = by_class.get(found.class_id, palette(found.class_id))
    stuff = isinstance(result, PanopticResult) and not any(
        segment.is_thing for segment in result if segment.id == found.number
    )
    area = float(result.areas[found.class_name]) if semantic else found.area
    return {
        "number": found.number,
        "classId": found.class_id,
        "class": printable(found.class_name),
        "score": None if found.score is None else round(float(found.score), 4),
        "box": None if semantic else [round(float(side), 2) for side in found.box],
        "area": round(area, 1),
        "colour": _hex(own if semantic or stuff else palette(found.number - 1)),
        "mask": None if found.mask is None else found.mask.rle["counts"].decode(),
        "points": None if found.points is None else found.points.round(2).tolist(),
    }


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def without(result: Result, min_score: float, hidden: Collection[int]) -> Result:
    """Return a result without objects below a score or of hidden classes; a label map stays whole."""

    def shown(found: Any) -> bool:
        return bool(found.score >= min_score) and found.class_id not in hidden

    if isinstance(result, InstanceResult):
        return replace(result, instances=tuple(filter(shown, result.instances)))
    if isinstance(result, PanopticResult):
        return replace(result, segments=tuple(filter(shown, result.segments)))
    if isinstance(result, DetectionResult):
        return replace(result, detections=tuple(filter(shown, result.detections)))
    if isinstance(result, KeypointResult):
        return replace(result, detections=tuple(filter(shown, result.detections)))
    return result


@dataclass(slots=True)
class KeptAnswers:
    """The last answers, only in memory, by a random id."""

    _results: OrderedDict[str, Result] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def keep(self, result: Result) -> str:
        """Keep an answer, forget the oldest beyond `KEPT`, and return its id."""
        name = secrets.token_urlsafe(9)
        with self._lock:
            self._results[name] = result
            while len(self._results) > KEPT:
                self._results.popitem(last=False)
        return name

    def get(self, name: str) -> Result:
        """Return an answer; raises `GoneAnswerError` if it was forgotten."""
        with self._lock:
            found = self._results.get(name)
            if found is not None:
                self._results.move_to_end(name)
        if found is None:
            raise GoneAnswerError(f"this answer is no longer kept (only the last {KEPT} are): segment the image again")
        return found


@dataclass(slots=True)
class KeptBatches:
    """The answers to the images of the last batches, only in memory: packed, and unpacked one at a time."""

    _batches: OrderedDict[str, dict[int, tuple[str, bytes]]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def keep(self, batch: str, number: int, name: str, result: Result) -> None:
        """Keep the answer to an image; raises `BadRequestError` beyond the limits of a batch."""
        packed = zlib.compress(pickle.dumps(replace(result)), 1)  # without what was decoded of it
        with self._lock:
            images = self._batches.setdefault(batch, {})
            while len(self._batches) > BATCHES:
                self._batches.popitem(last=False)
            size = sum(len(each) for _, each in images.values()) + len(packed)
            if not 0 <= number < IMAGES or size > BATCH_BYTES:
                raise BadRequestError(
                    f"a batch has at most {IMAGES} images, with answers of at most {BATCH_BYTES // 2**20} MiB; "
                    "`segserve predict MODEL folder/` segments any number"
                )
            images[number] = name, packed

    def result(self, batch: str, number: int) -> Result:
        """Return the answer to an image; raises `GoneAnswerError` if it was forgotten."""
        with self._lock:
            found = self._batches.get(batch, {}).get(number)
        if found is None:
            raise GoneAnswerError("this answer is no longer kept: segment the images again")
        result: Result = pickle.loads(zlib.decompress(found[1]))
        return result

    def export(self, batch: str, kind: str) -> tuple[bytes, str]:
        """Return all answers of a batch as `coco` or `csv`, and the name of the file; raises as `result`."""
        with self._lock:
            images = sorted((number, name) for number, (name, _) in self._batches.get(batch, {}).items())
        if kind not in ("coco", "csv"):
            raise BadRequestError(f"unknown format {kind!r}; of several images there are: coco, csv")
        if not images:
            raise GoneAnswerError("these answers are no longer kept: segment the images again")
        documents, rows = [], list[Json]()
        for number, name in images:
            result = self.result(batch, number)
            if kind == "coco":
                documents.append(result.to_coco(image_id=number + 1, file_name=name))
                continue
            own = {"image_id": number + 1, "file_name": name, "height": result.size[0], "width": result.size[1]}
            rows += [own | row for row in result.to_rows() or [{}]]
        if kind == "coco":
            return json.dumps(merge(documents), allow_nan=False).encode(), f"{result.model}-coco.json"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode(), f"{result.model}.csv"


class GoneAnswerError(ControlError):
    """An answer that the page was given, and that is no longer kept."""
