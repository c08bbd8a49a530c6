"""Samples as the capture service writes them."""

from __future__ import annotations

import hashlib
from typing import Any

from segserve_builder.capture.rule import CaptureReason
from segserve_builder.capture.store import ManifestRow, StoredSample, sample_key

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
