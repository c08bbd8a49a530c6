"""The base of all results: model, revision, classes, and conversions to other formats."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve.errors import package_of_extra
from segserve.exports import coco
from segserve.rendering.display import Row, one_line, table
from segserve.results.annotation import Annotation, object_entry
from segserve.results.images import ImageLike
from segserve.results.outlines import Part
from segserve.results.values import OutOfDistribution, SegmentClass, Shapes
from segserve_common.drawing.overlays import Style
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL import Image
    from rich.table import Table
    from supervision import Detections


_OTHERS_WORDS: Final = {
    "plot": "overlay(image), a picture, or show(image)",
    "render": "overlay(image)",
    "draw": "overlay(image)",
    "visualize": "overlay(image)",
    "boxes": "annotations(), as this kind of result has no boxes",
    "masks": "mask(class_) or labels of a semantic result, mask(segment) of a panoptic one",
    "xyxy": "boxes",
    "bboxes": "boxes",
    "conf": "scores",
    "confidence": "scores",
    "probs": "scores",
    "cls": "class_ids",
    "class_id": "class_ids",
    "labels": "class_ids",
    "names": "classes",
    "keypoints": "points",
    "segments": "masks, or to_polygons()",
    "polygons": "to_polygons()",
    "xy": "to_polygons()",
    "tojson": "to_json()",
    "json": "to_json()",
    "to_df": "to_pandas()",
    "pandas": "to_pandas()",
    "to_csv": "to_pandas(), whose to_csv writes it, or to_rows()",
    "verbose": "summary()",
    "orig_shape": "size, (height, width)",
    "orig_img": "the image that was sent; results do not keep it",
    "cpu": "the result itself: its arrays are numpy's",
    "numpy": "the result itself: its arrays are numpy's",
    "cuda": "the result itself: its arrays are numpy's",
    "to_sv": "to_supervision()",
}
"""Words of Ultralytics, supervision and torchvision for what results have by another name."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A model's answer for one image: the revision that answered, `size` as (height, width), the model's classes.

    `request_id` is the id that the client sent in the request's headers; None for a result made without a request.
    `continued` says whether the server kept earlier frames of the image's stream: False for the first frame, and where
    the stream's state began anew; None outside of a stream, and for a model without streams. `out_of_distribution` is
    set for models that flag images (`spec.outOfDistribution`), unless the answer has no score. `at_limit` says whether
    it has as many objects as `max_detections`, or the model's `maxDetections`, allows, so that there may be more.
    """

    model: str
    revision: str
    size: tuple[int, int]
    classes: tuple[SegmentClass, ...]
    request_id: str | None = field(default=None, kw_only=True)
    continued: bool | None = field(default=None, kw_only=True)
    out_of_distribution: OutOfDistribution | None = field(default=None, kw_only=True)
    at_limit: bool = field(default=False, kw_only=True)
    _own_columns: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Answer other libraries' words with ours."""
            ours = f"; use {_OTHERS_WORDS[name]}" if name in _OTHERS_WORDS else ""
            seen = f"{type(self).__name__!r} object has no attribute {name!r}{ours}"
            raise AttributeError(seen, name=name, obj=self)

    def annotations(self) -> Iterator[Annotation]:
        """Yield each object, segment or class in the form that exports share; decodes no mask."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """Return a short text per class, most frequent or largest first; decodes no mask."""
        raise NotImplementedError

    def summary_rows(self) -> list[Row]:
        """Return a row of printable cells per class, most frequent or largest first."""
        raise NotImplementedError

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a flat row per object, segment or class, for `csv.DictWriter` or a data frame."""
        raise NotImplementedError

    def to_pandas(self) -> DataFrame:
        """Return `to_rows` as a pandas data frame. Raises `MissingExtraError` without the extra `pandas`."""
        pandas = package_of_extra("pandas", "pandas", "a data frame")
        if rows := self.to_rows():
            return pandas.DataFrame(rows)
        columns = ["index", "class_id", "class", "score", "x1", "y1", "x2", "y2", *self._own_columns]
        return pandas.DataFrame(columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, in the form in which the gateway answers plain HTTP with `encoding=rle`.

        `objects` (with boxes), `segments` (panoptic) or `classes` (semantic) have an entry each, masks as COCO's RLE
        with `counts` as text, as pycocotools reads it.
        """
        height, width = self.size
        head = {"model": self.model, "revision": self.revision, "request_id": self.request_id}
        unlike = self.out_of_distribution
        known = {
            "out_of_distribution": unlike and {"score": unlike.score, "threshold": unlike.threshold},
            "continued": self.continued,
        }
        of_image = {name: value for name, value in known.items() if value is not None}
        return {**head, "height": height, "width": width, **of_image, **self._entries()}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent)

    def show(self, image: ImageLike | None = None) -> None:
        """Show the result on its image, or on grey: in a notebook below the cell, else in the system's image viewer.

        Raises `SegserveError` if there is no viewer, and `BadRequestError` as `overlay` does.
        """
        from segserve.rendering.display import drawn, show

        show(drawn(self, image))

    def save(self, path: str | os.PathLike[str], image: ImageLike | None = None) -> Path:
        """Write a file and return its path: a picture of the result on its image, or on grey, or for .json `to_json`.

        The suffix names the format; missing folders are created. Raises `BadRequestError` for an unknown suffix and as
        `overlay` does, and `OSError`.
        """
        from segserve.rendering.display import drawn
        from segserve.rendering.output_files import save_image, written_whole

        target = Path(path)
        if target.suffix.lower() == ".json":
            with written_whole(target) as temporary:
                temporary.write_text(self.to_json() + "\n")
            return target
        try:
            save_image(drawn(self, image), target)
        except ValueError as error:
            raise BadRequestError(
                f"cannot save as {target.suffix!r}: use .json or a picture's suffix, such as .png or .jpg"
            ) from error
        return target

    def to_polygons(self) -> list[tuple[Part, ...]]:
        """Return the outlines of each mask, with holes, in pixels; () for an object that has only a box."""
        return [found.parts for found in self.annotations()]

    def to_coco(self, *, image_id: int = 1, file_name: str | None = None) -> dict[str, Any]:
        """Return a COCO data set of this one image, ready for `json.dump`."""
        return coco.data_set([coco.Entry(self.size, tuple(self.annotations()), file_name, image_id)], self.classes)

    def to_geojson(self, affine: Sequence[float] | None = None, *, crs: str | None = None) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection: polygons with holes, or boxes for objects without masks.

        `affine` maps pixel corners to world coordinates: a, b, c, d, e, f as in rasterio's `transform`,
        x = a * column + b * row + c. Without it, coordinates are pixels. RFC 7946 requires longitude and latitude;
        `crs`, such as `EPSG:32633`, names another system in the older form that GDAL and QGIS read.

        Raises `BadRequestError` for an affine that is not invertible or not six finite numbers.
        """
        from segserve.exports.geojson import feature_collection

        return feature_collection(self, affine, crs)

    def to_labelme(
        self, file_name: str, *, image: ImageLike | None = None, shapes: Shapes = "polygon"
    ) -> dict[str, Any]:
        """Return the content of a LabelMe file for the image `file_name`; `image`, if given, is embedded.

        Polygons lose holes, masks are exact. Parts of one object share a `group_id`. Raises `BadRequestError` if the
        size of `image` differs from the result's.
        """
        from segserve.exports.labelme import label_file

        return label_file(self, file_name, image=image, shapes=shapes)

    def to_label_studio(self, image: str, *, shapes: Shapes = "mask") -> dict[str, Any]:
        """Return a Label Studio task for the image at this URL, with the result as a prediction.

        `segserve.exports.label_studio.labelling_config` returns the configuration of a project that accepts it.
        """
        from segserve.exports.label_studio import task

        return task(self, image, shapes=shapes)

    def to_cvat(self, file_name: str, *, image_id: int = 0, shapes: Shapes = "mask") -> str:
        """Return an XML document in the format "CVAT for images 1.1"."""
        from segserve.exports.cvat import document

        return document(self, file_name, image_id=image_id, shapes=shapes)

    def to_supervision(self, *, compact: bool = False) -> Detections:
        """Return `supervision.Detections` with the class names in `data["class_name"]`.

        Masks are bool (N, H, W), or with `compact` a `CompactMask`, which stores no full-size masks.
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
        """Return the image with the result drawn on it: filled with `alpha` (0 to 1) of its colour, outlined, labelled.

        A semantic answer's class `background` is left out; panoptic things have individual colours and labels, stuff
        its classes' colours. The legend names classes, semantic ones with their share, and defaults to `labels`. Raises
        `BadRequestError` if the size of `image` differs from the segmented image's.
        """
        return self._drawn(image, Style(alpha, labels, contour, labels if legend is None else legend))

    def _drawn(self, image: ImageLike, style: Style) -> Image.Image:
        raise NotImplementedError

    def with_image(self, image: ImageLike) -> ResultWithImage:
        """Return the result together with its image, which notebooks show as an overlay."""
        return ResultWithImage(self, image)

    def _entries(self) -> dict[str, Any]:
        """Return what `to_dict` says of objects, segments or classes."""
        return {"objects": [object_entry(one) for one in self.annotations()]}

    def __repr__(self) -> str:
        return one_line(self)

    def __rich__(self) -> Table:
        return table(self)

    def _repr_html_(self) -> str:
        from segserve.rendering.display import html

        return html(self)


@dataclass(frozen=True, eq=False, repr=False)
class ResultWithImage:
    """A result together with the image it belongs to."""

    result: Segmentation
    image: ImageLike

    def overlay(self, **options: Any) -> Image.Image:
        """Draw the result on its image; `options` are the options of the result's own `overlay`."""
        return self.result.overlay(self.image, **options)

    def show(self) -> None:
        """Show the result on its image, as `Segmentation.show` does."""
        self.result.show(self.image)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture, or JSON, as `Segmentation.save` does."""
        return self.result.save(path, self.image)

    def crop(self, index: int, *, margin: int = 0, cut_out: bool = False) -> Image.Image:
        """Return the part of the image that shows one object, as `Objects.crop` does.

        Raises `BadRequestError` for a result without separate objects.
        """
        crop = getattr(self.result, "crop", None)
        if crop is None:
            raise BadRequestError(f"a {type(self.result).__name__} has no separate objects to crop")
        cropped: Image.Image = crop(index, self.image, margin=margin, cut_out=cut_out)
        return cropped

    def __repr__(self) -> str:
        return one_line(self.result)

    def _repr_html_(self) -> str:
        from segserve.rendering.display import html

        return html(self.result, self.overlay())
