"""Golden sets: the format of golden.json, with the expected answer and labels of each image; judges answers by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from segserve_builder.errors import GoldenError
from segserve_common import MAX_IMAGE_PIXELS
from segserve_common.errors import ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN_FILE: Final = "golden.json"
DEFAULT_IOU: Final = 0.99
DEFAULT_SCORE: Final = 0.01
DEFAULT_POINT_PX: Final = 2.0

Answer: TypeAlias = "Mapping[str, NDArray[Any]]"
"""The outputs of one request, by name."""

REPEAT_TOLERANCE: Final = 1e-4
ROUNDING: Final = 1e-6
"""Largest rounding error of the IoU of two equal boxes."""


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leaves the golden folder; a path within it is allowed")
    return path


def _check_masks(size: tuple[int, int], masks: tuple[str, ...] | None) -> None:
    """Raise ValueError unless `size` is an image's and the masks are run lengths of that size."""
    from segserve_common.rle import run_lengths

    height, width = size
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise ValueError(f"SIZE is {height} x {width}; allowed are 1 to {MAX_IMAGE_PIXELS} pixels")
    for index, counts in enumerate(masks or ()):
        try:
            run_lengths(counts.encode(), height, width)
        except ProtocolError as error:
            raise ValueError(f"MASKS[{index}]: {error}") from error


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
        _check_masks(self.size, self.masks)
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
                f"labels have MASKS or BOXES, one for each of CLASSES ({len(self.classes)}), got {lengths}"
            )
        _check_masks(self.size, self.masks)
        return self


class GoldenPrompt(_Json):
    """The prompt for a promptable model, in pixels of the image: points as x y, and boxes as x1 y1 x2 y2.

    `labels` has 1 for each point of the object, and 0 for others. Default: all are of the object.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[Literal[0, 1], ...] | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()

    def parameters(self) -> dict[str, str]:
        """Return the request parameters."""
        columns = {
            "points": self.points,
            "point_labels": tuple((label,) for label in self.labels or ()),
            "prompt_boxes": self.boxes,
        }
        return {
            name: ";".join(",".join(str(number) for number in row) for row in rows)
            for name, rows in columns.items()
            if rows
        }


BUILTIN_PROMPT: Final = GoldenPrompt(points=((80, 60),))
"""The middle of the built-in image."""


class Case(_Json):
    """One image of the set with its expected answer, and optionally labels, by which rollouts measure quality.

    Labels of a semantic model may be a PNG instead, `labelMap`, whose pixels are class ids; other values are ignored.
    `slice` says where the image comes from, such as a camera: rollouts measure quality for each slice as well. `prompt`
    is for promptable models, whose answer has no object without one.
    """

    image: Annotated[str, AfterValidator(_inside)]
    tolerance: GoldenTolerance = GoldenTolerance()
    expected: Expected
    labels: GoldenLabels | None = None
    label_map: Annotated[str, AfterValidator(_inside)] | None = Field(None, alias="labelMap")
    slice: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")] | None = None
    prompt: GoldenPrompt | None = None

    def parameters(self) -> dict[str, str]:
        """Return the request parameters that the image has beside those of all."""
        return {} if self.prompt is None else self.prompt.parameters()

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


def compare(case: Case, answer: Answer, names: Mapping[int, str] | None = None) -> None:
    """Check an answer against the expected one; masks must be encoded as rle.

    Raises `GoldenError` that names the image, the tensor, the observed value and the tolerance.
    """
    _require_finite(case.image, answer)
    answer = with_columns(case.image, answer)
    size = tuple(int(number) for number in _output(case.image, answer, "SIZE"))
    if size != case.expected.size:
        raise GoldenError(f"{case.image}: SIZE is {size}; expected {case.expected.size}")
    if case.expected.scores is None:
        expected = case.expected
        classes = _output(case.image, answer, "CLASSES").tolist()
        if sorted(classes) != sorted(expected.classes):
            raise GoldenError(f"{case.image}: CLASSES is {classes}; expected {list(expected.classes)}")
        masks = _masks(case, answer, len(classes))
        found = {
            number: _mask_iou([masks[classes.index(number)]], [mask], expected.size)[0][0]
            for number, mask in zip(expected.classes, expected.masks or (), strict=True)
        }
        wrong = [number for number, overlap in found.items() if overlap < case.tolerance.iou]
        if wrong:
            number = min(wrong, key=lambda each: found[each] > 0)  # one that is gone says more than what took its place
            gone = f": nothing is {names[number]!r}" if names and number in names and not found[number] else ""
            raise GoldenError(
                f"{case.image}: MASKS of class {number}: IoU {found[number]:.4f}; at least {case.tolerance.iou} is "
                f"tolerated{gone}"
            )
    else:
        expected, actual = case.expected, len(_output(case.image, answer, "SCORES"))
        if actual != len(expected.classes):
            raise GoldenError(f"{case.image}: SCORES has {actual} instances; expected {len(expected.classes)}")
        output, overlaps = _overlaps(case, answer, actual)
        classes = _output(case.image, answer, "CLASSES").tolist()
        free = list(range(actual))
        for index, number in enumerate(expected.classes):
            same = [candidate for candidate in free if classes[candidate] == number]
            best = max(same, key=lambda candidate: overlaps[candidate][index], default=None)
            where = f"{case.image}: instance {index} of class {number}"
            observed = 0.0 if best is None else overlaps[best][index]
            if best is None or observed < case.tolerance.iou - ROUNDING:
                raise GoldenError(
                    f"{where}: {output}: best IoU {observed:.4f}; at least {case.tolerance.iou} is tolerated"
                )
            free.remove(best)
            _compare_score(where, case, index, answer["SCORES"][best])
            _compare_box(where, case, index, _output(case.image, answer, "BOXES")[best])
            _compare_points(where, case, index, answer.get("KEYPOINTS"), best)


def record(answer: Answer, image_name: str, tolerance: GoldenTolerance | None = None) -> dict[str, Any]:
    """Return the JSON of a case that expects `answer`; masks must be encoded as rle."""
    answer = with_columns(image_name, answer)
    outputs: dict[str, Any] = {name: _output(image_name, answer, name).tolist() for name in ("SIZE", "CLASSES")}
    outputs |= {name: answer[name].tolist() for name in ("SCORES", "BOXES", "KEYPOINTS") if name in answer}
    if "MASKS" in answer:
        outputs["MASKS"] = [_bytes(mask).decode("ascii") for mask in answer["MASKS"]]
    case = Case(image=image_name, tolerance=tolerance or GoldenTolerance(), expected=Expected.model_validate(outputs))
    # A tolerance of points means nothing without points.
    left_out = None if "KEYPOINTS" in answer else {"tolerance": {"point_px"}}
    return case.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=left_out)


def builtin_image() -> bytes:
    """Return the built-in PNG that proves a pipeline without a golden set."""
    return resources.files("segserve_builder").joinpath("assets/proof.png").read_bytes()


_BUILTIN: Final = "the built-in image"


def check_builtin(first: Answer, second: Answer) -> None:
    """Check that two answers to the built-in image are finite, and equal within a golden set's tolerance.

    Masks are encoded as rle. Raises `GoldenError`.
    """
    import numpy as np

    _require_finite(_BUILTIN, first)
    if first.keys() != second.keys():
        raise GoldenError(f"{_BUILTIN} was answered with {sorted(first)}, then with {sorted(second)}")
    for name, array in first.items():
        again = second[name]
        if array.dtype.kind == "f" and array.shape == again.shape:
            equal = np.allclose(array, again, rtol=REPEAT_TOLERANCE, atol=REPEAT_TOLERANCE)
        else:
            equal = np.array_equal(array, again)
        if not equal:
            # Sums on a GPU have no fixed order, so a pixel at the edge of an object may change.
            try:
                compare(Case.model_validate(record(first, _BUILTIN)), second)
            except (GoldenError, ValueError) as error:
                raise GoldenError(f"{_BUILTIN}: {name} differs between two equal requests: {error}") from error
            return


def with_columns(image: str, answer: Answer) -> Answer:
    """Return a panoptic answer with its table of segments as CLASSES, SCORES and BOXES; others unchanged.

    Raises `GoldenError` if SEGMENTS is not a table of segments.
    """
    import numpy as np

    if "SEGMENTS" not in answer:
        return answer
    try:
        rows = json.loads(_bytes(answer["SEGMENTS"].item()))
        columns = {
            "CLASSES": np.array([row["class"] for row in rows], np.int32),
            "SCORES": np.array([row["score"] for row in rows], np.float32),
            "BOXES": np.array([row["box"] for row in rows], np.float32).reshape(-1, 4),
        }
    except (ValueError, TypeError, LookupError) as error:
        raise GoldenError(f"{image}: SEGMENTS is not a table of segments: {error!r}") from error
    return {**answer, **columns}


def _overlaps(case: Case, answer: Answer, actual: int) -> tuple[str, Sequence[Sequence[float]]]:
    """Return the IoU of each actual with each expected object, and the output that it is taken from."""
    expected = case.expected
    if expected.masks is not None:
        return "MASKS", _mask_iou(_masks(case, answer, actual), expected.masks, expected.size)
    return "BOXES", _box_iou(_output(case.image, answer, "BOXES").tolist(), expected.boxes or ())


def _compare_score(where: str, case: Case, index: int, observed: float) -> None:
    expected = (case.expected.scores or ())[index]
    if abs(float(observed) - expected) > case.tolerance.score:
        tolerated = f"{expected} within {case.tolerance.score} is tolerated"
        raise GoldenError(f"{where}: SCORES is {float(observed):.4f}; {tolerated}")


def _compare_box(where: str, case: Case, index: int, observed: Sequence[float]) -> None:
    if case.expected.boxes is None:
        return
    overlap = _box_iou([observed], [case.expected.boxes[index]])[0][0]
    if overlap < case.tolerance.iou - ROUNDING:
        raise GoldenError(f"{where}: BOXES: IoU {overlap:.4f}; at least {case.tolerance.iou} is tolerated")


def _compare_points(where: str, case: Case, index: int, observed: NDArray[Any] | None, best: int) -> None:
    import numpy as np

    if case.expected.keypoints is None:
        return
    expected = np.array(case.expected.keypoints[index])
    if observed is None or observed[best].shape != expected.shape:
        shape = None if observed is None else list(observed.shape)
        raise GoldenError(f"{where}: KEYPOINTS has shape {shape}; expected {len(expected)} points")
    far = float(np.abs(observed[best][:, :2] - expected[:, :2]).max(initial=0))
    if far > case.tolerance.point_px:
        raise GoldenError(
            f"{where}: KEYPOINTS: a point is {far:.1f} pixels off; {case.tolerance.point_px} are tolerated"
        )


def _box_iou(actual: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    from pycocotools import mask as coco

    if not actual or not expected:
        return []
    left, right = ([[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes] for boxes in (actual, expected))
    overlaps = coco.iou(left, right, [0] * len(right))
    for row, one in zip(overlaps, actual, strict=True):
        for place, other in enumerate(expected):
            if not any(one) and not any(other):  # of empty masks
                row[place] = 1.0
    return [[float(value) for value in row] for row in overlaps]


def _mask_iou(actual: Sequence[bytes], expected: Sequence[str], size: tuple[int, int]) -> list[list[float]]:
    """Return the IoU of each actual with each expected mask, all of them checked; two empty masks are equal."""
    from pycocotools import mask as coco

    if not actual or not expected:
        return []
    left = [{"size": size, "counts": counts} for counts in actual]
    right = [{"size": size, "counts": counts.encode()} for counts in expected]
    areas = coco.area(left)[:, None] + coco.area(right)[None, :]
    overlaps = coco.iou(left, right, [0] * len(right))
    overlaps[areas == 0] = 1.0
    return [[float(value) for value in row] for row in overlaps]


def _masks(case: Case, answer: Answer, count: int) -> tuple[bytes, ...]:
    masks = run_length_masks(case.image, answer, case.expected.size)
    if len(masks) != count:
        raise GoldenError(f"{case.image}: MASKS has {len(masks)} items; expected {count}, one each")
    return masks


def run_length_masks(image: str, answer: Answer, size: tuple[int, int]) -> tuple[bytes, ...]:
    """Return an answer's MASKS as COCO's run lengths; raises `GoldenError` if one is not a mask of this size."""
    from segserve_common.rle import run_lengths

    masks = tuple(_bytes(mask) for mask in _output(image, answer, "MASKS"))
    try:
        for mask in masks:
            run_lengths(mask, *size)
    except ProtocolError as error:
        raise GoldenError(f"{image}: MASKS: {error}") from error
    return masks


def _output(image: str, answer: Answer, name: str) -> NDArray[Any]:
    if name not in answer:
        raise GoldenError(f"{image}: the answer lacks {name}; it has {', '.join(sorted(answer)) or 'nothing'}")
    return answer[name]


def _require_finite(image: str, answer: Answer) -> None:
    import numpy as np

    for name, array in answer.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise GoldenError(f"{image}: {name} holds NaN or infinity; finite numbers are expected")


def _bytes(mask: Any) -> bytes:
    return mask if isinstance(mask, bytes) else str(mask).encode()
