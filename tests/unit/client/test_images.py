"""Every form of an image reaches the server as the same pixels."""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
import requests
from PIL import Image

from fakes.waiting import HANG_S
from segserve.results.images import image_tensor, picture, to_pixel_format
from segserve.results.values import PixelFormat
from segserve_builder.imaging.decoding import decode_image
from segserve_common.errors import BadRequestError

from .conftest import png

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
ALPHA = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7, 1) * 7
FORMATS = [PixelFormat(1, "UINT8"), PixelFormat(3, "UINT8"), PixelFormat(1, "UINT16"), PixelFormat(3, "UINT16"),
           PixelFormat(1, "UINT8", (500, 40_000)), PixelFormat(3, "UINT8", (500, 40_000))]  # fmt: skip


def sent(image: Any) -> np.ndarray:
    return image_tensor(image).to_array()


@contextmanager
def site(body: bytes) -> Iterator[str]:
    """Serve `body` at every path but /none."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/none" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_files_bytes_and_open_files_are_sent_as_they_are(tmp_path: Path) -> None:
    data = png(PIXELS)
    path = tmp_path / "a.png"
    path.write_bytes(data)

    with path.open("rb") as opened:
        forms = [path, str(path), data, bytearray(data), memoryview(data), opened, io.BytesIO(data)]
        tensors = [image_tensor(form) for form in forms]

    assert {(tensor.name, tensor.shape, tensor.to_items()) for tensor in tensors} == {("IMAGE", (1,), (data,))}


def test_a_response_is_sent_as_the_image_that_it_holds() -> None:
    data = png(PIXELS)
    with site(data) as url, urlopen(url) as opened, httpx.Client() as client, client.stream("GET", url) as stream:
        stream.read()
        forms = [httpx.get(url, timeout=HANG_S), requests.get(url, timeout=HANG_S), opened, stream]
        assert [image_tensor(form).to_items() for form in forms] == [(data,)] * 4


def test_a_response_that_holds_no_image_is_refused() -> None:
    with site(b"") as url, httpx.Client() as client, client.stream("GET", url) as stream:
        with pytest.raises(BadRequestError, match="HTTP status is 404"):
            image_tensor(httpx.get(f"{url}/none"))
        with pytest.raises(BadRequestError, match="HTTP status is 404"):
            image_tensor(requests.get(f"{url}/none", timeout=HANG_S))
        with pytest.raises(BadRequestError, match="read the response before"):
            image_tensor(stream)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(PIXELS, id="plain"),
        pytest.param(PIXELS[:, ::-1], id="mirrored"),
        pytest.param(np.asfortranarray(PIXELS), id="Fortran order"),
        pytest.param(PIXELS[:, :, :1], id="one channel"),
        pytest.param(PIXELS[:, :, 0], id="no channel"),
        pytest.param(PIXELS.astype(np.uint16) * 257, id="16 bit"),
        pytest.param(PIXELS.astype(">u2") * 257, id="16 bit, big-endian"),
        pytest.param(np.dstack([PIXELS, ALPHA]), id="alpha"),
    ],
)
def test_arrays_are_sent_as_pixels_whatever_their_layout_in_memory(view: Any) -> None:
    before = np.asarray(view).copy()

    tensor = image_tensor(view)

    assert tensor.name == "PIXELS"
    np.testing.assert_array_equal(tensor.to_array(), before.reshape(*before.shape[:2], -1))
    np.testing.assert_array_equal(np.asarray(view), before)


SAMPLES = {
    "grey": PIXELS[:, :, :1],
    "grey with alpha": np.dstack([PIXELS[:, :, :1], ALPHA]),
    "colour": PIXELS,
    "colour with alpha": np.dstack([PIXELS, ALPHA]),
}


def as_png(pixels: np.ndarray) -> bytes:
    """Return the PNG of any array of pixels; Pillow writes no colour of 16 bits, OpenCV no grey with alpha."""
    if pixels.dtype == np.uint8:
        return png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    import cv2

    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    return bytes(cv2.imencode(".png", pixels[:, :, order])[1])


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
@pytest.mark.parametrize(
    "pixels",
    [
        *(pytest.param(pixels, id=name) for name, pixels in SAMPLES.items()),
        *(
            pytest.param(SAMPLES[name].astype(np.uint16) * 251 + np.uint16(3), id=f"{name}, 16 bit")
            for name in ("grey", "colour", "colour with alpha")
        ),
    ],
)
def test_an_array_is_what_the_server_makes_of_its_file(pixels: np.ndarray, wanted: PixelFormat) -> None:

    found = to_pixel_format(image_tensor(pixels), wanted)

    decoded = decode_image(
        as_png(pixels),
        colour="GREY" if wanted.channels == 1 else "RGB",
        dtype=wanted.dtype,  # type: ignore[arg-type]
        max_pixels=10_000,
        window=wanted.window,
    )
    np.testing.assert_array_equal(found.to_array(), decoded)
    assert found.datatype == wanted.dtype


def test_a_file_and_what_suits_the_model_are_left_as_they_are() -> None:
    for tensor in (image_tensor(png(PIXELS)), image_tensor(PIXELS)):
        assert to_pixel_format(tensor, PixelFormat(3, "UINT8")) is tensor
        assert to_pixel_format(tensor, None) is tensor


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_of_any_mode_is_sent_as_the_pixels_that_it_shows(mode: str) -> None:
    grey = mode in ("1", "L", "LA", "La", "PA")
    source = Image.fromarray(PIXELS).convert("L" if grey else "RGB")
    if mode in ("La", "RGBa", "PA"):
        source = source.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode])
    image = source.convert(mode)
    before = image.tobytes()
    straight = {"La": "LA", "RGBa": "RGBA"}
    shown = np.asarray(image.convert(straight.get(mode, mode)).convert("RGB"))

    found = to_pixel_format(image_tensor(image), PixelFormat(3, "UINT8")).to_array()

    np.testing.assert_array_equal(found, shown)
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_a_pil_image_of_more_than_8_bits_keeps_them(mode: str) -> None:
    deep = PIXELS[:, :, 0].astype(np.uint16) * 600
    image = Image.fromarray(deep) if mode == "I;16" else Image.frombytes(mode, (7, 5), _raw(deep, mode))

    np.testing.assert_array_equal(sent(image)[:, :, 0], deep)


def _raw(deep: np.ndarray, mode: str) -> bytes:
    return deep.astype({"I;16B": ">u2", "I": "i4"}[mode]).tobytes()


def test_a_pil_image_is_turned_as_its_exif_data_says_and_only_once() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    turned = np.rot90(PIXELS, -1)

    np.testing.assert_array_equal(sent(Image.open(buffer)), turned)
    np.testing.assert_array_equal(np.asarray(picture(buffer.getvalue())), turned)


class Upload:
    """What web frameworks give: read() is awaited."""

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(PIXELS / 255, r"float64 \(5, 7, 3\).*array \* 255", id="floats"),
        pytest.param(PIXELS > 9, r"bool \(5, 7, 3\).*astype\(np.uint8\) \* 255", id="a mask"),
        pytest.param(PIXELS.astype(int), r"int64.*array.astype\(np.uint8\)", id="integers"),
        pytest.param(PIXELS.astype(object), "object", id="objects"),
        pytest.param(PIXELS.ravel(), r"\(105,\)", id="one dimension"),
        pytest.param(PIXELS.transpose(2, 0, 1), r"\(3, 5, 7\).*np.moveaxis", id="channels first"),
        pytest.param(PIXELS[np.newaxis], r"\(1, 5, 7, 3\).*segment_many", id="a batch"),
        pytest.param(PIXELS[:0], r"\(0, 7, 3\): it has no pixels", id="no rows"),
        pytest.param(None, "NoneType", id="nothing"),
        pytest.param([PIXELS], "list.*segment_many", id="a list"),
        pytest.param("https://example.org/a.png", "does not fetch URLs, got 'https://example.org/a.png'", id="a URL"),
        pytest.param("s3://bucket/a.png", "does not fetch URLs", id="a bucket's URL"),
        pytest.param("data:image/png;base64,AAAA", "does not fetch URLs.*decode its base64", id="a data URL"),
        pytest.param(
            "iVBORw0KGgo" + "A/b" * 8000,
            "no path of a file, got 24011 .* it is the base64 text of a PNG, pass base64.b64decode",
            id="base64",
        ),
        pytest.param(
            "/9j/4AAQSkZJRg", "it is the base64 text of a JPEG, pass base64.b64decode", id="base64 that is short"
        ),
        pytest.param("a" * 300, "no path of a file, got 300 characters", id="a long text"),
        pytest.param("a/b" * 3000, "no path of a file, got 9000 characters", id="a long text of short names"),
        pytest.param("two\nlines", "no path of a file", id="lines"),
        pytest.param("nu\0ll", "no path of a file", id="NUL"),
        pytest.param("", "no path of a file, got 0 characters", id="nothing"),
        pytest.param(io.StringIO("text"), "binary", id="a text file"),
        pytest.param(Upload(), r"await the read\(\) of the Upload", id="an asynchronous file"),
        pytest.param(Image.new("F", (4, 4)), "'F'", id="floats of PIL"),
        pytest.param(Image.new("LAB", (4, 4)), "'LAB'", id="a mode that shows no colours"),
        pytest.param(Image.new("I", (4, 4), 70_000), "from 70000 to 70000", id="more than 16 bits"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_what_was_seen(image: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        image_tensor(image)


def torch_of(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


CHW = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(PIXELS / 255, id="floats"),
        pytest.param(CHW / 255, id="floats, channels first"),
        pytest.param(PIXELS.astype(float), id="floats up to 255"),
        pytest.param(PIXELS.astype(int) * 257, id="integers of 16 bits"),
        pytest.param(CHW > 9, id="masks, channels first"),
        pytest.param((CHW / 255)[np.newaxis], id="a batch of floats, channels first"),
        pytest.param(torch_of(CHW / 255), id="a tensor"),
        pytest.param(torch_of(CHW / 255).requires_grad_(), id="a tensor with a gradient"),
    ],
)
def test_an_array_is_refused_once_and_what_the_refusal_advises_is_sent(image: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        image_tensor(image)

    def segment_many(images: Any, *_: Any) -> Any:
        (one,) = images
        return one

    advised = eval(
        caught.value.message.rpartition(": send ")[2],
        {"np": np, "array": image, "image": image, "segment_many": segment_many},
    )
    assert image_tensor(advised).to_array().shape == PIXELS.shape


def test_values_that_no_expression_brings_back_are_named() -> None:
    with pytest.raises(BadRequestError, match=r"channels come first, its values are from -1 to -0.*: send the"):
        image_tensor(CHW / 255.0 - 1)


def test_a_tensor_of_torch_is_sent_unless_it_has_other_axes_a_gradient_or_no_memory_here() -> None:
    import torch

    pixels = PIXELS.copy()
    tensor = torch.from_numpy(pixels)

    sent = image_tensor(tensor)

    assert sent.name == "PIXELS"
    np.testing.assert_array_equal(sent.to_array(), PIXELS)
    np.testing.assert_array_equal(pixels, PIXELS)
    with pytest.raises(BadRequestError, match=r"np\.moveaxis"):
        image_tensor(tensor.permute(2, 0, 1))
    with pytest.raises(BadRequestError, match=r"Tensor.*detach"):
        image_tensor(torch.zeros(5, 7, 3, requires_grad=True))
    with pytest.raises(BadRequestError, match=r"Tensor.*meta"):
        image_tensor(torch.zeros(5, 7, device="meta"))


def test_sixteen_bits_are_drawn_scaled_not_clipped() -> None:
    deep = np.full((3, 4), 0x8000, np.uint16)
    for image in (deep, Image.fromarray(deep), png(deep)):
        assert np.asarray(picture(image)).tolist() == np.full((3, 4, 3), 0x80).tolist()


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_drawn_on_has_no_alpha(name: str) -> None:
    pixels = SAMPLES[name]
    shown = np.broadcast_to(pixels[:, :, : 3 if pixels.shape[2] > 2 else 1], (5, 7, 3))
    np.testing.assert_array_equal(np.asarray(picture(pixels)), shown)
    np.testing.assert_array_equal(np.asarray(picture(as_png(pixels))), shown)


def test_bytes_that_are_no_image_cannot_be_drawn_on() -> None:
    with pytest.raises(BadRequestError, match="cannot be read"):
        picture(b"no image")


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_frame_of_pyav_is_upright_as_its_file_says(tmp_path: Path, degrees: int) -> None:
    """A phone stores a portrait clip lying, with the rotation in the track's header; OpenCV turns it by itself."""
    av, cv2 = pytest.importorskip("av"), pytest.importorskip("cv2")
    lying = np.zeros((64, 96, 3), np.uint8)
    lying[:32, :48], lying[32:, :48], lying[32:, 48:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(lying, "rgb24")), *stream.encode()):
            container.mux(packet)
    content = bytearray(file.read_bytes())
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    at = content.index(b"tkhd") + 4 + 40  # the matrix, in 16.16 and 2.30
    numbers = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    content[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    file.write_bytes(content)

    with av.open(str(file)) as container:
        frame = next(iter(container.decode(video=0)))
        found = sent(frame)

    shown, expected = cv2.VideoCapture(str(file)).read()
    assert shown
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected[..., ::-1]).mean() < 8
