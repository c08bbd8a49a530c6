"""What a preprocessor_config.json of transformers becomes: options of stages, and what no stage does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segserve_builder.export.image_processor import FILE_NAME, ImageProcessor, read_image_processor
from segserve_builder.stages.resize import Resize

FIXED = {"height": 96, "width": 64}
EDGES = {"shortest_edge": 800, "longest_edge": 1333}
SQUARE = {"shortest_edge": 640, "longest_edge": 640}


@pytest.mark.parametrize(
    ("config", "fixed", "options"),
    [
        pytest.param(
            {"size": FIXED},
            None,
            {"mode": "stretch", **FIXED, "antialias": True, "rounding": "eachPass"},
            id="no filter",
        ),
        pytest.param(
            {"size": FIXED, "resample": 3},
            (32, 48),
            {
                "mode": "stretch",
                "height": 32,
                "width": 48,
                "interpolation": "cubic",
                "antialias": True,
                "rounding": "eachPass",
            },
            id="bicubic, and the network's own size",
        ),
        pytest.param(
            {"size": EDGES, "resample": 2, "do_pad": True},
            None,
            {
                "mode": "shortSide",
                "size": 800,
                "maxSize": 1333,
                "antialias": True,
                "rounding": "eachPass",
                "multipleOf": 32,
            },
            id="edges; a batch of one is not padded but to the stride",
        ),
        pytest.param(
            {"size": 800, "max_size": 1333},
            None,
            {
                "mode": "shortSide",
                "size": 800,
                "maxSize": 1333,
                "antialias": True,
                "rounding": "eachPass",
                "multipleOf": 32,
            },
            id="before 4.26",
        ),
        pytest.param(
            {"size": [96, 64]},
            None,
            {"mode": "stretch", **FIXED, "antialias": True, "rounding": "eachPass"},
            id="a pair",
        ),
        pytest.param(
            {"size": 96},
            None,
            {"mode": "stretch", "height": 96, "width": 96, "antialias": True, "rounding": "eachPass"},
            id="one side",
        ),
        pytest.param(
            {"size": SQUARE, "do_pad": True},
            (640, 640),
            {
                "mode": "shortSide",
                "size": 640,
                "maxSize": 640,
                "antialias": True,
                "rounding": "eachPass",
                "multipleOf": 640,
            },
            id="padded to its longest edge",
        ),
        pytest.param(
            {"size": EDGES, "do_pad": True, "pad_size": {"height": 1344, "width": 1344}},
            (1344, 1344),
            {
                "mode": "shortSide",
                "size": 800,
                "maxSize": 1333,
                "antialias": True,
                "rounding": "eachPass",
                "multipleOf": 1344,
            },
            id="padded to a size of its own",
        ),
        pytest.param({"size": EDGES}, (800, 800), None, id="the file's size is that of an example"),
        pytest.param({"size": FIXED, "do_resize": False}, None, None, id="not resized"),
        pytest.param({}, None, None, id="nothing"),
    ],
)
def test_images_are_resized_as_its_processor_does(
    config: dict[str, Any], fixed: tuple[int, int] | None, options: dict[str, Any] | None
) -> None:
    processor = ImageProcessor(config)

    assert processor.resize(fixed, 32) == options
    assert [text.split()[0] for text in processor.not_done()] == ["pad_size"] * ("pad_size" in config)
    if options is not None:
        Resize.model_validate(options)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"resample": 0}, "resample 0"),
        ({"resample": 1}, "lanczos; cubic is used"),
        ({"do_center_crop": True, "crop_size": FIXED, "size": {"shortest_edge": 112}}, "do_center_crop to 96 x 64"),
        ({"keep_aspect_ratio": True, "size": FIXED}, "keep_aspect_ratio"),
        ({"size_divisor": 32, "size": EDGES}, "size_divisor 32"),
        ({"do_pad": True, "pad_size": {"height": 480, "width": 640}, "size": FIXED}, "pad_size 480 x 640"),
        ({"size": {"max_height": 480, "max_width": 640}}, "size 480 x 640"),
    ],
)
def test_what_no_stage_does_is_named(config: dict[str, Any], said: str) -> None:
    (named,) = ImageProcessor(config).not_done()

    assert said in named


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"image_mean": [0.5], "image_std": [0.25]}, {"mean": [0.5], "std": [0.25]}),
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": False, "rescale_factor": 1 / 255}, {}),
        ({"image_mean": [9.0], "image_std": [2.0], "do_rescale": False}, {"mean": [9.0], "std": [2.0], "scale": 1.0}),
        ({"image_mean": [0.5], "image_std": [0.25], "do_normalize": False}, None),
        pytest.param(
            {"image_processor_type": "MobileViT", "image_mean": [0.5], "do_rescale": True, "rescale_factor": 1 / 255},
            {},
            id="its class does not normalise",
        ),
    ],
)
def test_pixels_are_normalised_as_its_processor_does(config: dict[str, Any], options: dict[str, Any] | None) -> None:
    assert ImageProcessor(config).normalise == options


def test_channels_are_reversed_where_the_file_says_so(tmp_path: Path) -> None:
    assert read_image_processor(tmp_path).colour == "RGB"
    (tmp_path / FILE_NAME).write_text(json.dumps({"do_flip_channel_order": True}))
    assert read_image_processor(tmp_path).colour == "BGR"
