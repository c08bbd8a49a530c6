"""What becomes of a request's image and answer: reasons, redaction, and that nothing but pixels is kept of a file."""

from __future__ import annotations

import io
import json
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segserve_builder.capture.rule import CapturedClass, CaptureReason, CaptureRule, RedactionRule
from segserve_builder.capture.samples import Exchange, UnredactedError, make_sample, read_pixels, uncertainty_of
from segserve_builder.errors import BadImageError
from segserve_common.kserve import Tensor

CANARY = b"canary-4711"
SIDE = 64
RULE = CaptureRule(
    group="main",
    revision="coins-1",
    share=1.0,
    per_minute=60,
    sink="file:///samples",
    retention_s=3600.0,
    classes=(CapturedClass(id=0, name="coin"), CapturedClass(id=1, name="face")),
    max_pixels=10_000,
    threshold=0.5,
)


def encoded(bitmap: NDArray[np.bool_]) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]
    return counts


def region(top: int, left: int) -> NDArray[np.bool_]:
    bitmap = np.zeros((SIDE, SIDE), bool)
    bitmap[top : top + 10, left : left + 10] = True
    return bitmap


def objects(*found: tuple[int, float, NDArray[np.bool_]]) -> dict[str, Any]:
    masks = np.array([encoded(bitmap) for _, _, bitmap in found] or [b""], object)[: len(found)]
    boxes = [(0.0, 0.0, 10.0, 10.0) for _ in found]
    return {
        "SIZE": np.array([SIDE, SIDE], np.int32),
        "CLASSES": np.array([number for number, _, _ in found], np.int32),
        "SCORES": np.array([score for _, score, _ in found], np.float32),
        "BOXES": np.array(boxes, np.float32).reshape(-1, 4),
        "MASKS": masks,
    }


def photo(kind: str = "JPEG", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(100, 250, (SIDE, SIDE, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, **options)
    return written.getvalue()


def exchange(content: bytes = photo(), **parts: Any) -> Exchange:
    given = {"answer": objects((0, 0.9, region(20, 20))), **parts}
    image = Tensor.of_items("IMAGE", [content])
    return Exchange("request-1", 1_763_800_000.5, "coins", "camera-7", {}, image, **given)


def reasons(rule: CaptureRule, **parts: Any) -> tuple[str, ...]:
    sample = make_sample(exchange(**parts), rule)
    return () if sample is None else sample.row.reasons


def when(*names: str) -> CaptureRule:
    return RULE.model_copy(update={"when": tuple(map(CaptureReason, names))})


def pixels_of(image: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))


EXIF = Image.Exif()
EXIF[0x010E] = CANARY.decode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(photo(exif=EXIF, comment=CANARY) + CANARY, id="JPEG"),
        pytest.param(photo("PNG", exif=EXIF) + CANARY, id="PNG"),
        pytest.param(photo("WEBP", exif=EXIF, xmp=CANARY), id="WebP"),
        pytest.param(photo(icc_profile=CANARY * 20), id="colour profile"),
    ],
)
def test_nothing_but_pixels_is_kept_of_a_file(content: bytes) -> None:
    assert CANARY in content
    sample = make_sample(exchange(content), RULE)

    assert sample is not None
    assert CANARY not in sample.image + (sample.annotations or b"") + sample.row.to_line()
    assert not Image.open(io.BytesIO(sample.image)).getexif()
    difference = pixels_of(sample.image).astype(int) - pixels_of(content)
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("method", ["fill", "blur"])
def test_redacted_classes_are_gone_from_the_image_and_the_rest_stays(method: Any) -> None:
    face = region(30, 30)
    rule = RULE.model_copy(update={"redact": RedactionRule(ids=(1,), method=method)})
    content = photo("PNG")
    sample = make_sample(exchange(content, answer=objects((0, 0.9, region(5, 5)), (1, 0.9, face))), rule)

    assert sample is not None
    before, after = pixels_of(content), pixels_of(sample.image)
    assert np.array_equal(before[:20, :20], after[:20, :20])
    detail = after[face].std(0).max()
    assert detail < before[face].std(0).min() / 4
    assert sample.row.redacted == (method,)


def test_what_cannot_be_redacted_is_not_kept() -> None:
    rule = RULE.model_copy(update={"redact": RedactionRule(ids=(1,), model="faces", group="main")})
    errors = when("error").model_copy(update={"redact": RedactionRule(ids=(1,))})
    other_size = objects() | {"SIZE": np.array([SIDE, 2 * SIDE], np.int32)}

    with pytest.raises(UnredactedError):
        make_sample(exchange(redactor=None), rule)
    with pytest.raises(UnredactedError):
        make_sample(exchange(answer=None), errors)
    with pytest.raises(UnredactedError):
        make_sample(exchange(redactor=other_size), rule)


def test_the_mask_of_another_model_redacts() -> None:
    rule = RULE.model_copy(update={"redact": RedactionRule(ids=(7,), model="faces", group="main")})
    sample = make_sample(exchange(photo("PNG"), redactor=objects((7, 0.9, region(40, 40)))), rule)

    assert sample is not None
    assert not pixels_of(sample.image)[region(40, 40)].any()


def test_each_reason_is_met_by_its_own_answers_alone() -> None:
    sure, near = objects((0, 0.9, region(20, 20))), objects((0, 0.55, region(20, 20)))

    assert reasons(when("uncertain"), answer=near) == ("uncertain",)
    assert reasons(when("uncertain"), answer=sure) == ()
    assert reasons(when("empty"), answer=objects()) == ("empty",)
    assert reasons(when("empty"), answer=sure) == ()
    assert reasons(when("error"), answer=None) == ("error",)
    assert reasons(when("error"), answer=sure) == ()
    assert reasons(when("disagree"), answer=sure, other=objects((0, 0.9, region(45, 45)))) == ("disagree",)
    assert reasons(when("disagree"), answer=sure, other=sure) == ()
    assert reasons(when("disagree"), answer=sure, other=None) == ()
    assert reasons(when("empty", "uncertain"), answer=near) == ("uncertain",)
    assert reasons(RULE, answer=sure) == ("share",)


def test_maps_of_low_confidence_are_uncertain() -> None:
    def answer(confidence: float) -> dict[str, Any]:
        return {
            "SIZE": np.array([SIDE, SIDE], np.int32),
            "CLASSES": np.array([0, 1], np.int32),
            "AREAS": np.array([3000, 1096], np.int64),
            "CONFIDENCE": np.array([confidence, confidence], np.float32),
            "MASKS": np.array([encoded(~region(0, 0)), encoded(region(0, 0))], object),
        }

    assert uncertainty_of(answer(0.6), None) == pytest.approx(0.4, abs=1e-6)
    assert reasons(when("uncertain"), answer=answer(0.6)) == ("uncertain",)
    assert reasons(when("uncertain"), answer=answer(0.95)) == ()


def test_the_row_says_where_a_sample_comes_from_and_the_annotations_are_the_answer() -> None:
    sample = make_sample(exchange(), RULE)

    assert sample is not None
    row = sample.row
    assert (row.request_id, row.revision, row.slice, row.size) == ("request-1", "coins-1", "camera-7", (SIDE, SIDE))
    assert row.key == f"1763800000500-{row.key[-16:]}"
    document = json.loads(sample.annotations or b"")
    (entry,) = document["annotations"]
    assert (entry["category_id"], entry["area"], entry["score"]) == (0, 100.0, pytest.approx(0.9))
    assert document["images"][0]["file_name"] == row.image.removeprefix("images/")
    assert [each["name"] for each in document["categories"]] == ["coin", "face"]


def test_an_image_that_cannot_be_read_is_no_sample() -> None:
    with pytest.raises(BadImageError):
        make_sample(exchange(b"no image"), RULE)


@pytest.mark.parametrize("dtype", ["UINT8", "UINT16"])
def test_a_sample_of_16_bits_shows_what_the_network_saw(dtype: Any) -> None:
    deep = np.full((9, 9, 3), 2048, np.uint16)
    window = (0, 4095) if dtype == "UINT8" else None
    image = Tensor.of_items("IMAGE", [bytes(cv2.imencode(".png", deep)[1])])

    pixels = read_pixels(image, RULE.model_copy(update={"dtype": dtype, "window": window}))

    assert (pixels == (2048 * 65535 // 4095 >> 8 if dtype == "UINT8" else 2048)).all()
