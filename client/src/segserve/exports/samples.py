"""Kept samples, as COCO documents of one image each, in the formats of labelling tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from segserve.exports import cvat, label_studio
from segserve.results.annotation import Annotation
from segserve.results.masks import EncodedMask
from segserve.results.values import SegmentClass


@dataclass(frozen=True, slots=True)
class SampleResult:
    """An answer as a COCO document has it; see `AnnotatedResult`."""

    revision: str
    document: dict[str, Any]

    @property
    def file_name(self) -> str:
        """The image's file name."""
        return str(self.document["images"][0]["file_name"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        (image,) = self.document["images"]
        return int(image["height"]), int(image["width"])

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """The model's classes."""
        return tuple(SegmentClass(each["id"], each["name"]) for each in self.document["categories"])

    def annotations(self) -> Iterator[Annotation]:
        """Yield the objects, segments or classes."""
        names = {each.id: each.name for each in self.classes}
        for number, each in enumerate(self.document["annotations"], 1):
            x, y, width, height = each["bbox"]
            mask = None
            if "segmentation" in each:
                mask = EncodedMask(each["segmentation"]["counts"].encode("ascii"), *self.size)
            box = (x, y, x + width, y + height)
            class_id = each["category_id"]
            yield Annotation(number, class_id, names[class_id], each.get("score"), box, mask)


def cvat_document(results: Iterable[SampleResult]) -> str:
    """Return CVAT's XML of all images."""
    return cvat.merge([cvat.document(each, each.file_name, image_id=0, shapes="mask") for each in results])


def label_studio_tasks(results: Iterable[SampleResult]) -> list[dict[str, Any]]:
    """Return Label Studio's tasks; images are served by its local storage, from a folder `images`."""
    return [label_studio.task(each, f"/data/local-files/?d=images/{each.file_name}", shapes="mask") for each in results]
