"""Results as plain values in the form of the gateway's plain HTTP (docs/how-to/curl.md), and as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segserve.errors import package_of_extra
from segserve.results.base import Segmentation
from segserve.results.masks import EncodedMask
from segserve.results.objects import InstanceResult
from segserve.results.result import PanopticResult, SemanticResult

if TYPE_CHECKING:
    from pandas import DataFrame


def document(result: Segmentation) -> dict[str, Any]:
    """Return the result as values that JSON holds; see `Segmentation.to_dict`."""
    height, width = result.size
    head = {"model": result.model, "revision": result.revision, "request_id": result.request_id}
    unlike, continued = result.out_of_distribution, result.continued
    known = {
        "out_of_distribution": unlike and {"score": unlike.score, "threshold": unlike.threshold},
        "continued": continued,
    }
    of_image = {name: value for name, value in known.items() if value is not None}
    return {**head, "height": height, "width": width, **of_image, **_entries(result)}


def data_frame(result: Segmentation) -> DataFrame:
    """Return the rows of the result; see `Segmentation.to_pandas`."""
    pandas = package_of_extra("pandas", "pandas", "a data frame")
    if rows := result.to_rows():
        return pandas.DataFrame(rows)
    of_masks = {InstanceResult: ["area"], PanopticResult: ["id", "is_thing", "area"]}
    columns = ["index", "class_id", "class", "score", "x1", "y1", "x2", "y2", *of_masks.get(type(result), [])]
    return pandas.DataFrame(columns=columns)


def _entries(result: Segmentation) -> dict[str, Any]:
    if isinstance(result, SemanticResult):
        masks = {one.class_id: one.mask for one in result.annotations()}
        empty = EncodedMask.empty(*result.size)
        classes = []
        for row in result.to_rows():
            values = {"class_id": row["class_id"], "class": row["class"], "area": row["area"]}
            confidence = {"confidence": row["score"]} if "score" in row else {}
            classes.append(values | confidence | {"mask": _rle(masks.get(row["class_id"]) or empty)})
        return {"classes": classes}
    objects = []
    for one in result.annotations():
        entry = {"class_id": one.class_id, "class": one.class_name, "score": one.score, "box": list(one.box)}
        if one.mask is not None:
            entry["mask"] = _rle(one.mask)
        if one.points is not None:
            entry["keypoints"] = one.points.tolist()
        objects.append(entry)
    if not isinstance(result, PanopticResult):
        return {"objects": objects}
    own = ({"id": segment.id, "is_thing": segment.is_thing, "area": segment.area} for segment in result)
    return {"segments": [first | entry for first, entry in zip(own, objects, strict=True)]}


def _rle(mask: EncodedMask) -> dict[str, Any]:
    return {"size": [*mask.rle["size"]], "counts": mask.rle["counts"].decode()}
