from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segserve_builder.errors import BadImageError, PipelineError
from segserve_builder.families.base import TensorSpec
from segserve_builder.spec.model_spec import Input
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.pipeline import PipelineStep, PreprocessStep
from segserve_builder.steps.preprocess import Preprocess
from segserve_builder.steps.preprocess_rules import check_preprocess
from segserve_builder.values import Image, ResizeTransform

RNG = np.random.default_rng(11)
RGB = RNG.integers(0, 256, (30, 44, 3)).astype(np.uint8)
GREY = RGB[..., :1]
KEEP = {"resize": {"mode": "keep", "multipleOf": 16, "padding": "edge"}}
LETTERBOX = {"resize": {"mode": "letterbox", "size": 64}}


def steps_of(*steps: dict[str, Any]) -> list[PipelineStep]:
    return [PreprocessStep.model_validate(step) for step in steps]


def network(dtype: str = "UINT8", shape: tuple[int | None, ...] = (None, 3, None, None)) -> TensorSpec:
    return TensorSpec("images", dtype, shape)


def preprocess(
    *steps: dict[str, Any], spec: Input | None = None, tensor: TensorSpec | None = None, layout: Any = "NCHW"
) -> Preprocess:
    return Preprocess(steps_of(*steps), spec or Input(), tensor or network(), layout)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(stream, "PNG", **options)
    return stream.getvalue()


def test_an_image_file_and_its_pixels_give_the_same_input() -> None:
    run = preprocess(LETTERBOX, {"normalise": {}}, tensor=network("FP32"))
    from_file, from_pixels = run(png(RGB), None), run(None, RGB)
    np.testing.assert_array_equal(from_file.tensor, from_pixels.tensor)
    assert from_file.transform == from_pixels.transform == ResizeTransform(30, 44, 10, 0, 44, 64, 64, 64)


def test_pixels_of_16_bits_meet_the_window_as_a_file_of_them_does() -> None:
    import cv2

    deep = RGB.astype(np.uint16) * 16
    spec, decode = Input(dtype="UINT16"), {"decode": {"window": [0, 4095]}}
    run = preprocess(decode, {"normalise": {}}, spec=spec, tensor=network("FP32"))
    tiff = bytes(cv2.imencode(".tiff", deep[..., ::-1])[1])

    from_file, from_pixels = run(tiff, None).tensor, run(None, deep).tensor

    np.testing.assert_array_equal(from_file, from_pixels)
    np.testing.assert_allclose(from_file[0], deep.transpose(2, 0, 1) / 4095, atol=1e-4)


@pytest.mark.parametrize("window", [[5, 5], [9, 3], [-1, 4], [0, 65536], [0], "12 bits"])
def test_a_window_that_is_none_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        steps_of({"decode": {"window": window}})


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_only_the_networks_input_is_blue_first(depth: Any, normalise: bool, layout: str) -> None:
    pixels = RGB if depth == np.uint8 else RGB.astype(np.uint16) * np.uint16(257)
    mean, deviation = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    spec = Input(colour="BGR", dtype="UINT8" if depth == np.uint8 else "UINT16")
    tensor = network(
        "FP32" if normalise else spec.dtype, (None, 3, None, None) if layout == "NCHW" else (None, None, None, 3)
    )
    steps = steps_of(KEEP, *([{"normalise": {"mean": mean.tolist(), "std": deviation.tolist()}}] if normalise else []))
    run = Preprocess(steps, spec, tensor, layout, guided=True)  # type: ignore[arg-type]

    made = run(None, pixels[::-1])

    blue_first = np.pad(pixels[::-1, :, ::-1], ((0, 2), (0, 4), (0, 0)), mode="edge")
    expected = ((blue_first / np.iinfo(depth).max - mean) / deviation).astype(np.float32) if normalise else blue_first
    np.testing.assert_array_equal(made.tensor[0], expected.transpose(2, 0, 1) if layout == "NCHW" else expected)
    np.testing.assert_array_equal(made.guide, RGB[::-1])
    if depth == np.uint8:
        np.testing.assert_array_equal(run(png(pixels[::-1]), None).tensor, made.tensor)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "GREY"])
def test_the_result_is_a_batch_of_one_in_the_network_s_layout(layout: str, pixels: np.ndarray) -> None:
    channels = pixels.shape[2]
    shape = (None, channels, None, None) if layout == "NCHW" else (None, None, None, channels)
    run = preprocess(spec=Input(colour="RGB" if channels == 3 else "GREY"), tensor=network(shape=shape), layout=layout)
    given = run(None, pixels)
    np.testing.assert_array_equal(given.tensor, (pixels.transpose(2, 0, 1) if layout == "NCHW" else pixels)[None])
    assert given.tensor.flags.c_contiguous
    assert given.tensor.dtype == np.uint8
    assert given.transform == ResizeTransform.of(30, 44)


def test_the_coins_path_is_the_training_s_own_padding() -> None:
    run = preprocess({"decode": {}}, KEEP, spec=Input(colour="GREY"), tensor=network(shape=(None, 1, None, None)))
    given = run(png(GREY), None)
    expected = np.pad(GREY[..., 0], ((0, -30 % 16), (0, -44 % 16)), mode="edge")[None, None]
    np.testing.assert_array_equal(given.tensor, expected)
    assert given.transform == ResizeTransform(30, 44, 0, 0, 30, 44, 32, 48)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("FP32", np.float32), ("FP16", np.float16)])
def test_normalised_pixels_come_in_the_network_s_float_type(dtype: str, numpy_dtype: Any) -> None:
    given = preprocess({"normalise": {}}, tensor=network(dtype))(None, RGB).tensor
    assert given.dtype == numpy_dtype
    np.testing.assert_array_equal(given[0], (RGB.transpose(2, 0, 1) / 255).astype(np.float32).astype(numpy_dtype))


@pytest.mark.parametrize(
    "resize", [KEEP, LETTERBOX, {"resize": {"mode": "stretch", "height": 20, "width": 90}}], ids=str
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
@pytest.mark.parametrize("smooth", [{}, {"antialias": True}, {"rounding": "none"}], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", ["UINT8", "UINT16"])
def test_the_input_is_what_the_stages_make_one_after_the_other(
    resize: dict[str, Any], layout: str, dtype: str, smooth: dict[str, Any], channels: int, depth: str
) -> None:
    if "rounding" in smooth and depth == "UINT16":
        smooth = {}  # it is refused
    steps = ({"resize": resize["resize"] | smooth}, {"normalise": {"mean": [0.485], "std": [0.229]}})
    pixels = RNG.integers(0, 256 if depth == "UINT8" else 65536, (33, 47, channels)).astype(depth.lower())
    shape = (None, channels, None, None) if layout == "NCHW" else (None, None, None, channels)
    spec = Input(dtype=depth, colour="RGB" if channels == 3 else "GREY")
    value = Image(pixels, ResizeTransform.of(33, 47))
    for step in steps_of(*steps):
        value = step.stage(value, RequestOptions())
    expected = value.pixels.transpose(2, 0, 1) if layout == "NCHW" else value.pixels

    made = preprocess(*steps, spec=spec, tensor=network(dtype, shape), layout=layout)(None, pixels)

    np.testing.assert_array_equal(made.tensor[0], expected.astype({"FP32": np.float32, "FP16": np.float16}[dtype]))
    assert made.tensor.flags.c_contiguous
    assert made.transform == value.transform


def test_uint16_goes_through_unscaled() -> None:
    wide = RNG.integers(0, 65536, (30, 44, 1)).astype(np.uint16)
    spec = Input(dtype="UINT16", colour="GREY")
    run = preprocess(KEEP, spec=spec, tensor=network("UINT16", (None, 1, None, None)))
    given = run(png(wide), None).tensor
    np.testing.assert_array_equal(given[0, 0, :30, :44], wide[..., 0])


def test_decode_happens_with_its_defaults_where_it_is_not_listed() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = png(RGB, exif=exif)
    placed = preprocess()(data, None).transform
    assert (placed.height, placed.width) == (44, 30)
    placed = preprocess({"decode": {"orientation": "ignore"}})(data, None).transform
    assert (placed.height, placed.width) == (30, 44)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", ["UINT8", "UINT16"])
def test_whole_numbers_come_as_planes_too(depth: str, channels: int) -> None:
    pixels = RNG.integers(0, 256 if depth == "UINT8" else 65536, (33, 47, channels)).astype(depth.lower())
    spec = Input(dtype=depth, colour="RGB" if channels == 3 else "GREY")
    made = preprocess(spec=spec, tensor=network(depth, (None, channels, None, None)))(None, pixels[::-1, ::2])
    np.testing.assert_array_equal(made.tensor[0], pixels[::-1, ::2].transpose(2, 0, 1))
    assert made.tensor.dtype == pixels.dtype
    assert made.tensor.flags.c_contiguous


@pytest.mark.parametrize("steps", [(), (KEEP,), (LETTERBOX,)], ids=str)
def test_an_image_of_one_pixel_goes_through(steps: tuple[dict[str, Any], ...]) -> None:
    given = preprocess(*steps)(png(np.full((1, 1, 3), 9, np.uint8)), None)
    placed = given.transform
    assert given.tensor.shape == (1, 3, placed.input_height, placed.input_width)
    assert (given.tensor[0, :, placed.top, placed.left] == 9).all()


@pytest.mark.parametrize(
    ("image", "pixels", "seen"),
    [
        (None, None, "exactly one of IMAGE and PIXELS; this one has neither"),
        (png(RGB), RGB, "exactly one of IMAGE and PIXELS; this one has both"),
        (b"", None, "it is empty"),
        (None, RGB.astype(np.float32), "PIXELS has dtype 'float32'; allowed is UINT8"),
        (None, RGB.astype(np.uint16), "PIXELS has dtype 'uint16'; allowed is UINT8"),
        (None, GREY, r"PIXELS has shape \[30, 44, 1\]; allowed is \[height, width, 3\] \(RGB\)"),
        (None, RGB[..., 0], r"PIXELS has shape \[30, 44\]"),
        (None, RGB[None], r"PIXELS has shape \[1, 30, 44, 3\]"),
        (None, RGB[:0], r"PIXELS has shape \[0, 44, 3\]"),
    ],
)
def test_a_request_that_cannot_be_used_is_told_what_was_seen_and_what_is_allowed(
    image: bytes | None, pixels: np.ndarray | None, seen: str
) -> None:
    with pytest.raises(BadImageError, match=seen):
        preprocess()(image, pixels)


def test_the_limit_on_pixels_holds_for_both_inputs() -> None:
    run = preprocess(spec=Input(max_pixels=30 * 44 - 1))
    for image, pixels in ((png(RGB), None), (None, RGB)):
        with pytest.raises(BadImageError, match=r"44 x 30 = 1320 pixels; allowed are 1 to 1319 \(input.maxPixels\)"):
            run(image, pixels)


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (None, 3, 32, None)), ("NHWC", (None, 32, None, 3))])
def test_an_image_of_another_size_than_a_fixed_network_is_refused_with_both_sizes(layout: str, shape: Any) -> None:
    run = preprocess(tensor=network(shape=shape), layout=layout)
    assert run(None, np.zeros((32, 7, 3), np.uint8)).transform == ResizeTransform.of(32, 7)
    seen = "image of 44 x 30 pixels makes an input of 44 x 30; the network's 'images' is any x 32"
    with pytest.raises(BadImageError, match=seen):
        run(None, RGB)


@pytest.mark.parametrize(
    ("steps", "spec", "tensor", "seen"),
    [
        ((), {}, network("FP32"), r"'images' is FP32; the preprocess stages give UINT8 .*`normalise` gives FP32"),
        (({"normalise": {}},), {}, network("UINT8"), "'images' is UINT8; the preprocess stages give FP32"),
        ((), {"dtype": "UINT16"}, network("UINT8"), "'images' is UINT8; the preprocess stages give UINT16"),
        ((), {"colour": "GREY"}, network(), "'images' has 3 channels; input.colour GREY gives 1"),
        ((), {}, network(shape=(None, 3, 64)), "allowed are four axes, NCHW"),
        ((LETTERBOX,), {}, network(shape=(None, 3, 64, 96)), "'images' is 64 x 96; resize gives 64 x 64"),
        (
            (KEEP, {"decode": {}}),
            {},
            network(),
            "each at most once; got resize, decode",
        ),
        ((KEEP, KEEP), {}, network(), "each at most once; got resize, resize"),
        (({"normalise": {}}, KEEP), {}, network("FP32"), "got normalise, resize"),
        (
            ({"normalise": {"mean": [0.1, 0.2]}},),
            {},
            network("FP32"),
            "normalise mean takes 1 or 3 numbers for RGB, got 2",
        ),
        (
            ({"resize": {"mode": "letterbox", "size": 8, "padValue": 300}},),
            {},
            network(),
            r"0\.\.255 for UINT8, got 300",
        ),
        (
            [{"resize": {"mode": "keep", "rounding": "none"}}],
            {},
            network(),
            "rounding none needs input.dtype UINT8 and the stage normalise; got UINT8 and resize",
        ),
        (
            [{"resize": {"mode": "keep", "rounding": "none"}}, {"normalise": {}}],
            {"dtype": "UINT16"},
            network("FP32"),
            "rounding none needs input.dtype UINT8 and the stage normalise; got UINT16",
        ),
    ],
)
def test_stages_that_fit_neither_each_other_nor_the_network_are_refused(
    steps: Any, spec: dict[str, Any], tensor: TensorSpec, seen: str
) -> None:
    with pytest.raises(PipelineError, match=seen):
        preprocess(*steps, spec=Input(**spec), tensor=tensor)


def test_the_stages_in_order_pass_and_so_does_none() -> None:
    check_preprocess(steps_of({"decode": {}}, LETTERBOX, {"normalise": {}}), Input())
    check_preprocess([], Input())


def test_options_are_read_without_numpy_or_opencv() -> None:
    import subprocess
    import sys

    code = "import sys, segserve_builder.steps.preprocess_rules; print({'numpy', 'cv2', 'PIL'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_an_image_is_measured_without_numba_or_scipy() -> None:
    import subprocess
    import sys

    code = """
import sys
import numpy as np
from segserve_builder.families.base import TensorSpec
from segserve_builder.spec.model_spec import Input
from segserve_builder.steps.preprocess import Preprocess
run = Preprocess([], Input(), TensorSpec("images", "UINT8", (None, 3, None, None)), "NCHW", measures=True)
print(run(None, np.full((30, 44, 3), 255, np.uint8)).statistics.brightness, {"numba", "scipy"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "1.0 set()"
