"""Makes a sample of a request and its answers: whether it is worth keeping, redaction, and its files. Pure.

Images are decoded and encoded anew, so that only the pixels of a caller's file are kept: neither EXIF nor comments,
thumbnails, colour profiles or bytes behind its end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve_builder.capture.rule import CapturedClass, CaptureReason, CaptureRule, RedactionRule
from segserve_builder.capture.store import ManifestRow, StoredSample, sample_key
from segserve_builder.errors import BadImageError, GoldenError
from segserve_builder.golden.judging import with_columns
from segserve_builder.imaging.decoding import decode_image
from segserve_builder.scoring.agreement import Answer, agreement
from segserve_common.errors import ProtocolError
from segserve_common.kserve import BYTES, Tensor
from segserve_common.mask_encodings import read_labels, run_length_counts
from segserve_common.rle import run_lengths

NEAR_THRESHOLD: Final = 0.1
"""An answer is uncertain if the score of an object is so near to the threshold."""
LEAST_CONFIDENCE: Final = 0.75
"""A map is uncertain if the mean confidence of its pixels is lower."""
LEAST_AGREEMENT: Final = 0.9
"""Two answers disagree if they agree less (`scoring.agreement`)."""
REDACTION_MARGIN_PX: Final = 8
"""Redacted regions are enlarged by so many pixels: an outline may reveal what it is of."""
_JPEG_QUALITY: Final = 95
_LOSSY: Final = (b"\xff\xd8\xff", b"RIFF")
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MALFORMED: Final = (ProtocolError, GoldenError, ValueError, TypeError, LookupError)


class UnredactedError(Exception):
    """It is unknown which pixels are to be redacted, so nothing may be kept."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answers. `request_id` is as its caller sent it.

    `answer` is stable's, None if it failed; `other` is another revision's answer, and `redactor` the answer of the
    model that says what is to be redacted; both are None if no request was sent or no answer came.
    """

    request_id: str
    captured_at_s: float
    model: str
    slice: str
    parameters: Mapping[str, Any]
    image: Tensor
    answer: Answer | None
    other: Answer | None = None
    redactor: Answer | None = None


@dataclass(frozen=True, slots=True)
class _Regions:
    """The regions of an answer: of each its class, and its mask as RLE counts or its box x1 y1 x2 y2."""

    size: tuple[int, int]
    classes: list[int]
    masks: list[bytes] | None
    boxes: list[list[float]] | None
    scores: list[float] | None


def make_sample(exchange: Exchange, rule: CaptureRule) -> StoredSample | None:
    """Return the sample of an exchange, None if the rule has no reason to keep it.

    Raises `UnredactedError` where it must not be kept, and `BadImageError` or `ProtocolError` for what cannot be read.
    """
    answer = exchange.answer
    regions = None if answer is None else _read(answer)
    if exchange.answer is None or exchange.other is None:
        disagreement = None
    else:
        found = agreement(exchange.answer, exchange.other)
        disagreement = None if found is None else 1.0 - found.value
    uncertainty = None if answer is None else uncertainty_of(answer, rule.threshold)
    reasons: tuple[CaptureReason, ...]
    if not rule.when:
        reasons = (CaptureReason.SHARE,) if answer is not None else ()
    else:
        is_map = answer is not None and "AREAS" in answer
        limit = 1 - LEAST_CONFIDENCE if is_map else _near(rule.threshold)
        met = {
            CaptureReason.UNCERTAIN: uncertainty is not None and uncertainty >= limit,
            CaptureReason.DISAGREE: disagreement is not None and disagreement > 1 - LEAST_AGREEMENT,
            CaptureReason.ERROR: answer is None,
            CaptureReason.DRIFT: answer is not None,
            # As in the count of empty answers: a map of one class shows nothing apart from the rest.
            CaptureReason.EMPTY: regions is not None and len(set(regions.classes)) < (2 if is_map else 1),
        }
        reasons = tuple(reason for reason in rule.when if met.get(reason))
    if not reasons:
        return None
    pixels = read_pixels(exchange.image, rule)
    if rule.redact is not None:
        own = regions if not rule.redact.model else None if exchange.redactor is None else _read(exchange.redactor)
        if own is None or own.size != pixels.shape[:2]:
            raise UnredactedError
        pixels = redact(pixels, own, rule.redact)
    image, suffix = _encoded(exchange.image, pixels)
    key = sample_key(exchange.captured_at_s, exchange.request_id)
    name = f"{key}.{suffix}"
    document = None if regions is None else coco_document(regions, rule.classes, name)
    row = ManifestRow(
        key=key,
        model=exchange.model,
        revision=rule.revision,
        # Another id may identify a person; its digest in the key finds the sample.
        request_id=exchange.request_id if _PLAIN_ID.fullmatch(exchange.request_id) else "",
        captured_at_s=exchange.captured_at_s,
        reasons=reasons,
        image=f"images/{name}",
        image_sha256=hashlib.sha256(image).hexdigest(),
        annotations=None if document is None else f"annotations/{key}.json",
        annotations_sha256=None if document is None else hashlib.sha256(document).hexdigest(),
        size=(pixels.shape[0], pixels.shape[1]),
        slice=exchange.slice,
        parameters=dict(exchange.parameters),
        redacted=() if rule.redact is None else (rule.redact.method,),
        uncertainty=uncertainty,
        disagreement=disagreement,
    )
    return StoredSample(row, image, document)


def uncertainty_of(answer: Answer, threshold: float | None) -> float | None:
    """Return how uncertain an answer is, 0 to 1; None if it shows neither scores nor confidence.

    Least margin of the objects' scores to the threshold, or 1 less the mean confidence of all pixels: uncertainty
    sampling by margin and by least confidence (Settles, Active Learning Literature Survey, 2009).
    """
    answer = with_columns("the answer", answer)
    if "SCORES" in answer:
        scores = answer["SCORES"].astype(np.float64).ravel()
        scores = scores[np.isfinite(scores)]
        if threshold is None:
            return None
        return float(1.0 - np.abs(scores - threshold).min() / max(threshold, 1 - threshold)) if len(scores) else 0.0
    if "CONFIDENCE" in answer and "AREAS" in answer and answer["CONFIDENCE"].size:
        areas = answer["AREAS"].astype(np.float64).ravel()
        return float(np.clip(1.0 - np.average(answer["CONFIDENCE"].ravel(), weights=areas), 0.0, 1.0))
    return None


def _near(threshold: float | None) -> float:
    return 2.0 if threshold is None else 1.0 - NEAR_THRESHOLD / max(threshold, 1 - threshold)


def _read(answer: Answer) -> _Regions:
    answer = with_columns("the answer", answer)
    height, width = (int(number) for number in answer["SIZE"].ravel())
    classes = [int(number) for number in answer["CLASSES"].ravel()]
    scores = answer["SCORES"] if "SCORES" in answer else answer.get("CONFIDENCE")
    masks = None
    if "LABELS" in answer and answer["LABELS"].size:
        labels = read_labels(_bytes(answer["LABELS"].ravel()[0]), height, width)
        ids = classes if "SEGMENTS" not in answer else _segment_ids(answer)
        masks = [_encode_mask(labels == number) for number in ids]
    elif "MASKS" in answer and len(answer["MASKS"]) == len(classes):
        masks = [run_length_counts(_bytes(mask), height, width) for mask in answer["MASKS"]]
    boxes = answer["BOXES"].reshape(-1, 4).tolist() if "BOXES" in answer else None
    shown = None if scores is None or scores.size != len(classes) else [float(score) for score in scores.ravel()]
    return _Regions((height, width), classes, masks, boxes, shown)


def _segment_ids(answer: Answer) -> list[int]:
    return [int(row["id"]) for row in json.loads(_bytes(answer["SEGMENTS"].item()))]


def _encode_mask(bitmap: NDArray[np.bool_]) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]
    return counts


def _bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def read_pixels(image: Tensor, rule: CaptureRule) -> NDArray[Any]:
    """Return the pixels (H, W, C) of IMAGE or PIXELS; raises `BadImageError` or `ProtocolError`."""
    if image.datatype == BYTES:
        (data,) = image.to_items()
        return decode_image(
            data,
            colour=rule.colour,
            dtype=rule.dtype,
            max_pixels=rule.max_pixels,
            orientation=rule.orientation,
            window=rule.window,
        )
    pixels = image.to_array()
    pixels = pixels[0] if pixels.ndim == 4 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise BadImageError(f"PIXELS has shape {pixels.shape}; expected (H, W, 1 or 3)")
    return pixels


def redact(pixels: NDArray[Any], regions: _Regions, rule: RedactionRule) -> NDArray[Any]:
    """Return the pixels; where they show the rule's classes they are unrecognisable; the input stays as it is.

    Raises `UnredactedError` if the regions have neither masks nor boxes.
    """
    height, width = regions.size
    hidden = np.zeros((height, width), np.uint8)
    chosen = [index for index, number in enumerate(regions.classes) if number in rule.ids]
    for index in chosen:
        if regions.masks is not None:
            # pycocotools' own decoding warns on numpy 2.
            runs = run_lengths(regions.masks[index], height, width)
            hidden |= np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(width, height).T
        elif regions.boxes is not None:
            x1, y1, x2, y2 = regions.boxes[index]
            hidden[max(int(y1), 0) : int(np.ceil(y2)), max(int(x1), 0) : int(np.ceil(x2))] = 1
        else:
            raise UnredactedError
    if not hidden.any():
        return pixels
    side = 2 * REDACTION_MARGIN_PX + 1
    hidden = cv2.dilate(hidden, np.ones((side, side), np.uint8))
    redacted = pixels.copy()
    if rule.method == "fill":
        redacted[hidden > 0] = 0
        return redacted
    # Pixels that are left of a region as large as itself reveal little of it: the image in blocks, which are then
    # smoothed.
    block = max(16, max(height, width) // 24)
    small = cv2.resize(pixels, (max(width // block, 1), max(height // block, 1)), interpolation=cv2.INTER_AREA)
    blurred = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).reshape(pixels.shape)
    redacted[hidden > 0] = blurred[hidden > 0]
    return redacted


def _encoded(image: Tensor, pixels: NDArray[Any]) -> tuple[bytes, str]:
    """Return an image's file and suffix: lossy where the caller's was."""
    is_lossy = image.datatype == BYTES and image.to_items()[0].startswith(_LOSSY) and pixels.dtype == np.uint8
    suffix = "jpg" if is_lossy else "png"
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if is_lossy else []
    turned = pixels if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., ::-1])
    done, data = cv2.imencode(f".{suffix}", turned, options)
    if not done:
        raise BadImageError("the image cannot be encoded")
    return data.tobytes(), suffix


def coco_document(regions: _Regions, classes: Sequence[CapturedClass], file_name: str) -> bytes:
    """Return the answer as a COCO data set of one image."""
    height, width = regions.size
    annotations = []
    for index, number in enumerate(regions.classes):
        entry: dict[str, Any] = {"id": index + 1, "image_id": 1, "category_id": number, "iscrowd": 0}
        if regions.masks is not None:
            counts = regions.masks[index]
            rle = {"size": [height, width], "counts": counts}
            entry["segmentation"] = {**rle, "counts": counts.decode("ascii")}
            entry |= {"bbox": coco.toBbox(rle).tolist(), "area": float(coco.area(rle))}
        if regions.boxes is not None:
            x1, y1, x2, y2 = regions.boxes[index]
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": entry.get("area", (x2 - x1) * (y2 - y1))}
        if regions.scores is not None:
            entry["score"] = regions.scores[index]
        annotations.append(entry)
    names = {item.id: item.name for item in classes} | {
        number: str(number) for number in set(regions.classes) - {item.id for item in classes}
    }
    document = {
        "images": [{"id": 1, "width": width, "height": height, "file_name": file_name}],
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
        "annotations": annotations,
    }
    return json.dumps(document, allow_nan=False).encode()
