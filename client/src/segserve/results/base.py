"""What all answers share: the model that gave them, its classes, and the ways out to other formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from segserve.exports import coco

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image
    from rich.table import Table
    from supervision import Detections

    from segserve.rendering.pictured import Pictured
    from segserve.results.annotation import Annotation
    from segserve.results.images import ImageLike
    from segserve.results.outlines import Part

Colour: TypeAlias = tuple[int, int, int]
Shapes: TypeAlias = Literal["mask", "polygon"]
Encoding: TypeAlias = Literal["rle", "polygons", "png", "raw"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("rle", "polygons", "png", "raw")


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """A class of a model; `colour` is None where the model's file names none."""

    id: int
    name: str
    colour: Colour | None = None


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a model takes arrays: 1 channel (grey) or 3 (RGB), dtype UINT8 or UINT16."""

    channels: int
    dtype: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served under a model's name: the outputs it declares, its revision, classes and format of arrays.

    A model that segserve did not build has no revision and no classes.
    """

    model: str
    outputs: frozenset[str]
    revision: str | None = None
    classes: tuple[SegmentClass, ...] = ()
    pixels: PixelFormat | None = None

    def class_of(self, class_id: int) -> SegmentClass:
        """Return the class with that id; one that the model does not name is called by its number."""
        for known in self.classes:
            if known.id == class_id:
                return known
        return SegmentClass(class_id, str(class_id))


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What every answer has: the revision that answered, `size` as (height, width), the model's classes.

    `request_id` is what the client called the request in its headers; None for a result that was not asked for by one.
    """

    model: str
    revision: str
    size: tuple[int, int]
    classes: tuple[SegmentClass, ...]
    request_id: str | None = field(default=None, kw_only=True)

    def annotations(self) -> Iterator[Annotation]:
        """Yield what was found, one by one, in the form that the exports share; masks are not decoded."""
        raise NotImplementedError

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row for each thing that was found, for `csv.DictWriter` or a data frame."""
        raise NotImplementedError

    def to_polygons(self) -> list[tuple[Part, ...]]:
        """Return the outlines of each thing's mask, with holes, in pixels; () where it has only a box."""
        return [found.parts for found in self.annotations()]

    def to_coco(self, *, image_id: int = 1, file_name: str | None = None) -> dict[str, Any]:
        """Return a COCO data set of this one image, ready for `json.dump`."""
        return coco.data_set([coco.Entry(self.size, tuple(self.annotations()), file_name, image_id)], self.classes)

    def to_geojson(self, affine: Sequence[float] | None = None, *, crs: str | None = None) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection: polygons with holes, boxes where there are no masks.

        `affine` turns corners of pixels into world coordinates: a, b, c, d, e, f as rasterio's `transform` has
        them, x = a * column + b * row + c. Without it the coordinates are pixels. RFC 7946 wants longitude and
        latitude; `crs`, as in `EPSG:32633`, names another system in the older way that GDAL and QGIS read.
        """
        from segserve.exports.geojson import feature_collection

        return feature_collection(self, affine, crs)

    def to_labelme(
        self, file_name: str, *, image: ImageLike | None = None, shapes: Shapes = "polygon"
    ) -> dict[str, Any]:
        """Return the content of a LabelMe file for the image `file_name`; `image`, where given, is embedded.

        Polygons lose holes, masks are exact. Parts of one object share a `group_id`.
        """
        from segserve.exports.labelme import label_file

        return label_file(self, file_name, image=image, shapes=shapes)

    def to_label_studio(self, image: str, *, shapes: Shapes = "mask") -> dict[str, Any]:
        """Return a Label Studio task for the image at that URL, with what was found as a prediction.

        `segserve.exports.label_studio.labelling_config` is the configuration of a project that takes it.
        """
        from segserve.exports.label_studio import task

        return task(self, image, shapes=shapes)

    def to_cvat(self, file_name: str, *, image_id: int = 0, shapes: Shapes = "mask") -> str:
        """Return an XML document in CVAT's format "CVAT for images 1.1"."""
        from segserve.exports.cvat import document

        return document(self, file_name, image_id=image_id, shapes=shapes)

    def to_supervision(self, *, compact: bool = False) -> Detections:
        """Return the `supervision.Detections`, class names in `data["class_name"]`.

        Masks are bool (N, H, W), or with `compact` a `CompactMask`, which needs no memory for the whole image.
        Raises `MissingExtraError` without the extra `annotations`.
        """
        from segserve.exports.supervision import detections

        return detections(self, compact=compact)

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        contour: bool = True,
        legend: bool | None = None,
    ) -> Image.Image:
        """Return the image with what was found drawn on it: filled with `alpha` of its colour, outlined, labelled.

        Raises `BadRequestError` for an image of another size than the one that was sent.
        """
        raise NotImplementedError

    def on(self, image: ImageLike) -> Pictured:
        """Return the result together with its image, which notebooks show as a picture."""
        from segserve.rendering.pictured import Pictured

        return Pictured(self, image)

    def __repr__(self) -> str:
        from segserve.rendering.display import one_line

        return one_line(self)

    def __rich__(self) -> Table:
        from segserve.rendering.display import table

        return table(self)

    def _repr_html_(self) -> str:
        from segserve.rendering.pictured import html

        return html(self)
