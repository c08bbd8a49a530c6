"""Samples as the capture service writes them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fakes.control import LocalHarness
from segserve import Client
from segserve_builder.capture.rule import CaptureReason
from segserve_builder.capture.store import ManifestRow, SampleStore, StoredSample, sample_key
from segserve_builder.sources.access import LOCAL

IMAGE, DOCUMENT = b"pixels", b'{"images": [], "categories": [], "annotations": []}'


def sample(request_id: str, at_s: float, **fields: Any) -> StoredSample:
    key = sample_key(at_s, request_id)
    row = ManifestRow(
        key=key,
        model="coins",
        revision="coins-1",
        request_id=request_id if request_id.isprintable() else "",
        captured_at_s=at_s,
        reasons=(CaptureReason.SHARE,),
        image=f"images/{key}.jpg",
        image_sha256=hashlib.sha256(IMAGE).hexdigest(),
        annotations=f"annotations/{key}.json",
        annotations_sha256=hashlib.sha256(DOCUMENT).hexdigest(),
        size=(4, 4),
        **fields,
    )
    return StoredSample(row, IMAGE, DOCUMENT)


def pictured(request_id: str, at_s: float, classes: Mapping[str, int], *reasons: CaptureReason) -> StoredSample:
    """Return a sample with an image that can be shown, and so many annotations of each class."""
    written = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 120, 40)).save(written, "PNG")
    counts = list(enumerate(classes.items(), 1))
    categories = [{"id": number, "name": name} for number, (name, _) in counts]
    annotations = [{"category_id": number} for number, (_, count) in counts for _ in range(count)]
    document = json.dumps({"images": [], "categories": categories, "annotations": annotations}).encode()
    made = sample(request_id, at_s)
    row = made.row.model_copy(
        update={
            "image": made.row.image.replace(".jpg", ".png"),
            "image_sha256": hashlib.sha256(written.getvalue()).hexdigest(),
            "annotations_sha256": hashlib.sha256(document).hexdigest(),
            "reasons": reasons,
            "size": (30, 40),
        }
    )
    return StoredSample(row, written.getvalue(), document)


def keep_samples(harness: LocalHarness, model: Mapping[str, Any], folder: Path) -> None:
    """Apply the model coins, which keeps samples in a folder, and three samples of it."""
    manifest = {**model, "spec": {**model["spec"], "capture": {"sink": folder.as_uri()}}}
    with Client(platform=harness.place()) as client:
        client.models.apply(manifest)
    store = SampleStore(folder.as_uri(), LOCAL)
    uncertain, empty, share = CaptureReason.UNCERTAIN, CaptureReason.EMPTY, CaptureReason.SHARE
    for each in (
        pictured("first", 1_763_800_001, {"coin": 3}, uncertain, share),
        pictured("second", 1_763_800_002, {}, empty),
        pictured("third", 1_763_800_003, {"coin": 1, "ring": 2}, share),
    ):
        store.write(each)
