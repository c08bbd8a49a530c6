"""The format of golden sets: golden.json with the expected answer and labels of each image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from segserve_builder.errors import GoldenError

GOLDEN_FILE: Final = "golden.json"
DEFAULT_IOU: Final = 0.99
DEFAULT_SCORE: Final = 0.01
DEFAULT_POINT_PX: Final = 2.0


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leaves the golden folder; a path within it is allowed")
    return path


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class GoldenTolerance(_Json):
    """Tolerance of an answer: least IoU of masks and boxes, largest difference of scores and of points (pixels)."""

    iou: float = Field(DEFAULT_IOU, gt=0, le=1)
    score: float = Field(DEFAULT_SCORE, ge=0, le=1)
    point_px: float = Field(DEFAULT_POINT_PX, ge=0)


class Expected(_Json):
    """The expected outputs, named as on the wire, with masks as COCO compressed RLE counts of `size`.

    With `scores` it is an answer of objects: instances or segments of a panoptic map with one mask each, or boxes,
    optionally with keypoints, without masks. Without, it is a semantic answer with one mask per class.
    """

    size: tuple[int, int] = Field(alias="SIZE")
    classes: tuple[int, ...] = Field(alias="CLASSES")
    masks: tuple[str, ...] | None = Field(None, alias="MASKS")
    scores: tuple[float, ...] | None = Field(None, alias="SCORES")
    boxes: tuple[tuple[float, float, float, float], ...] | None = Field(None, alias="BOXES")
    keypoints: tuple[tuple[tuple[float, float, float], ...], ...] | None = Field(None, alias="KEYPOINTS")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        columns = (self.masks, self.classes, self.scores, self.boxes, self.keypoints)
        lengths = [len(column) for column in columns if column is not None]
        if len(set(lengths)) != 1:
            raise ValueError(f"MASKS, CLASSES, SCORES, BOXES and KEYPOINTS must be of one length, got {lengths}")
        if self.masks is None and (self.boxes is None or self.scores is None):
            raise ValueError("an answer without MASKS has BOXES and SCORES")
        return self


class GoldenLabels(_Json):
    """Labels of an image by people, named as on the wire: one class per mask or box, masks as RLE counts of `size`.

    A point of KEYPOINTS is x, y and its visibility, 0 if it is not labelled.
    """

    size: tuple[int, int] = Field(alias="SIZE")
    classes: tuple[int, ...] = Field(alias="CLASSES")
    masks: tuple[str, ...] | None = Field(None, alias="MASKS")
    boxes: tuple[tuple[float, float, float, float], ...] | None = Field(None, alias="BOXES")
    keypoints: tuple[tuple[tuple[float, float, float], ...], ...] | None = Field(None, alias="KEYPOINTS")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        lengths = [len(column) for column in (self.masks, self.boxes, self.keypoints) if column is not None]
        if set(lengths) - {len(self.classes)} or (self.masks is None and self.boxes is None):
            raise ValueError(
                f"labels have MASKS or BOXES, each as many as CLASSES ({len(self.classes)}), got {lengths}"
            )
        return self


class Case(_Json):
    """One image of the set with its expected answer, and optionally labels, by which rollouts measure quality.

    Labels of a semantic model may be a PNG instead, `labelMap`, whose pixels are class ids; other values are ignored.
    """

    image: Annotated[str, AfterValidator(_inside)]
    tolerance: GoldenTolerance = GoldenTolerance()
    expected: Expected
    labels: GoldenLabels | None = None
    label_map: Annotated[str, AfterValidator(_inside)] | None = Field(None, alias="labelMap")

    @model_validator(mode="after")
    def _labelled_once(self) -> Self:
        if self.labels is not None and self.label_map is not None:
            raise ValueError("labels and labelMap exclude each other; use one of them")
        return self


class GoldenSet(_Json):
    """The content of golden.json."""

    cases: tuple[Case, ...] = Field(min_length=1)


def load(folder: Path) -> GoldenSet:
    """Read the set in `folder`; raises `GoldenError` if it is not valid, or an image that it names is missing."""
    try:
        golden = GoldenSet.model_validate_json((folder / GOLDEN_FILE).read_bytes())
    except OSError as error:
        raise GoldenError(f"{folder / GOLDEN_FILE} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise GoldenError(f"{GOLDEN_FILE}: {place or 'the file'}: {first['msg']}") from error
    files = [name for case in golden.cases for name in (case.image, case.label_map) if name is not None]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise GoldenError(f"{GOLDEN_FILE} names images that are not in the folder: {', '.join(missing)}")
    return golden
