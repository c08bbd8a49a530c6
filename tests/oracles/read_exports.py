"""Reads exported files with the tools that they are for. Runs in `.venv-peers`: `python read_exports.py FOLDER`.

FOLDER has a folder for each result with the image and the exports beside it. What each tool understood is written to
`<export>.npz` beside the export: masks bool (N, H, W), labels, scores, and boxes or points where there are any.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import numpy as np
from PIL import Image


def main(folder: Path) -> None:
    readers = {
        "labelme-mask.json": labelme,
        "labelme-polygon.json": labelme,
        "label-studio-mask.json": label_studio,
        "label-studio-polygon.json": label_studio,
        "cvat-mask.xml": cvat,
        "cvat-polygon.xml": cvat,
        "cvat-merged.xml": cvat,
        "panoptic.json": panoptic,
    }
    for path in sorted(folder.glob("*/*")):
        if path.name in readers:
            found = readers[path.name](path)
            np.savez(path.with_suffix(".npz"), **{key: np.array(value) for key, value in found.items()})


def labelme(path: Path) -> dict[str, Any]:
    """Read with labelme's own loader and rasteriser; only the parts of it that draw windows are left out."""
    names = (
        "PyQt5",
        "PyQt5.QtCore",
        "PyQt5.QtGui",
        "PyQt5.QtWidgets",
        "onnxruntime",
        "osam",
        "skimage",
        "skimage.draw",
    )
    missing = {name: mock.MagicMock() for name in names}
    with mock.patch.dict(sys.modules, missing):
        from labelme._label_file import LabelFile, logger
        from labelme.utils.shape import shape_to_mask
    logger.remove()
    file = LabelFile(str(path))
    with Image.open(path.parent / file.image_path) as image:
        size = (image.height, image.width)
    masks: dict[int, np.ndarray] = {}
    labels, scores, points = {}, {}, []
    for shape in file.shapes:
        group = shape["group_id"]
        labels.setdefault(group, shape["label"])
        scores.setdefault(group, shape["other_data"]["score"])
        mask = masks.setdefault(group, np.zeros(size, bool))
        if shape["shape_type"] == "mask":
            (x1, y1), (x2, y2) = np.array(shape["points"], int)
            mask[y1 : y2 + 1, x1 : x2 + 1] |= shape["mask"]
        elif shape["shape_type"] == "point":
            points.append(shape["points"][0])
        else:
            mask |= shape_to_mask(size, shape["points"], shape["shape_type"])
    return {
        "numbers": list(masks),
        "masks": list(masks.values()),
        "labels": list(labels.values()),
        "scores": [np.nan if score is None else score for score in scores.values()],
        "points": points,
        "image": np.asarray(Image.open(io.BytesIO(file.image_data))),
    }


def label_studio(path: Path) -> dict[str, Any]:
    """Check with the SDK's own rules for the project's configuration, and decode brushes as its converter does."""
    from label_studio_sdk.label_interface import LabelInterface
    from pycocotools import mask as coco

    decode_rle = brush().decode_rle
    task = json.loads(path.read_text())
    (prediction,) = task["predictions"]
    interface = LabelInterface((path.parent / "label-studio.xml").read_text())
    errors = interface.validate_prediction(prediction, return_errors=True)
    found: dict[str, Any] = {"errors": errors, "numbers": [], "masks": [], "labels": [], "scores": [], "points": []}
    for region in prediction["result"]:
        height, width = region["original_height"], region["original_width"]
        value, kind = region["value"], region["type"]
        if kind == "keypointlabels":
            found["points"].append([value["x"] * width / 100, value["y"] * height / 100])
            continue
        found["numbers"].append(int(region["id"].split("-")[1]))
        found["labels"] += value[kind]
        found["scores"].append(region.get("score", np.nan))
        if kind == "brushlabels":
            found["masks"].append(decode_rle(value["rle"]).reshape(height, width, 4)[:, :, 3] > 0)
        elif kind == "polygonlabels":
            ring = (np.array(value["points"]) * (width, height) / 100).ravel().tolist()
            found["masks"].append(coco.decode(coco.frPyObjects([ring], height, width))[:, :, 0] > 0)
        else:
            left, top = value["x"] * width / 100, value["y"] * height / 100
            found.setdefault("boxes", []).append(
                [left, top, left + value["width"] * width / 100, top + value["height"] * height / 100]
            )
    return found


@cache
def brush() -> Any:
    """Return the converter's module by its file: the package around it imports all of NLTK and scikit-learn."""
    import label_studio_sdk

    path = Path(label_studio_sdk.__file__).parent / "converter/brush.py"
    spec = importlib.util.spec_from_file_location("brush", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cvat(path: Path) -> dict[str, Any]:
    """Read with datumaro, and masks with CVAT's own SDK as well."""
    from cvat_sdk.masks import decode_mask
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    root = ElementTree.parse(path).getroot()
    folder = path.parent / path.stem
    (folder / "images").mkdir(parents=True, exist_ok=True)
    image, *others = root.findall("image")
    for one in (image, *others):
        (folder / "images" / one.attrib["name"]).write_bytes((path.parent / "photo.png").read_bytes())
    (folder / "annotations.xml").write_text(path.read_text())
    data = Dataset.import_from(str(folder), "cvat")
    names = [label.name for label in data.categories()[AnnotationType.label]]
    found: dict[str, Any] = {"numbers": [], "masks": [], "labels": [], "scores": [], "points": [], "boxes": []}
    found["images"] = sorted(item.id for item in data)
    for one in (one for item in data for one in item.annotations):
        if one.type == AnnotationType.points:
            found["points"] += np.array(one.points).reshape(-1, 2).tolist()
            continue
        found["numbers"].append(one.group)
        found["labels"].append(names[one.label])
        found["scores"].append(float(one.attributes.get("score", np.nan)))
        if one.type == AnnotationType.bbox:
            found["boxes"].append([one.x, one.y, one.x + one.w, one.y + one.h])
        else:
            found["masks"].append(raster(one, int(image.attrib["height"]), int(image.attrib["width"])))
    height, width = int(image.attrib["height"]), int(image.attrib["width"])
    own = []
    for one in image.findall("mask"):
        left, top, across, down = (int(one.attrib[key]) for key in ("left", "top", "width", "height"))
        points = [*map(int, one.attrib["rle"].split(",")), left, top, left + across - 1, top + down - 1]
        own.append(decode_mask(points, image_width=width, image_height=height))
    found["sdk_masks"] = own
    return found


def raster(one: Any, height: int, width: int) -> np.ndarray:
    from datumaro.util.mask_tools import rles_to_mask

    if hasattr(one, "image"):
        return np.asarray(one.image, bool)
    return np.asarray(rles_to_mask([one.points], width, height), bool)


def panoptic(path: Path) -> dict[str, Any]:
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    folder = path.parent / "coco"
    (folder / "annotations" / "panoptic_all").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "all").mkdir(parents=True, exist_ok=True)
    document = json.loads(path.read_text())
    name = document["images"][0]["file_name"]
    (folder / "images" / "all" / name).write_bytes((path.parent / name).read_bytes())
    (folder / "annotations" / "panoptic_all.json").write_text(path.read_text())
    png = document["annotations"][0]["file_name"]
    (folder / "annotations" / "panoptic_all" / png).write_bytes(path.with_suffix(".png").read_bytes())
    data = Dataset.import_from(str(folder), "coco_panoptic")
    (item,) = list(data)
    names = [label.name for label in data.categories()[AnnotationType.label]]
    masks = [one for one in item.annotations if one.type == AnnotationType.mask]
    return {
        "numbers": [one.id for one in masks],
        "masks": [np.asarray(one.image, bool) for one in masks],
        "labels": [names[one.label] for one in masks],
        "areas": [one.get_area() for one in masks],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
