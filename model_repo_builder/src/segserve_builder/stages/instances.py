"""The stage that makes instances of a label map."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.remove_small_regions import ClassId
from segserve_builder.values import Instances, LabelMap, ValueType


class InstancesFromLabels(Stage):
    """Make an instance of each connected region of a class, and cut regions in which several objects touch.

    With `minDistance` a region is cut by the watershed of its distance transform, as by scikit-image's
    `peak_local_max` and `watershed`: each peak of the distance to the nearest pixel outside the region becomes an
    object. `kernels.instances.cut_regions` says how ties are broken. An object's score is the mean probability of its
    class over its pixels.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    classes: tuple[ClassId, ...] | None = Field(
        None,
        min_length=1,
        description="Ids of the classes whose objects are instances. Default: the things, or all but class 0 if the "
        "model has none.",
    )
    min_distance: int | None = Field(
        None,
        ge=2,
        le=256,
        description="Least distance between the middles of two touching objects, in pixels of the original image, "
        "along x or y; about the radius of the smallest object. Default: touching objects stay one instance.",
    )
    min_area: int = Field(1, ge=1, description="Least area of an instance, in pixels of the original image.")
    connectivity: Literal[4, 8] = Field(4, description="Whether pixels connect by edges (4) or also by corners (8).")
    threshold: float = Field(
        0.0, ge=0, le=1, description="Least score that is kept; a request's score_threshold overrides it."
    )

    def __call__(self, value: LabelMap, request: RequestOptions) -> Instances:
        """Return the instances, best score first and equal ones row by row: at most 65,535, which share no pixel."""
        import numpy as np

        from segserve_builder.imaging.probabilities import part_statistics
        from segserve_builder.kernels.instances import cut_regions, find_regions
        from segserve_builder.kernels.label_rle import encode_labels

        height, width = value.labels.shape
        chosen = np.zeros(256**value.labels.dtype.itemsize, np.bool_)
        if ids := self.classes or value.logits.things:
            chosen[[label for label in ids if label < len(chosen)]] = True
        else:
            chosen[1:] = True
        objects = find_regions(value.labels, chosen, self.connectivity, self.min_area)
        if not len(objects.boxes):
            return Instances(np.empty((0, 4), np.float32), np.empty(0, np.float32), objects.classes, (), height, width)
        if self.min_distance is not None:
            objects = cut_regions(objects, self.min_distance, self.connectivity)
        # Number 0 is of the pixels that belong to no object.
        areas, scores = part_statistics(value, objects.numbers, len(objects.boxes) + 1)
        order = 1 + np.argsort(-scores[1:], kind="stable")
        least = np.float32(request.least_score(self.threshold))
        kept = order[(areas[order] >= self.min_area) & (scores[order] >= least)][: np.iinfo(np.uint16).max]
        places = np.zeros(len(scores), np.uint16)
        places[kept] = np.arange(1, len(kept) + 1)
        masks = tuple(encode_labels(places[objects.numbers], len(kept) + 1)[1:])
        boxes, classes = objects.boxes[kept - 1].astype(np.float32), objects.classes[kept - 1]
        return Instances(boxes, scores[kept], classes, masks, height, width)
