"""Golden sets: reading them, and judging a model's answers by them."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from segserve_builder.errors import GoldenError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Answer = Mapping[str, NDArray[Any]]

GOLDEN_FILE: Final = "golden.json"
DEFAULT_IOU: Final = 0.99
DEFAULT_SCORE: Final = 0.01
REPEAT_TOLERANCE: Final = 1e-4
ROUNDING: Final = 1e-6
"""How far the IoU of two equal boxes may be from 1."""


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} leaves the golden folder; a path within it is allowed")
    return path


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Tolerance(_Json):
    """How far an answer may be off: least IoU of a mask or box, greatest difference of a score."""

    iou: float = Field(DEFAULT_IOU, gt=0, le=1)
    score: float = Field(DEFAULT_SCORE, ge=0, le=1)


class Expected(_Json):
    """The expected outputs, named as on the wire, with masks as COCO compressed RLE counts of `size`.

    With `scores` it is an instance answer, one mask an instance; without, a semantic one, one mask a class.
    """

    size: tuple[int, int] = Field(alias="SIZE")
    classes: tuple[int, ...] = Field(alias="CLASSES")
    masks: tuple[str, ...] = Field(alias="MASKS")
    scores: tuple[float, ...] | None = Field(None, alias="SCORES")
    boxes: tuple[tuple[float, float, float, float], ...] | None = Field(None, alias="BOXES")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        columns = (self.masks, self.classes, self.scores, self.boxes)
        lengths = [len(column) for column in columns if column is not None]
        if len(set(lengths)) != 1:
            raise ValueError(f"MASKS, CLASSES, SCORES and BOXES must be of one length, got {lengths}")
        return self


class Case(_Json):
    """One image of the set with its expected answer."""

    image: Annotated[str, AfterValidator(_inside)]
    tolerance: Tolerance = Tolerance()
    expected: Expected


class GoldenSet(_Json):
    """The content of golden.json."""

    cases: tuple[Case, ...] = Field(min_length=1)


def load(folder: Path) -> GoldenSet:
    """Read the set in `folder`; raises `GoldenError` where it, or an image that it names, cannot be read."""
    try:
        golden = GoldenSet.model_validate_json((folder / GOLDEN_FILE).read_bytes())
    except OSError as error:
        raise GoldenError(f"{folder / GOLDEN_FILE} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise GoldenError(f"{GOLDEN_FILE}: {place or 'the file'}: {first['msg']}") from error
    missing = [case.image for case in golden.cases if not (folder / case.image).is_file()]
    if missing:
        raise GoldenError(f"{GOLDEN_FILE} names images that are not in the folder: {', '.join(missing)}")
    return golden


def compare(case: Case, answer: Answer) -> None:
    """Check an answer asked with `encoding=rle` against the expected one.

    Raises `GoldenError` that names the image, the tensor, what was seen and what is tolerated.
    """
    _require_finite(case.image, answer)
    size = tuple(int(number) for number in _output(case.image, answer, "SIZE"))
    if size != case.expected.size:
        raise GoldenError(f"{case.image}: SIZE is {size}; expected {case.expected.size}")
    if case.expected.scores is None:
        _compare_semantic(case, answer)
    else:
        _compare_instances(case, answer)


def record(answer: Answer, image_name: str, tolerance: Tolerance | None = None) -> dict[str, Any]:
    """Return the JSON of a case that expects `answer`, which was asked with `encoding=rle`."""
    outputs: dict[str, Any] = {
        "SIZE": _output(image_name, answer, "SIZE").tolist(),
        "CLASSES": _output(image_name, answer, "CLASSES").tolist(),
        "MASKS": [_text(mask) for mask in _output(image_name, answer, "MASKS")],
    }
    if "SCORES" in answer:
        outputs["SCORES"] = answer["SCORES"].tolist()
        outputs["BOXES"] = answer["BOXES"].tolist()
    case = Case(image=image_name, tolerance=tolerance or Tolerance(), expected=Expected.model_validate(outputs))
    return case.model_dump(mode="json", by_alias=True, exclude_none=True)


def builtin_image() -> bytes:
    """Return the built-in PNG that proves a pipeline where no golden set is given."""
    return resources.files("segserve_builder").joinpath("assets/proof.png").read_bytes()


def check_builtin(first: Answer, second: Answer) -> None:
    """Check that two answers to the built-in image are finite and equal; raises `GoldenError`."""
    import numpy as np

    _require_finite("the built-in image", first)
    if first.keys() != second.keys():
        raise GoldenError(f"the built-in image was answered with {sorted(first)}, then with {sorted(second)}")
    for name, array in first.items():
        again = second[name]
        if array.dtype.kind == "f" and array.shape == again.shape:
            equal = np.allclose(array, again, rtol=REPEAT_TOLERANCE, atol=REPEAT_TOLERANCE)
        else:
            equal = np.array_equal(array, again)
        if not equal:
            raise GoldenError(f"the built-in image: {name} differs between two equal requests")


def _compare_semantic(case: Case, answer: Answer) -> None:
    expected = case.expected
    classes = _output(case.image, answer, "CLASSES").tolist()
    if sorted(classes) != sorted(expected.classes):
        raise GoldenError(f"{case.image}: CLASSES is {classes}; expected {list(expected.classes)}")
    masks = _masks(case, answer, len(classes))
    for number, mask in zip(expected.classes, expected.masks, strict=True):
        seen = _mask_iou([masks[classes.index(number)]], [mask], expected.size)[0][0]
        if seen < case.tolerance.iou:
            least = case.tolerance.iou
            raise GoldenError(f"{case.image}: MASKS of class {number}: IoU {seen:.4f}; at least {least} is tolerated")


def _compare_instances(case: Case, answer: Answer) -> None:
    expected, found = case.expected, len(_output(case.image, answer, "SCORES"))
    if found != len(expected.masks):
        raise GoldenError(f"{case.image}: SCORES has {found} instances; expected {len(expected.masks)}")
    overlaps = _mask_iou(_masks(case, answer, found), expected.masks, expected.size)
    classes = _output(case.image, answer, "CLASSES").tolist()
    free = list(range(found))
    for index, number in enumerate(expected.classes):
        same = [candidate for candidate in free if classes[candidate] == number]
        best = max(same, key=lambda candidate: overlaps[candidate][index], default=None)
        where = f"{case.image}: instance {index} of class {number}"
        seen = 0.0 if best is None else overlaps[best][index]
        if best is None or seen < case.tolerance.iou:
            raise GoldenError(f"{where}: MASKS: best IoU {seen:.4f}; at least {case.tolerance.iou} is tolerated")
        free.remove(best)
        _compare_score(where, case, index, answer["SCORES"][best])
        _compare_box(where, case, index, _output(case.image, answer, "BOXES")[best])


def _compare_score(where: str, case: Case, index: int, seen: float) -> None:
    expected = (case.expected.scores or ())[index]
    if abs(float(seen) - expected) > case.tolerance.score:
        tolerated = f"{expected} within {case.tolerance.score} is tolerated"
        raise GoldenError(f"{where}: SCORES is {float(seen):.4f}; {tolerated}")


def _compare_box(where: str, case: Case, index: int, seen: Sequence[float]) -> None:
    from pycocotools import mask as coco

    if case.expected.boxes is None:
        return
    pair = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (seen, case.expected.boxes[index])]
    overlap = float(coco.iou(pair[:1], pair[1:], [0])[0][0])
    if overlap < case.tolerance.iou - ROUNDING:
        raise GoldenError(f"{where}: BOXES: IoU {overlap:.4f}; at least {case.tolerance.iou} is tolerated")


def _mask_iou(found: Sequence[str], expected: Sequence[str], size: tuple[int, int]) -> list[list[float]]:
    """Return the IoU of each found with each expected mask; two empty masks are equal."""
    from pycocotools import mask as coco

    if not found or not expected:
        return []
    left, right = ([{"size": size, "counts": counts.encode()} for counts in group] for group in (found, expected))
    areas = coco.area(left)[:, None] + coco.area(right)[None, :]
    overlaps = coco.iou(left, right, [0] * len(right))
    overlaps[areas == 0] = 1.0
    return [[float(value) for value in row] for row in overlaps]


def _masks(case: Case, answer: Answer, count: int) -> list[str]:
    masks = [_text(mask) for mask in _output(case.image, answer, "MASKS")]
    if len(masks) != count:
        raise GoldenError(f"{case.image}: MASKS has {len(masks)} items; expected {count}, one each")
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


def _text(mask: Any) -> str:
    return mask.decode("ascii") if isinstance(mask, bytes) else str(mask)
