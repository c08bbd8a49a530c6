"""GeoJSON is valid, lies where the affine says, and covers exactly the pixels of the masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis.extra import numpy as hnp
from shapely.geometry import shape

from segserve import BadRequestError

from .results import MASKED, cases, instances

NORTH_UP = (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_600_000.0)
ROTATED = (0.3, -0.4, 10.0, 0.4, 0.3, 20.0)
bitmaps = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def geometries(document: dict) -> list[shapely.Geometry]:
    return [shape(one["geometry"]) if one["geometry"] else shapely.Polygon() for one in document["features"]]


def is_counterclockwise(ring: list[list[float]]) -> bool:
    return bool(shapely.is_ccw(shapely.LinearRing(ring)))


@pytest.mark.parametrize("affine", [None, NORTH_UP, ROTATED], ids=["pixels", "north up", "rotated"])
@pytest.mark.parametrize("case", MASKED)
def test_areas_are_those_of_the_masks(case: str, affine: tuple[float, ...] | None) -> None:
    document = json.loads(json.dumps(cases()[case].to_geojson(affine)))

    masks = [one.mask for one in cases()[case].annotations() if one.mask is not None]
    for mask, geometry in zip(masks, geometries(document), strict=True):
        assert geometry.is_valid
        assert geometry.area == pytest.approx(mask.area * (1 if affine is None else 0.25))


@given(bitmaps)
def test_any_mask_is_a_valid_geometry_of_exactly_its_pixels(bitmap: np.ndarray) -> None:
    (geometry,) = geometries(instances([bitmap]).to_geojson())

    rows, columns = np.indices(bitmap.shape)
    assert geometry.is_valid
    assert geometry.area == bitmap.sum()
    np.testing.assert_array_equal(shapely.contains_xy(geometry, columns + 0.5, rows + 0.5), bitmap)


@pytest.mark.parametrize("affine", [None, NORTH_UP, ROTATED, (-1, 0, 0, 0, 1, 0)])
def test_outer_rings_are_counterclockwise_and_closed_and_holes_are_not(affine: tuple[float, ...] | None) -> None:
    for feature in cases()["hard"].to_geojson(affine)["features"]:
        geometry = feature["geometry"] or {"type": "MultiPolygon", "coordinates": []}
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        for outer, *holes in polygons:
            assert outer[0] == outer[-1]
            assert is_counterclockwise(outer)
            assert not any(map(is_counterclockwise, holes))


def test_a_box_lies_at_the_pixels_corners_on_the_map() -> None:
    first, *_ = geometries(cases()["boxes"].to_geojson(NORTH_UP))
    assert first.bounds == (400_002.75, 5_600_000 - 15.125, 400_020, 5_600_000 - 3)


def test_points_are_a_feature_of_their_own_with_the_same_id() -> None:
    _, points = cases()["people"].to_geojson()["features"]

    assert points["geometry"] == {"type": "MultiPoint", "coordinates": [[12, 14], [30, 22]]}
    assert (points["properties"]["id"], points["properties"]["point_scores"]) == (1, pytest.approx([0.9, 0.5]))


def test_class_score_and_id_are_properties() -> None:
    document = cases()["boxes"].to_geojson(crs="EPSG:32633")

    assert document["features"][1]["properties"] == {"id": 2, "class_id": 2, "class": "naïve", "score": 0.5}
    assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"


@pytest.mark.parametrize(
    "affine", [(1, 0, 0, 0, 1), (1, 0, 0, 2, 0, 0), (float("nan"), 0, 0, 0, 1, 0), (1, 0, 0, 0, 1, 0, 0, 1, 1)]
)
def test_what_is_no_affine_is_refused(affine: tuple[float, ...]) -> None:
    with pytest.raises(BadRequestError, match="affine"):
        cases()["boxes"].to_geojson(affine)


def test_the_last_row_of_a_matrix_is_accepted() -> None:
    assert cases()["boxes"].to_geojson((*NORTH_UP, 0, 0, 1)) == cases()["boxes"].to_geojson(NORTH_UP)
