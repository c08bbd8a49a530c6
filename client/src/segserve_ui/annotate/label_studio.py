"""Label Studio's ML backend protocol: requests, labelling configurations, clicks and predictions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from uuid import uuid4
from xml.etree import ElementTree as ET

from pydantic import AliasChoices, AliasPath, BaseModel, Field

from segserve.calls.prompts import Box, Click
from segserve.exports.label_studio import TAGS, Json, regions
from segserve.results.annotation import AnnotatedResult, Annotation, foreground
from segserve_common.errors import BadRequestError

BRUSH, POLYGON, RECTANGLE, KEYPOINT = TAGS
MAX_TASKS: Final = 1000
MAX_CLICKS: Final = 256
OF_MASKS: Final = (BRUSH, POLYGON, RECTANGLE)
"""The kinds of regions for a mask, the preferred first."""
_TAGS: Final = ", ".join(TAGS[kind][0] for kind in OF_MASKS)
_LABELS: Final = AliasChoices(AliasPath("value", KEYPOINT), AliasPath("value", RECTANGLE))
_log = logging.getLogger(__name__)


class Region(BaseModel):
    """A click or a box: `x` to `height` are percent of the image, `original_*` its size in pixels as it is shown."""

    type: str
    x: float = Field(validation_alias=AliasPath("value", "x"))
    y: float = Field(validation_alias=AliasPath("value", "y"))
    width: float = Field(0, validation_alias=AliasPath("value", "width"))
    height: float = Field(0, validation_alias=AliasPath("value", "height"))
    rotation: float = Field(0, validation_alias=AliasPath("value", "rotation"))
    labels: list[str] = Field(min_length=1, max_length=MAX_CLICKS, validation_alias=_LABELS)
    original_width: int
    original_height: int
    is_positive: bool = True

    def prompt(self, size: tuple[int, int]) -> Click | Box:
        """Return it in pixels of an image of `size`, its height and width after EXIF rotation.

        Raises `BadRequestError` for other kinds of regions, and for an image that is shown in another size.
        """
        height, width = size
        if (shown := (self.original_height, self.original_width)) != size:
            raise BadRequestError(f"the click is on an image of {shown} (height, width); the model got {size}")
        x, y = self.x * width / 100, self.y * height / 100
        if self.type == KEYPOINT:
            return Click(x, y, self.is_positive)
        if self.type == RECTANGLE and self.is_positive and not self.rotation:
            return Box(x, y, self.width * width / 100, self.height * height / 100)
        seen = f"{self.type!r}, is_positive {self.is_positive}, rotation {self.rotation:g}"
        raise BadRequestError(
            f"got a region {seen}; allowed: {KEYPOINT}, and {RECTANGLE} that is positive, not rotated"
        )


class Task(BaseModel):
    """A task; the labelling configuration says where in its `data` the image's URL is."""

    id: int | None = None
    data: dict[str, Any]


class TasksRequest(BaseModel):
    """The body of `/setup`, which has no tasks, and of `/predict`; `clicks` are all of one object, or none."""

    label_config: str = Field(validation_alias=AliasChoices("label_config", "schema"))
    tasks: list[Task] = Field([], max_length=MAX_TASKS)
    clicks: list[Region] = Field([], max_length=MAX_CLICKS, validation_alias=AliasPath("params", "context", "result"))


class LabelsError(BadRequestError):
    """A labelling configuration without a control tag or label for what is to be shown."""


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """A labelling configuration: the image's `key` in a task's data, and the `name` of its tag.

    `targets` are, by kind of region and name of a class, the control tag and the label that show it.
    """

    key: str
    name: str
    targets: Mapping[str, Mapping[str, tuple[str, str]]]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a configuration (XML); raises `LabelsError` without an image and control tags that show objects."""
        try:
            root = ET.fromstring(text)
        except ET.ParseError as error:
            raise LabelsError(f"the labelling configuration is not XML: {error}") from error
        image = root.find(".//Image[@value]")
        about = {} if image is None else image.attrib
        targets = dict[str, dict[str, tuple[str, str]]]()
        for kind, (tag, _) in TAGS.items():
            for control in root.iterfind(f".//{tag}[@toName]"):
                for label in control.iter("Label") if control.get("toName") == about.get("name") else ():
                    value = label.get("value", "")
                    shown = control.get("name", ""), label.get("alias", value)
                    for name in (value, shown[1], *label.get("predicted_values", "").split(",")):
                        targets.setdefault(kind, {}).setdefault(name.strip(), shown)
        if not targets.keys() & set(OF_MASKS):
            raise LabelsError(f"the labelling configuration has no image with labels in {_TAGS}")
        return cls(about["value"].removeprefix("$"), about["name"], targets)

    def image_url(self, task: Task) -> str:
        """Return the URL of a task's image; raises `BadRequestError` if it has none."""
        if not isinstance(url := task.data.get(self.key), str):
            seen = f"several images at {self.key!r}; allowed is one" if isinstance(url, list) else ""
            seen = seen or f"no URL at {self.key!r}; it has: {', '.join(task.data)}"
            raise BadRequestError(f"the task's data has {seen}")
        return url

    def prediction(self, result: AnnotatedResult, label: str | None = None) -> Json:
        """Return a result as a prediction; `label` takes the place of the model's classes.

        Objects of a class without a label are left out with a line in the log. Raises `LabelsError` if all are.
        """
        shown, scores, unknown = list[Json](), list[float](), Counter[str]()
        for found in foreground(result.annotations()):
            one = found if label is None else replace(found, class_name=label)
            if added := list(self._regions(one, result.size)):
                shown += added
                scores += [] if one.score is None else [one.score]
            elif one.mask is None or one.area:
                unknown[one.class_name] += 1
        if unknown:
            labels = sorted({label for kind in OF_MASKS for _, label in self.targets.get(kind, {}).values()})
            text = f"no label for {dict(unknown)} (class: objects); labels of {_TAGS}: {', '.join(labels)}"
            if not shown:
                raise LabelsError(f"{text}; add labels, or list classes in the attribute predicted_values of one")
            _log.warning("left out: %s", text)
        score = {"score": sum(scores) / len(scores)} if scores else {}
        return {"model_version": result.revision, "result": shown} | score

    def _regions(self, one: Annotation, size: tuple[int, int]) -> Iterator[Json]:
        kinds = OF_MASKS if one.mask is not None else (RECTANGLE,)
        kind = next((each for each in kinds if one.class_name in self.targets.get(each, {})), None)
        if kind is None:
            return
        if kind == RECTANGLE:
            one = replace(one, mask=None, own_box=one.box)
        own = uuid4().hex[:10]  # regions of other clicks may be beside these
        for region in regions(one, size, "polygon" if kind == POLYGON else "mask"):
            if target := self.targets.get(region["type"], {}).get(one.class_name):
                value = region["value"] | {region["type"]: [target[1]]}
                ids = {key: f"{own}-{region[key]}" for key in ("id", "parentID") if key in region}
                yield region | ids | {"from_name": target[0], "to_name": self.name, "value": value}
