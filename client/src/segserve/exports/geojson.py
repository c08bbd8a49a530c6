"""GeoJSON (RFC 7946): polygons with holes, in pixel or world coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.results.annotation import AnnotatedResult, Annotation
from segserve.results.outlines import Part
from segserve_common.drawing.canvas import Rectangle
from segserve_common.errors import BadRequestError

Json: TypeAlias = dict[str, Any]


def feature_collection(result: AnnotatedResult, affine: Sequence[float] | None, crs: str | None) -> Json:
    """Return a feature per annotation, and one for its points if it has any.

    The geometry of an empty mask is null. Raises `BadRequestError` for an invalid affine.
    """
    world = _World(affine)
    features = [feature for annotation in result.annotations() for feature in _features(annotation, world)]
    collection: Json = {"type": "FeatureCollection", "features": features}
    if crs is not None:
        authority, _, code = crs.rpartition(":")
        name = f"urn:ogc:def:crs:{authority or 'EPSG'}::{code}"
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection


def features_of(annotation: Annotation, affine: Sequence[float] | None) -> list[Json]:
    """Return the features of one annotation, for writing one by one; raises as `feature_collection` does."""
    return list(_features(annotation, _World(affine)))


class _World:
    """The mapping from pixel corners to world coordinates."""

    def __init__(self, affine: Sequence[float] | None) -> None:
        numbers = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if affine is None else tuple(map(float, affine))
        # `affine.Affine` includes the last row of its matrix.
        if numbers[6:] not in ((), (0.0, 0.0, 1.0)) or len(numbers) < 6 or not all(map(math.isfinite, numbers)):
            raise BadRequestError(f"affine must be six finite numbers a, b, c, d, e, f, got {numbers}")
        a, b, c, d, e, f = numbers[:6]
        determinant = a * e - b * d
        if determinant == 0:
            raise BadRequestError(f"affine must be invertible, got {numbers}")
        self._linear, self._shift = np.array([[a, d], [b, e]]), np.array([c, f])
        self._mirrors = determinant < 0

    def points(self, pixels: NDArray[Any]) -> list[list[float]]:
        """Return x, y of each point in world coordinates."""
        points: list[list[float]] = (pixels @ self._linear + self._shift).tolist()
        return points

    def ring(self, ring: NDArray[Any]) -> list[list[float]]:
        """Return a closed ring; outer rings come out counterclockwise in coordinates whose y points up."""
        points = self.points(ring[::-1] if self._mirrors else ring)
        return [*points, points[0]]

    def polygon(self, part: Part) -> list[list[list[float]]]:
        """Return the outer ring and the rings of the holes."""
        return [self.ring(part.outer), *map(self.ring, part.holes)]


def _features(annotation: Annotation, world: _World) -> Iterator[Json]:
    properties = {
        "id": annotation.number,
        "class_id": annotation.class_id,
        "class": annotation.class_name,
        "score": annotation.score,
    }
    parts = annotation.parts if annotation.mask is not None else (Part(_corners(annotation.box)),)
    polygons = [world.polygon(part) for part in parts]
    geometry: Json | None = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    yield {"type": "Feature", "properties": properties, "geometry": geometry if polygons else None}
    if annotation.points is not None:
        points = world.points(annotation.points[:, :2].astype(np.float64))
        own = properties | {"point_scores": annotation.points[:, 2].tolist()}
        yield {"type": "Feature", "properties": own, "geometry": {"type": "MultiPoint", "coordinates": points}}


def _corners(box: Rectangle) -> NDArray[np.float64]:
    x1, y1, x2, y2 = box
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
