"""Reads answers of CVAT's functions with CVAT's own SDK. Runs in `.venv-annotators`: `python cvat_shapes.py FOLDER`.

FOLDER has function.json, shapes.json, and size.json with the image's height and width. As CVAT's server does, each item
becomes a shape of the SDK's schema; masks bool (N, H, W) and labels are written to shapes.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from cvat_sdk import models
from cvat_sdk.auto_annotation import DetectionFunctionSpec, label_spec
from cvat_sdk.masks import decode_mask, encode_mask


def main(folder: Path) -> None:
    function, items, (height, width) = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("function", "shapes", "size")
    )
    labels = json.loads(function["metadata"]["annotations"]["spec"])
    spec = DetectionFunctionSpec(labels=[label_spec(each["name"], each["id"], type=each["type"]) for each in labels])
    ids = {label.name: label.id for label in spec.labels}
    masks = []
    for item in items:
        assert 0 <= float(item["confidence"]) <= 1, item["confidence"]
        *pixels, left, top, right, bottom = item["mask"]
        own = np.zeros((height, width), bool)
        own[top : bottom + 1, left : right + 1] = np.reshape(pixels, (bottom - top + 1, right - left + 1))
        points = encode_mask(own, (left, top, right + 1, bottom + 1))
        common = {"label_id": ids[item["label"]], "frame": 0}
        shape = models.LabeledShapeRequest(
            type=models.ShapeType(item["type"]), points=list(map(float, points)), **common
        )
        models.LabeledShapeRequest(type=models.ShapeType("polygon"), points=list(map(float, item["points"])), **common)
        assert len(item["points"]) >= 6, item["points"]
        masks.append(decode_mask(shape.points, image_width=width, image_height=height))
    np.savez(folder / "shapes.npz", masks=masks, labels=[item["label"] for item in items])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
