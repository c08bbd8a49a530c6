from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segserve_builder.errors import BadImageError
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.resize import Resize
from segserve_builder.values import Image, ResizeTransform

RNG = np.random.default_rng(3)
SIDE = st.integers(1, 3000)
METHODS = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}
MODES: list[dict[str, Any]] = [
    {"mode": "stretch", "height": 30, "width": 41},
    {"mode": "letterbox", "size": 64},
    {"mode": "letterbox", "height": 48, "width": 80},
    {"mode": "shortSide", "size": 20, "maxSize": 33, "multipleOf": 32},
    {"mode": "keep", "multipleOf": 16, "padding": "edge"},
    {"mode": "keep"},
]


def picture(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True).astype(dtype)


def resize(pixels: np.ndarray, **options: Any) -> Image:
    return Resize.model_validate(options)(Image(pixels, ResizeTransform.of(*pixels.shape[:2])), RequestOptions())


def ultralytics_letterbox(image: np.ndarray, new_shape: tuple[int, int], stride: int | None = None) -> np.ndarray:
    """LetterBox(new_shape, auto=stride is not None, scaleup=True, center=True, stride) as ultralytics writes it."""
    shape = image.shape[:2]
    r = min(new_shape[0] / shape[0], new_shape[1] / shape[1])
    new_unpad = round(shape[1] * r), round(shape[0] * r)
    dw, dh = new_shape[1] - new_unpad[0], new_shape[0] - new_unpad[1]
    if stride is not None:
        dw, dh = np.mod(dw, stride), np.mod(dh, stride)
    dw, dh = dw / 2, dh / 2
    if shape[::-1] != new_unpad:
        image = cv2.resize(image, new_unpad, interpolation=cv2.INTER_LINEAR)
    top, bottom = round(dh - 0.1), round(dh + 0.1)
    left, right = round(dw - 0.1), round(dw + 0.1)
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))


def detectron2_output_shape(oldh: int, oldw: int, short: int, max_size: int) -> tuple[int, int]:
    """ResizeShortestEdge.get_output_shape as detectron2 writes it."""
    scale = short * 1.0 / min(oldh, oldw)
    newh, neww = (short, scale * oldw) if oldh < oldw else (scale * oldh, short)
    if max(newh, neww) > max_size:
        scale = max_size * 1.0 / max(newh, neww)
        newh, neww = newh * scale, neww * scale
    return int(newh + 0.5), int(neww + 0.5)


@pytest.mark.parametrize("shape", [(303, 384), (640, 480), (31, 57), (1, 1), (99, 100), (640, 640), (7, 500)])
@pytest.mark.parametrize("target", [(640, 640), (384, 640), (97, 131)])
def test_letterbox_gives_the_pixels_of_ultralytics(shape: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = picture(*shape)
    given = resize(pixels, mode="letterbox", height=target[0], width=target[1])
    np.testing.assert_array_equal(given.pixels, ultralytics_letterbox(pixels, target))


@pytest.mark.parametrize("shape", [(303, 384), (640, 480), (31, 57), (99, 100), (640, 640), (33, 500)])
@pytest.mark.parametrize(("target", "stride"), [((640, 640), 32), ((384, 640), 64)])
def test_letterbox_to_a_multiple_gives_the_pixels_of_ultralytics_rectangles(
    shape: tuple[int, int], target: tuple[int, int], stride: int
) -> None:
    pixels = picture(*shape)
    options = Resize(mode="letterbox", height=target[0], width=target[1], multiple_of=stride)
    given = resize(pixels, **options.model_dump(by_alias=True, exclude_unset=True))
    np.testing.assert_array_equal(given.pixels, ultralytics_letterbox(pixels, target, stride))
    assert options.fixed_size is None


@given(SIDE, SIDE, st.integers(1, 1000), st.integers(1, 1000))
def test_a_letterboxed_image_lies_centred_touches_two_sides_and_keeps_its_aspect(
    height: int, width: int, input_height: int, input_width: int
) -> None:
    placed = Resize(mode="letterbox", height=input_height, width=input_width).place(height, width)
    bottom = placed.input_height - placed.top - placed.inner_height
    right = placed.input_width - placed.left - placed.inner_width
    assert (placed.input_height, placed.input_width) == (input_height, input_width)
    assert min(placed.top, placed.left, bottom, right) >= 0
    assert 0 <= bottom - placed.top <= 1
    assert 0 <= right - placed.left <= 1
    assert placed.inner_height == input_height or placed.inner_width == input_width
    scale = min(input_height / height, input_width / width)
    assert abs(placed.inner_height - height * scale) <= 1
    assert abs(placed.inner_width - width * scale) <= 1


@given(SIDE, SIDE, st.integers(1, 900), st.integers(0, 900), st.integers(1, 64))
def test_short_side_follows_detectron2_and_pads_bottom_and_right(
    height: int, width: int, size: int, more: int, multiple: int
) -> None:
    placed = Resize(mode="shortSide", size=size, max_size=size + more, multiple_of=multiple).place(height, width)
    expected = detectron2_output_shape(height, width, size, size + more)
    assert (placed.inner_height, placed.inner_width) == tuple(max(1, side) for side in expected)
    assert max(placed.inner_height, placed.inner_width) <= size + more
    assert (placed.top, placed.left) == (0, 0)
    assert placed.input_height % multiple == placed.input_width % multiple == 0
    assert 0 <= placed.input_height - placed.inner_height < multiple
    assert 0 <= placed.input_width - placed.inner_width < multiple


@given(SIDE, SIDE, st.sampled_from(MODES))
def test_the_image_lies_within_the_input_and_the_numbers_cross_unchanged(
    height: int, width: int, options: dict[str, Any]
) -> None:
    placed = Resize.model_validate(options).place(height, width)
    assert (placed.height, placed.width) == (height, width)
    assert placed.top >= 0
    assert placed.left >= 0
    assert placed.inner_height >= 1
    assert placed.inner_width >= 1
    assert placed.top + placed.inner_height <= placed.input_height
    assert placed.left + placed.inner_width <= placed.input_width
    assert ResizeTransform.from_numbers(np.asarray(placed.to_numbers(), np.int32)) == placed


@pytest.mark.parametrize("padding", [{"padding": "edge"}, {"padValue": 9}, {}], ids=str)
def test_keep_pads_as_numpy_pads(padding: dict[str, Any]) -> None:
    pixels = picture(303, 384, 1)
    mode: dict[str, Any] = (
        {"mode": "edge"} if padding.get("padding") else {"constant_values": padding.get("padValue", 0)}
    )
    expected = np.pad(pixels, ((0, 1), (0, 0), (0, 0)), **mode)
    given = resize(pixels, mode="keep", multipleOf=16, **padding)
    np.testing.assert_array_equal(given.pixels, expected)
    assert given.transform == ResizeTransform(303, 384, 0, 0, 303, 384, 304, 384)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", METHODS)
def test_stretch_is_opencv_resize(interpolation: str, channels: int, dtype: Any) -> None:
    pixels = picture(40, 53, channels, dtype)
    given = resize(pixels, mode="stretch", height=91, width=20, interpolation=interpolation)
    expected = cv2.resize(pixels, (20, 91), interpolation=METHODS[interpolation]).reshape(91, 20, channels)
    np.testing.assert_array_equal(given.pixels, expected)
    assert given.pixels.dtype == dtype
    assert given.transform == ResizeTransform(40, 53, 0, 0, 91, 20, 91, 20)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("interpolation", ["bilinear", "cubic"])
@pytest.mark.parametrize("options", MODES[:4], ids=str)
def test_antialias_resizes_as_torch_does_into_the_same_place(
    options: dict[str, Any], interpolation: str, dtype: Any
) -> None:
    import torch
    from torch.nn import functional

    pixels = picture(90, 120, 3, dtype)
    given = resize(pixels, interpolation=interpolation, antialias=True, **options)
    placed = Resize.model_validate(options).place(90, 120)
    tensor = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1).contiguous()[None]
    inner = (placed.inner_height, placed.inner_width)
    mode = "bicubic" if interpolation == "cubic" else "bilinear"
    expected = functional.interpolate(tensor, inner, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
    rows, columns = (slice(first, first + size) for first, size in zip((placed.top, placed.left), inner, strict=True))
    assert given.transform == placed
    assert given.pixels.dtype == dtype
    assert np.abs(given.pixels[rows, columns] - np.clip(expected, 0, np.iinfo(dtype).max)).max() < 0.6


@pytest.mark.parametrize("options", MODES[:4], ids=str)
def test_without_rounding_pixels_are_those_of_torch_for_float_tensors(options: dict[str, Any]) -> None:
    import torch
    from torch.nn import functional

    pixels = picture(90, 120)
    given = resize(pixels, rounding="none", **options)
    placed = Resize.model_validate(options).place(90, 120)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    inner = (placed.inner_height, placed.inner_width)
    expected = functional.interpolate(tensor, inner, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    rows, columns = (slice(first, first + size) for first, size in zip((placed.top, placed.left), inner, strict=True))
    assert given.pixels.dtype == np.float32
    np.testing.assert_allclose(given.pixels[rows, columns], expected.numpy(), atol=0.01)
    outside = given.pixels.copy()
    outside[rows, columns] = -1
    assert set(np.unique(outside)) <= {-1, 0 if options["mode"] == "shortSide" else 114}


def test_without_antialias_small_images_of_large_ones_miss_pixels() -> None:
    pixels = np.zeros((64, 64, 1), np.uint8)
    pixels[::8] = 255
    smooth = resize(pixels, mode="stretch", height=8, width=8, antialias=True).pixels
    sharp = resize(pixels, mode="stretch", height=8, width=8, antialias=False).pixels
    assert set(np.unique(sharp)) == {0}
    assert 0 < smooth.min() <= smooth.max() < 60


def test_nearest_takes_the_pixel_at_the_floor_as_torch_does() -> None:
    pixels = picture(40, 53, 1)
    rows, columns = np.arange(91) * 40 // 91, np.arange(20) * 53 // 20
    given = resize(pixels, mode="stretch", height=91, width=20, interpolation="nearest")
    np.testing.assert_array_equal(given.pixels, pixels[rows][:, columns])


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "stretch", "height": 32, "width": 48},
        {"mode": "letterbox", "height": 32, "width": 48},
        {"mode": "shortSide", "size": 32, "maxSize": 48},
        {"mode": "keep"},
        {"mode": "keep", "multipleOf": 16},
    ],
    ids=str,
)
def test_an_image_that_fits_already_is_passed_on_uncopied(options: dict[str, Any]) -> None:
    value = Image(picture(32, 48), ResizeTransform.of(32, 48))
    assert Resize.model_validate(options)(value, RequestOptions()) is value


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_pixel_fills_the_image_it_becomes(options: dict[str, Any], channels: int) -> None:
    given = resize(np.full((1, 1, channels), 77, np.uint8), **options)
    placed = given.transform
    inner = given.pixels[placed.top : placed.top + placed.inner_height, placed.left : placed.left + placed.inner_width]
    assert (inner == 77).all()
    assert given.pixels.shape == (placed.input_height, placed.input_width, channels)


def test_letterbox_grey_is_as_bright_in_16_bits() -> None:
    given = resize(picture(10, 40, 3, np.uint16), mode="letterbox", size=40)
    assert (given.pixels[0] == 114 * 257).all()
    assert (resize(picture(10, 40, 3, np.uint16), mode="letterbox", size=40, padValue=60000).pixels[0] == 60000).all()


def test_a_very_narrow_image_is_refused_where_padding_would_fill_the_memory() -> None:
    pixels = np.broadcast_to(np.uint8(1), (1, 10_000_000, 1))
    with pytest.raises(BadImageError, match=r"10000000 x 1 pixels would be padded to 10000384 x 512"):
        resize(pixels, mode="keep", multipleOf=512)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"mode": "stretch", "size": 64}, "'stretch' needs height and width and may have nothing more; got size"),
        ({"mode": "stretch", "height": 64}, "got height"),
        (
            {"mode": "letterbox"},
            "'letterbox' needs size or height and width and may have multipleOf, padValue; got",
        ),
        ({"mode": "letterbox", "size": 64, "height": 64, "width": 64}, "got height, size, width"),
        (
            {"mode": "letterbox", "size": 65, "multipleOf": 32},
            "sides of letterbox must be multiples of multipleOf",
        ),
        ({"mode": "shortSide", "size": 64}, "needs maxSize and size and may have multipleOf, padValue"),
        ({"mode": "shortSide", "size": 64, "maxSize": 32}, r"maxSize must be at least size \(64\), got 32"),
        ({"mode": "keep", "size": 64}, "'keep' needs nothing and may have multipleOf, padValue; got size"),
        ({"mode": "keep", "multipleOf": 8, "padding": "edge", "padValue": 3}, "padValue needs padding: constant"),
        ({"mode": "fit"}, "'stretch', 'letterbox', 'shortSide' or 'keep'"),
        ({"mode": "keep", "interpolation": "lanczos"}, "'bilinear', 'area', 'nearest' or 'cubic'"),
        ({"mode": "keep", "colour": "RGB"}, "colour"),
        ({"mode": "keep", "interpolation": "area", "antialias": True}, "antialias needs interpolation: bilinear or"),
        ({"mode": "keep", "rounding": "eachPass"}, "rounding: eachPass needs antialias: true"),
        ({"mode": "keep", "antialias": True, "rounding": "none"}, "rounding: none needs antialias: false"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_mode_are_refused_by_name(options: dict[str, Any], seen: str) -> None:
    with pytest.raises(ValidationError, match=seen):
        Resize.model_validate(options)
