from __future__ import annotations

import base64
import io
import json
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageOps

from segserve_builder.errors import BadImageError
from segserve_builder.imaging.decoding import decode_image, pixels_in
from segserve_builder.imaging.json_image import MAX_FILE_BYTES

RNG = np.random.default_rng(7)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (23, 37, 3)).astype(np.uint8), (0, 0), 1.5)
GREY = np.ascontiguousarray(RGB[..., 1])
RGB16 = RNG.integers(0, 65536, (23, 37, 3)).astype(np.uint16)
GREY16 = np.ascontiguousarray(RGB16[..., 0])
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}


def encode(image: Any, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def encode16(image: np.ndarray, kind: str) -> bytes:
    stored = image[..., [2, 1, 0, 3][: image.shape[2]]] if image.ndim == 3 else image
    ok, data = cv2.imencode(f".{kind}", stored)
    assert ok
    return bytes(data)


def decode(
    data: bytes, colour: Any = "RGB", dtype: Any = "UINT8", max_pixels: int = 10**6, **options: Any
) -> np.ndarray:
    return decode_image(data, colour=colour, dtype=dtype, max_pixels=max_pixels, **options)


def pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(height: int, width: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def luma_error(grey: np.ndarray, rgb: np.ndarray) -> float:
    return float(np.abs(grey[..., 0] - rgb.astype(float) @ [0.299, 0.587, 0.114]).max())


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_give_back_the_pixels_that_were_saved(kind: str) -> None:
    pixels = decode(encode(RGB, kind, **LOSSLESS[kind]))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_grey_file_stays_grey_and_becomes_three_equal_channels(kind: str) -> None:
    data = encode(GREY, kind)
    grey, rgb = decode(data, "GREY"), decode(data, "RGB")
    np.testing.assert_array_equal(grey, pillow(data, "L")[..., None])
    np.testing.assert_array_equal(rgb, np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}], ids=str)
def test_a_jpeg_decodes_as_pillow_decodes_it_bit_for_bit(options: dict[str, Any]) -> None:
    data = encode(RGB, "JPEG", **options)
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_a_lossy_webp_decodes_as_pillow_decodes_it_bit_for_bit() -> None:
    data = encode(RGB, "WEBP", quality=60)
    np.testing.assert_array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_grey_from_colour_is_bt601_luma_within_one_step(kind: str) -> None:
    assert luma_error(decode(encode(RGB, kind, **LOSSLESS[kind]), "GREY"), RGB) < 0.51


def test_grey_from_a_colour_jpeg_is_its_stored_luma() -> None:
    data = encode(RGB, "JPEG")
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.draft("L", image.size)
        np.testing.assert_array_equal(decode(data, "GREY")[..., 0], np.asarray(image))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_alpha_is_dropped_not_composited(kind: str) -> None:
    alpha = RNG.integers(0, 256, (23, 37, 1)).astype(np.uint8)
    data = encode(np.dstack([RGB, alpha]), kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(decode(data), RGB)
    assert luma_error(decode(data, "GREY"), RGB) < 0.51


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_of_grey_is_dropped(kind: str) -> None:
    data = encode(PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(255 - GREY)]), kind)
    np.testing.assert_array_equal(decode(data, "GREY")[..., 0], GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette_files_give_their_colours(kind: str, transparent: bool) -> None:
    image = PIL.Image.fromarray(RGB).quantize(13)
    options = {"transparency": 3} if transparent and kind == "PNG" else {}
    np.testing.assert_array_equal(decode(encode(image, kind, **options)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_bilevel_files_give_0_and_255(kind: str) -> None:
    pixels = decode(encode(PIL.Image.fromarray(GREY > 128), kind), "GREY")
    np.testing.assert_array_equal(pixels[..., 0], np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("image", [RGB16, np.dstack([RGB16, GREY16])], ids=["RGB", "RGBA"])
def test_16_bit_colour_is_kept_for_uint16_and_its_high_byte_taken_for_uint8(kind: str, image: np.ndarray) -> None:
    data = encode16(image, kind)
    np.testing.assert_array_equal(decode(data, dtype="UINT16"), RGB16)
    np.testing.assert_array_equal(decode(data, dtype="UINT8"), RGB16 >> 8)
    assert luma_error(decode(data, "GREY", "UINT16"), RGB16) < 2.0
    assert luma_error(decode(data, "GREY", "UINT8"), RGB16 >> 8) < 0.51


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("colour", ["RGB", "GREY"])
def test_a_window_spreads_its_values_over_all_16_bits_before_they_are_reduced_to_8(kind: str, colour: str) -> None:
    window = (1000, 5095)
    image = (RGB16 if colour == "RGB" else GREY16) // 11
    spread = np.clip((image.astype(np.int64) - 1000) * 65535 // 4095, 0, 65535)

    wide, narrow = (decode(encode16(image, kind), colour, dtype, window=window) for dtype in ("UINT16", "UINT8"))

    np.testing.assert_array_equal(wide.squeeze(), spread)
    np.testing.assert_array_equal(narrow.squeeze(), spread >> 8)
    eight_bits = encode(RGB, kind.upper())
    np.testing.assert_array_equal(decode(eight_bits, window=window), decode(eight_bits))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_kept_for_uint16_and_its_high_byte_taken_for_uint8(kind: str) -> None:
    data = encode(GREY16, kind)
    np.testing.assert_array_equal(decode(data, "GREY", "UINT16")[..., 0], GREY16)
    np.testing.assert_array_equal(decode(data, "GREY", "UINT8")[..., 0], GREY16 >> 8)
    np.testing.assert_array_equal(decode(data, "RGB", "UINT16"), np.dstack([GREY16] * 3))


def test_16_bit_grey_tiff_whose_zero_is_white_is_inverted() -> None:
    data = encode(GREY16, "TIFF")
    black_is_zero = struct.pack("<HHII", 262, 3, 1, 1)
    assert data.count(black_is_zero) == 1
    inverted = data.replace(black_is_zero, struct.pack("<HHII", 262, 3, 1, 0))
    np.testing.assert_array_equal(decode(inverted, "GREY", "UINT16")[..., 0], 65535 - GREY16)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_8_bit_fills_the_range_of_uint16(kind: str) -> None:
    data = encode(RGB, kind, **LOSSLESS.get(kind, {}))
    wide = decode(data, dtype="UINT16")
    assert wide.dtype == np.uint16
    np.testing.assert_array_equal(wide, decode(data).astype(np.uint16) * 257)


def test_a_cmyk_jpeg_is_within_one_step_of_pillow() -> None:
    data = encode(PIL.Image.frombytes("CMYK", (37, 23), np.dstack([RGB, GREY]).tobytes()), "JPEG")
    assert np.abs(decode(data).astype(int) - pillow(data)).max() <= 1
    assert decode(data, "GREY").shape == (23, 37, 1)


@pytest.mark.parametrize("default_image", [False, True])
def test_the_still_image_of_an_animated_png_is_taken(default_image: bool) -> None:
    frames = [PIL.Image.fromarray(np.roll(RGB, 9 * i, axis=1)) for i in range(3)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
    np.testing.assert_array_equal(decode(data), RGB)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [PIL.Image.fromarray(np.roll(RGB, 9 * i, axis=1)) for i in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS[kind])
    np.testing.assert_array_equal(decode(data), RGB)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
@pytest.mark.parametrize("colour", ["RGB", "GREY"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_as_pillow_does(kind: str, colour: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = LOSSLESS.get(kind, {})
    plain, tagged = encode(RGB, kind, **options), encode(RGB, kind, exif=exif, **options)
    turned = decode(tagged, colour)
    np.testing.assert_array_equal(decode(tagged, colour, orientation="ignore"), decode(plain, colour))
    if colour == "RGB":
        np.testing.assert_array_equal(turned, pillow(tagged))
    stored = decode(plain, colour)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(turned, upright)


def test_a_broken_exif_block_leaves_the_image_as_stored() -> None:
    for block in (
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
    ):
        data = encode(RGB, "JPEG", exif=block)
        np.testing.assert_array_equal(decode(data), decode(encode(RGB, "JPEG")))


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_an_image_of_one_pixel_decodes(kind: str) -> None:
    pixels = decode(encode(np.full((1, 1, 3), 200, np.uint8), kind, **LOSSLESS.get(kind, {})), max_pixels=1)
    assert pixels.shape == (1, 1, 3)
    assert np.abs(pixels.astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"", "it is empty"),
        (b"hello, I am a picture", "b'hello, I'"),
        (encode(GREY, "GIF"), "a GIF file: convert it to PNG or JPEG (Pillow reads it)"),
        (encode(GREY, "BMP"), "it is of another format: convert it to PNG"),
        (b"8BPS\0\x01" + bytes(40), "a Photoshop file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
    ],
    ids=["empty", "text", "GIF", "BMP", "PSD", "EPS"],
)
def test_other_formats_are_refused_whatever_their_name(data: bytes, seen: str) -> None:
    with pytest.raises(BadImageError, match="not a JPEG, PNG, WebP or TIFF file") as caught:
        decode(data)
    assert seen in str(caught.value)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(kind: str, part: float) -> None:
    data = encode(RGB, kind, **LOSSLESS.get(kind, {}))
    with pytest.raises(BadImageError, match=r"(?i)damaged or"):
        decode(data[: max(12, int(part * len(data)))])


def test_a_png_whose_data_end_early_is_refused() -> None:
    rows = zlib.compress(b"\0" + bytes(37 * 3))
    with pytest.raises(BadImageError, match="37 x 23 pixels is damaged"):
        decode(png_header(23, 37) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_a_png_chunk_that_claims_more_than_the_file_has_is_refused_and_memory_stays_flat() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match=r"chunk b'IDAT' ends at \d+ of 141 bytes"):
        decode(png_header(23, 37) + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(100))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def jpeg_header(height: int, width: int) -> bytes:
    data = encode(RGB, "JPEG")
    return data.replace(struct.pack(">HH", 23, 37), struct.pack(">HH", height, width), 1)


def tiff_header(height: int, width: int) -> bytes:
    data = encode(RGB, "TIFF")
    for tag, old, new in ((256, 37, width), (257, 23, height)):
        for kind in (3, 4):
            data = data.replace(struct.pack("<HHII", tag, kind, 1, old), struct.pack("<HHII", tag, 4, 1, new))
    return data


def webp_header(height: int, width: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + b"VP8L" + bytes(40)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize("header", [png_header, jpeg_header, tiff_header, webp_header])
def test_a_header_of_60000_x_50000_is_refused_and_memory_stays_flat(header: Any) -> None:
    data = header(60_000, 50_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match=r"50000 x 60000 = 3000000000 pixels; allowed are 1 to 50000000"):
        decode(data, max_pixels=50_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
@pytest.mark.parametrize("options", [{}, {"lossless": False}], ids=["", "lossy"])
def test_max_pixels_itself_is_allowed_and_one_more_is_not(kind: str, options: dict[str, Any]) -> None:
    data = encode(RGB, kind, **(LOSSLESS.get(kind, {}) | (options if kind == "WEBP" else {})))
    assert decode(data, max_pixels=23 * 37).shape == RGB.shape
    with pytest.raises(BadImageError, match="37 x 23 = 851 pixels; allowed are 1 to 850"):
        decode(data, max_pixels=23 * 37 - 1)


@pytest.mark.parametrize("image", [GREY.astype(np.float32), GREY.astype(np.int32)], ids=["float", "int32"])
def test_tiff_samples_of_other_types_are_refused_by_what_they_are(image: np.ndarray) -> None:
    with pytest.raises(BadImageError, match=r"1 samples of 32 bits.*allowed are unsigned 8 bit"):
        decode(encode(image, "TIFF"))


def tiff(*tags: tuple[int, int], body: bytes = bytes(64)) -> bytes:
    """A TIFF file whose one strip or tile, `body`, begins at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<4sI", b"II*\0", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


STRIP = [(258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 4), (279, 32)]


def test_a_hand_made_tiff_decodes() -> None:
    assert decode(tiff((256, 4), (257, 4), *STRIP), "GREY", "UINT16").shape == (4, 4, 1)


def test_a_tiff_with_huge_tiles_is_refused_before_it_is_decoded() -> None:
    tiles = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, 2**20),
        (323, 2**20),
        (324, 8),
        (325, 64),
    ]
    with pytest.raises(BadImageError, match=f"{2**20} x {2**20} = {2**40} pixels"):
        decode(tiff(*tiles))


def test_a_tiff_that_tells_two_sizes_is_refused() -> None:
    with pytest.raises(BadImageError, match=r"some are repeated: \[256, 256, 257"):
        decode(tiff((256, 30_000), (256, 4), (257, 4), *STRIP), "GREY", "UINT16")


SAMPLES = {
    **{kind: encode(RGB, kind, **options) for kind, options in LOSSLESS.items()},
    "JPEG": encode(RGB, "JPEG"),
    "TIFF16": encode16(RGB16, "tiff"),
    "lossy WEBP": encode(RGB, "WEBP"),
}


@settings(max_examples=300, deadline=None)
@example("TIFF", [(4, 255)], 0)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 50),
)
def test_damaged_bytes_give_an_image_or_a_bad_image_error_and_nothing_else(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SAMPLES[kind])
    for place, value in changes:
        # Half of them from the end, where a TIFF keeps its directory.
        data[(place if place % 2 else -place) % len(data)] = value
    try:
        pixels = decode(bytes(data[: len(data) - cut]), max_pixels=10_000)
    except BadImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def folded(text: bytes) -> bytes:
    return base64.encodebytes(base64.b64decode(text))


WRITINGS: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda text: text,
    "in lines": folded,
    "as a string": lambda text: b'"' + text + b'"',
    "after a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "for URLs": lambda text: text.translate(bytes.maketrans(b"+/", b"-_")),
    "as a data: URL": lambda text: b"data:image/x;base64," + text,
    "in a list": lambda text: json.dumps([text.decode()]).encode(),
    "in a form's field": lambda text: b"image=" + text.replace(b"/", b"%2F"),
    "in XML": lambda text: b"<image>" + text,
}


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@pytest.mark.parametrize("writing", WRITINGS)
def test_base64_is_named_as_what_it_is(kind: str, writing: str) -> None:
    with pytest.raises(BadImageError, match=r"it is the base64 text of a \w+; send the bytes themselves"):
        decode(WRITINGS[writing](base64.b64encode(SAMPLES[kind])))


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@pytest.mark.parametrize(
    "write",
    [
        lambda text: json.dumps({"image": text}),
        lambda text: json.dumps({"image": text}, indent=3),
        lambda text: json.dumps({"image": text}).replace("/", "\\/"),  # as PHP does
        lambda text: json.dumps({"image": f"data:image/png;charset=x;base64,{text}"}),
        lambda text: json.dumps({"image": folded(text.encode()).decode()}),
        lambda text: json.dumps({"image": text.replace("+", "-").replace("/", "_")}),
        lambda text: "\ufeff" + json.dumps({"image": text}) + "\n",
    ],
    ids=["", "indented", "escaped", "data URL", "in lines", "for URLs", "byte order mark"],
)
def test_json_with_a_base64_image_is_the_image(kind: str, write: Callable[[str], str]) -> None:
    data = write(base64.b64encode(SAMPLES[kind]).decode()).encode()

    assert np.array_equal(decode(data), decode(SAMPLES[kind]))
    assert pixels_in(data) == 23 * 37


IMAGE = base64.b64encode(SAMPLES["PNG"]).decode()
WRONG_JSON = {
    "not JSON": ("{image: 1}", "JSON of the body cannot be read"),
    "cut short": (json.dumps({"image": IMAGE})[:-9], "JSON of the body cannot be read: Unterminated string"),
    "no end": (json.dumps({"image": IMAGE})[:-1], "no end after the image"),
    "more after it": (json.dumps({"image": IMAGE}) + "{}", "JSON of the body cannot be read"),
    "no UTF-8": ('{"image": "\udcff"}', "cannot be read: 'utf-8' codec"),
    "no image": ("{ }", "JSON of the body has no image"),
    "another key": (json.dumps({"b64": IMAGE}), "unknown key 'b64'"),
    "an option": (json.dumps({"encoding": "rle", "image": IMAGE}), "unknown key 'encoding'.*options in the query"),
    "an option after it": (json.dumps({"image": IMAGE, "encoding": "rle"}), "unknown key 'encoding'"),
    "two images": (f'{{"image": "{IMAGE}", "image": "{IMAGE}"}}', "more than one image"),
    "a list": (json.dumps({"image": [IMAGE]}), "is a list, and must be one string"),
    "an object": (json.dumps({"image": {"b64": IMAGE}}), "is an object, and must be one string"),
    "null": ('{"image": null}', "is null, and must be one string"),
    "a number": ('{"image": 5}', "is a number, and must be one string"),
    "nothing": ('{"image": ', "is missing, and must be one string"),
    "not base64": ('{"image": "photo.jpg!!!"}', "image in the JSON is not base64"),
    "base64 cut short": (json.dumps({"image": IMAGE[:-7]}), "not a multiple of 4: it is cut short"),
    "an image cut short": (json.dumps({"image": IMAGE[:-8]}), "damaged or cut short"),
    "a data: URL without base64": ('{"image": "data:image/png,%89PNG"}', "a data: URL without base64"),
    "an empty image": ('{"image": ""}', "it is empty"),
    "base64 of base64": (json.dumps({"image": base64.b64encode(IMAGE.encode()).decode()}), "base64 text of a PNG"),
    "base64 of JSON": (json.dumps({"image": base64.b64encode(b'{"image": ""}').decode()}), "first bytes are b'{"),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_json_without_one_base64_image_is_refused_by_what_it_is(name: str) -> None:
    text, wrong = WRONG_JSON[name]
    with pytest.raises(BadImageError, match=wrong):
        decode(text.encode(errors="surrogateescape"))
    assert pixels_in(text.encode(errors="surrogateescape")) in (0, 23 * 37)


@pytest.mark.parametrize("start", ['{"image": ', '{"a": ', "", '{"image": "', '{"'])
@pytest.mark.parametrize("piece", ["[", "{", "[],", "{},", "0,", '"a":{', '"",', "\\/", "1", " ", '{"image":"a",'])
def test_json_of_any_shape_takes_no_more_memory_than_a_few_times_its_bytes(start: str, piece: str) -> None:
    data = (start + piece * (2**22 // len(piece))).encode()
    tracemalloc.start()
    try:
        with pytest.raises(BadImageError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(data)
    finally:
        tracemalloc.stop()


def test_an_image_in_json_has_as_many_bytes_as_one_without() -> None:
    with pytest.raises(BadImageError, match=f"has {MAX_FILE_BYTES + 1} bytes; allowed are at most {MAX_FILE_BYTES}"):
        decode(json.dumps({"image": base64.b64encode(bytes(MAX_FILE_BYTES + 1)).decode()}).encode())
    with pytest.raises(BadImageError, match="first bytes are"):
        decode(json.dumps({"image": base64.b64encode(bytes(MAX_FILE_BYTES)).decode()}).encode())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 50))
def test_damaged_json_gives_an_image_or_a_bad_image_error_and_nothing_else(
    changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(json.dumps({"image": IMAGE}).encode())
    for place, value in changes:
        data[place % len(data) if place % 2 else place % 16] = value
    try:
        decode(bytes(data[: len(data) - cut]), max_pixels=10_000)
    except BadImageError:
        return
