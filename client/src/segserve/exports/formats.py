"""The registry of export formats that are files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from segserve.results.base import Segmentation
from segserve.results.result import PanopticResult
from segserve_common.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format for one image's result: `encode(result, file_name)` returns the content of a file.

    `suffix` is the file's suffix; `file_name` is the name of the image. `encode` raises `BadRequestError` for a type of
    result that the format does not support.
    """

    suffix: str
    encode: Callable[[Segmentation, str], bytes]


def _json(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False).encode()


def _panoptic(result: Segmentation, file_name: str) -> tuple[dict[str, Any], bytes]:
    if not isinstance(result, PanopticResult):
        raise BadRequestError(f"COCO's panoptic format needs a PanopticResult, got a {type(result).__name__}")
    return result.to_coco_panoptic(file_name=file_name)


FORMATS: Final[Mapping[str, ExportFormat]] = {
    "coco": ExportFormat(".json", lambda result, name: _json(result.to_coco(file_name=name))),
    "coco-panoptic": ExportFormat(".json", lambda result, name: _json(_panoptic(result, name)[0])),
    "coco-panoptic-png": ExportFormat(".png", lambda result, name: _panoptic(result, name)[1]),
    "cvat": ExportFormat(".xml", lambda result, name: result.to_cvat(name).encode()),
    "geojson": ExportFormat(".geojson", lambda result, name: _json(result.to_geojson())),
    "label-studio": ExportFormat(".json", lambda result, name: _json(result.to_label_studio(name))),
    "labelme": ExportFormat(".json", lambda result, name: _json(result.to_labelme(name))),
}
