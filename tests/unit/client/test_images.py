"""Every form of an image reaches the server as the same pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from segserve.errors import BadRequestError
from segserve.images import image_tensor, picture

from .conftest import png

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def test_files_bytes_and_open_files_are_sent_as_they_are(tmp_path: Path) -> None:
    data = png(PIXELS)
    path = tmp_path / "a.png"
    path.write_bytes(data)

    with path.open("rb") as opened:
        forms = [path, str(path), data, bytearray(data), memoryview(data), opened, io.BytesIO(data)]
        tensors = [image_tensor(form) for form in forms]

    assert {(tensor.name, tensor.shape, tensor.to_items()) for tensor in tensors} == {("IMAGE", (1,), (data,))}


@pytest.mark.parametrize(
    "view", [PIXELS, PIXELS[:, ::-1], np.asfortranarray(PIXELS), PIXELS[:, :, :1], PIXELS[:, :, 0]]
)
def test_arrays_are_sent_as_pixels_whatever_their_layout_in_memory(view: np.ndarray) -> None:
    tensor = image_tensor(view)

    assert tensor.name == "PIXELS"
    np.testing.assert_array_equal(tensor.to_array(), view.reshape(*view.shape[:2], -1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_pil_image_is_sent_as_a_png_of_the_same_pixels(mode: str) -> None:
    image = (
        Image.fromarray(PIXELS.astype(np.uint16)[:, :, 0]) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    )

    (data,) = image_tensor(image).to_items()

    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")), np.asarray(image.convert("RGBA"))
    )


def test_a_pil_image_is_turned_as_its_exif_data_says_and_only_once() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    turned = np.rot90(PIXELS, -1)

    (data,) = image_tensor(Image.open(buffer)).to_items()

    sent = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(sent), turned)
    assert sent.getexif().get(0x0112, 1) == 1
    np.testing.assert_array_equal(np.asarray(picture(buffer.getvalue())), turned)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(PIXELS / 255, "float64", id="floats"),
        pytest.param(PIXELS.ravel(), r"\(105,\)", id="one dimension"),
        pytest.param(PIXELS.transpose(2, 0, 1), r"\(3, 5, 7\)", id="channels first"),
        pytest.param(PIXELS[:0], r"\(0, 7, 3\)", id="no rows"),
        pytest.param(None, "NoneType", id="nothing"),
        pytest.param(io.StringIO("text"), "binary", id="a text file"),
        pytest.param(Image.new("F", (4, 4)), "'F'", id="a mode that PNG does not have"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_what_was_seen(image: object, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        image_tensor(image)  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image_tensor(tmp_path / "none.png")


def test_sixteen_bits_are_drawn_scaled_not_clipped() -> None:
    deep = np.full((3, 4), 0x8000, np.uint16)
    for image in (deep, Image.fromarray(deep), png(deep)):
        assert np.asarray(picture(image)).tolist() == np.full((3, 4, 3), 0x80).tolist()


def test_bytes_that_are_no_image_cannot_be_drawn_on() -> None:
    with pytest.raises(BadRequestError, match="cannot be read"):
        picture(b"no image")
