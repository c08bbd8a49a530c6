"""The stage that fuses a label map and the instances of a second network into a panoptic map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Instances, LabelMap, Panoptic, Segment, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PanopticFusion(Stage):
    """Fuse instances and a label map into a panoptic map, instances with better scores first.

    The rules are those of Kirillov et al., Panoptic Segmentation (2019), as in detectron2's
    `combine_semantic_and_instance_outputs`: an instance is dropped if too much of it is taken already, else it
    gets its free pixels. Classes of the label map that are not things get the rest, one segment each.
    """

    needs_instances: ClassVar[bool] = True
    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LABELS})
    gives: ClassVar[ValueType | None] = ValueType.PANOPTIC

    instance_score: float = Field(0.5, ge=0, le=1, description="Least score of an instance.")
    overlap_threshold: float = Field(
        0.5, ge=0, le=1, description="Drop an instance if higher-scoring ones cover more than this fraction of it."
    )
    stuff_area: int = Field(
        4096, ge=0, description="Least area of a segment of the label map, in pixels of the original image."
    )
    ignore: tuple[int, ...] = Field(
        (), description="Ids of classes that get no segment from the label map, besides things."
    )

    def __call__(self, value: LabelMap, request: RequestOptions) -> Panoptic:
        """Return the segments, ids counting from 1: instances by falling score, then classes by rising id."""
        import numpy as np

        ids = np.zeros(value.labels.shape, np.uint16)
        segments = [] if value.instances is None else self._lay(value.instances, ids)
        return Panoptic(ids, tuple(segments + self._fill(value, ids, len(segments))))

    def _lay(self, instances: Instances, ids: NDArray[Any]) -> list[Segment]:
        """Write the instances into `ids`."""
        import numpy as np

        from segserve_builder.kernels.rle_reader import decode

        segments: list[Segment] = []
        for index in np.argsort(-instances.scores, kind="stable").tolist():
            score = float(instances.scores[index])
            if instances.scores[index] < np.float32(self.instance_score):
                break
            window = decode(instances.masks[index], instances.height, instances.width)
            height, width = window.bitmap.shape
            under = ids[window.top : window.top + height, window.left : window.left + width]
            mask = window.bitmap.view(bool)
            free = mask & (under == 0)
            area, left = np.count_nonzero(mask), np.count_nonzero(free)
            if not left or (area - left) / area > self.overlap_threshold:
                continue
            segments.append(Segment(len(segments) + 1, int(instances.classes[index]), True, score))
            under[free] = len(segments)
        return segments

    def _fill(self, value: LabelMap, ids: NDArray[Any], number: int) -> list[Segment]:
        """Write the label map's classes into the free pixels of `ids`, which has `number` segments so far."""
        import numpy as np

        from segserve_builder.imaging.probabilities import mean_confidence
        from segserve_builder.kernels.fusion import fill_free, free_areas

        classes = max(len(value.logits.values), 2)
        areas = free_areas(value.labels, ids, classes)
        skipped = value.logits.things.union(self.ignore)
        wanted = [c for c in np.flatnonzero(areas).tolist() if c not in skipped and areas[c] >= self.stuff_area]
        names = np.zeros(classes, np.uint16)
        names[wanted] = np.arange(number + 1, number + 1 + len(wanted))
        fill_free(value.labels, names, ids)
        confidence = mean_confidence(value, classes) if wanted else np.zeros(classes, np.float32)
        return [Segment(int(names[c]), c, False, float(confidence[c])) for c in wanted]
