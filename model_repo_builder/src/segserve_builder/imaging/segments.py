"""The table of a panoptic answer's segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve_builder.spec.names import canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segserve_builder.values import Segment


def segments_json(ids: NDArray[Any], segments: Sequence[Segment]) -> bytes:
    """Return the segments as a JSON list of objects with id, class, isThing, score, area and box.

    `ids` is uint8 or uint16 shaped (H, W). `area` is in pixels; `box` is x1, y1, x2, y2 in pixels, after the last one.
    """
    import cv2
    import numpy as np

    areas = np.bincount(ids.ravel(), minlength=max((segment.id for segment in segments), default=0) + 1)
    rows = []
    for segment in segments:
        x, y, width, height = cv2.boundingRect((ids == segment.id).view(np.uint8))
        rows.append(
            {
                "id": segment.id,
                "class": segment.class_id,
                "isThing": segment.is_thing,
                "score": round(segment.score, 6),
                "area": int(areas[segment.id]),
                "box": [x, y, x + width, y + height],
            }
        )
    return canonical_json(rows).encode()
