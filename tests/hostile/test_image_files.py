"""Image files of few bytes that want much of a step's time: each is refused, or decoded like its plain picture."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segserve_builder.errors import BadImageError
from segserve_builder.imaging.decoding import decode_image

SIDE = 64
PIXELS = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode_image(data, colour="GREY", dtype="UINT8", max_pixels=10**8)[..., 0]


def with_scans(count: int, between: bytes = b"") -> bytes:
    """Return a progressive JPEG that repeats its last scan until it has so many."""
    plain = encoded("JPEG", progressive=True)
    last = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + (between + last) * (count - plain.count(b"\xff\xda")) + plain[-2:]


@pytest.mark.parametrize("between", [b"", b"\xff\xfe\x00\x04\xff\xd9"], ids=["alone", "behind a comment like an end"])
def test_a_mebibyte_of_jpeg_scans_is_refused_before_it_is_decoded(between: bytes) -> None:
    hostile = with_scans(11_000, between)

    with pytest.raises(BadImageError, match=r"^JPEG image has 11000 scans; allowed are at most 32$"):
        decoded(hostile)


def test_the_scans_of_encoders_and_a_film_behind_a_photograph_are_none_too_many() -> None:
    film = b"\xff\xda" * 10_000
    photograph = encoded("JPEG", progressive=True)

    assert (decoded(photograph + film) == decoded(photograph)).all()
    # Those within a segment are no scans either.
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 1000) + b"\xff\xda" * 500
    assert (decoded(photograph[:2] + comment + photograph[2:]) == decoded(photograph)).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_of_a_png_is_not_inflated(kind: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    plain = encoded("PNG")
    # Had libpng read it, it would say that the stream is damaged.
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    hostile = plain[:33] + chunk(kind, head + zlib.compress(bytes(10**6))[:-9]) * 1000 + plain[33:]

    assert (decoded(hostile) == PIXELS).all()
    assert capfd.readouterr().err == ""


def test_more_data_than_the_rows_of_a_png_need_is_refused_before_it_is_inflated() -> None:
    plain, surplus = encoded("PNG"), zlib.compress(bytes(10**8), 9)

    with pytest.raises(
        BadImageError, match=rf"PNG image of 64 x 64 pixels has {len(surplus) + 12} bytes of compressed"
    ):
        decoded(plain[:33] + chunk(b"IDAT", surplus) + chunk(b"IEND", b""))


MANY = 1_000_000
JPEG, PNG = encoded("JPEG"), encoded("PNG")
PARTS = {
    "JPEG": (JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:], "JPEG image has more than 65536 segments"),
    "PNG": (PNG[:33] + chunk(b"abCd", b"") * MANY + PNG[33:], "PNG image has more than 65536 chunks"),
}


@pytest.mark.parametrize(("data", "reason"), PARTS.values(), ids=PARTS)
def test_a_million_empty_parts_are_refused_after_the_first_thousands(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=re.escape(reason)):
        decoded(data)


def test_a_webp_of_a_million_empty_chunks_is_refused_after_the_first_thousands() -> None:
    plain = encoded("WEBP", lossless=True)
    header = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (SIDE - 1).to_bytes(3, "little") * 2
    content = b"WEBP" + header + plain[12:] + b"ABCD\0\0\0\0" * MANY

    with pytest.raises(BadImageError, match="WebP image has more than 65536 chunks"):
        decoded(b"RIFF" + struct.pack("<I", len(content)) + content)


def test_thirty_megabytes_of_fill_bytes_are_no_segments() -> None:
    plain = encoded("JPEG")

    assert (decoded(plain[:2] + b"\xff" * 30_000_000 + plain[2:]) == decoded(plain)).all()
