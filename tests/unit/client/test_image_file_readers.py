"""An image file is the same picture to the server's decoder, tiles, drawings and data sets, or is refused by all."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from fakes.docs import ROOT
from segserve import BadRequestError
from segserve.results.images import image_size, image_tensor, picture
from segserve.tiled.grid import Window
from segserve.tiled.sources import open_source
from segserve_builder.errors import BadImageError
from segserve_builder.imaging.decoding import decode_image
from segserve_common.image_file import describe, turn
from segserve_platform.evaluation.datasets import read_dataset
from segserve_platform.image_content import image_content

RNG = np.random.default_rng(3)
PICTURE = np.kron(RNG.integers(0, 256, (5, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
GREY = np.ascontiguousarray(PICTURE[..., 0])
HEIGHT, WIDTH = GREY.shape
DEEP = PICTURE.astype(np.uint16) * 257
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def saved(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def tiff(image: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, image, **{"photometric": "rgb" if image.ndim == 3 else "minisblack", **options})
    return stream.getvalue()


def exif_block(orientation: int, *, kind: int, order: str) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation]))
    return head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


def turned(orientation: int, compressed: bool, image: np.ndarray = PICTURE, **options: Any) -> bytes:
    tag = (274, "H", 1, orientation, True)
    return tiff(image, extratags=[tag], compression="lzw" if compressed else None, rowsperstrip=16, **options)


PALETTE = Image.fromarray(PICTURE).quantize(16)
ALPHA = np.dstack([PICTURE, GREY])
BANDS = np.dstack([PICTURE, GREY, GREY])
TIFFS: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: tiff(PICTURE),
    "BigTIFF in tiles": lambda: tiff(PICTURE, bigtiff=True, tile=(16, 16)),
    "big-endian in tiles": lambda: tiff(PICTURE, byteorder=">", tile=(16, 16)),
    "palette of Pillow": lambda: saved(PALETTE, "TIFF"),
    "palette with LZW": lambda: saved(PALETTE, "TIFF", compression="tiff_lzw"),
    "palette of tifffile": lambda: tiff(
        np.asarray(PALETTE), photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    ),
    "palette of 16 colours in 4 bits": lambda: tiff_of_bits(4, 3),
    "white is zero": lambda: tiff(GREY, photometric="miniswhite"),
    "white is zero, LZW": lambda: tiff(GREY, photometric="miniswhite", compression="lzw"),
    "white is zero, 16 bits": lambda: tiff(DEEP[..., 0], photometric="miniswhite"),
    "white is zero, turned": lambda: turned(6, True, GREY, photometric="miniswhite"),
    "black and white": lambda: saved(Image.fromarray(GREY > 128), "TIFF", compression="group4"),
    "2 bits": lambda: tiff_of_bits(2, 1),
    "4 bits": lambda: tiff_of_bits(4, 1),
    "16 bits": lambda: tiff(DEEP),
    "grey of 16 bits": lambda: tiff(DEEP[..., 0], compression="zlib"),
    "16 bits, turned": lambda: turned(8, False, DEEP),
    "16 bits, LZW, turned": lambda: turned(5, True, DEEP),
    "planes": lambda: tiff(np.moveaxis(PICTURE, -1, 0), planarconfig="separate", photometric="rgb"),
    "alpha": lambda: tiff(ALPHA, extrasamples=["unassalpha"]),
    "associated alpha": lambda: tiff(ALPHA, extrasamples=["assocalpha"]),
    "grey with alpha": lambda: saved(Image.fromarray(ALPHA).convert("LA"), "TIFF"),
    "16 bits with alpha": lambda: tiff(ALPHA.astype(np.uint16) * 257, extrasamples=["unassalpha"]),
    "5 bands": lambda: tiff(BANDS, extrasamples=["unspecified"] * 2),
    "CMYK": lambda: saved(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"),
    "YCbCr of JPEG": lambda: saved(PICTURE, "TIFF", compression="jpeg"),
    "XMP alone does not turn": lambda: tiff(PICTURE, extratags=[(700, "B", len(XMP), XMP, True)]),
    "XMP alone does not turn 16 bits": lambda: tiff(DEEP, extratags=[(700, "B", len(XMP), XMP, True)]),
    "the first of a pyramid": lambda: pages([(PICTURE, 0), (PICTURE[::2, ::2], 1)]),
} | {
    f"orientation {value}{', LZW' * compressed}": (lambda v=value, c=compressed: turned(v, c))
    for value in range(1, 9)
    for compressed in (False, True)
}


def tiff_of_bits(bits: int, photometric: int) -> bytes:
    """Return a TIFF of packed samples, which tifffile does not write."""
    values = (GREY >> (8 - bits)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(HEIGHT, -1), axis=1)
    body = packed.tobytes()
    colours = (np.arange(3 << bits, dtype=np.uint16) * 1300).tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 8), (278, HEIGHT)]
    tags += [(279, len(body))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    entries += struct.pack("<HHII", 320, 3, 3 << bits, 8 + len(body)) if photometric == 3 else b""
    directory = 8 + len(body) + len(colours)
    count = len(tags) + (photometric == 3)
    return struct.pack("<4sI", b"II*\0", directory) + body + colours + struct.pack("<H", count) + entries + bytes(4)


def pages(images: list[tuple[np.ndarray, int]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for image, subfile in images:
            writer.write(image, photometric="rgb", subfiletype=subfile, metadata=None, **options)
            options.pop("subifds", None)
    return stream.getvalue()


def served(data: bytes, dtype: Any = "UINT8") -> np.ndarray:
    return decode_image(data, colour="RGB", dtype=dtype, max_pixels=10**6)


def grey_or_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))


def windows(source: Any, side: int = 24) -> np.ndarray:
    found = np.zeros((source.height, source.width, 3), source.dtype)
    for top in range(0, source.height, side):
        for left in range(0, source.width, side):
            window = Window(top, left, min(top + side, source.height), min(left + side, source.width))
            found[window.slices()] = grey_or_rgb(source.read(window))
    return found


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_is_the_same_picture_to_the_server_by_windows_and_in_drawings(name: str, tmp_path: Path) -> None:
    data = TIFFS[name]()
    (tmp_path / "a.tif").write_bytes(data)
    source = open_source(tmp_path / "a.tif")
    deep = "UINT16" if source.dtype == np.uint16 else "UINT8"
    expected = served(data, deep)
    tolerance = 1 if "JPEG" in name else 0  # two decoders of it

    assert (source.height, source.width) == expected.shape[:2]
    np.testing.assert_allclose(windows(source).astype(int), expected.astype(int), atol=tolerance)
    np.testing.assert_array_equal(np.asarray(picture(data)), expected >> 8 if deep == "UINT16" else expected)
    source.close()


def test_what_a_tiff_shows_is_what_was_written() -> None:
    decoded = {
        name: decode_image(data(), colour="RGB", dtype="UINT8", max_pixels=10**6) for name, data in TIFFS.items()
    }

    for name in ("RGB", "16 bits", "planes", "alpha", "5 bands", "the first of a pyramid", "XMP alone does not turn"):
        np.testing.assert_array_equal(decoded[name], PICTURE)
    np.testing.assert_array_equal(decoded["palette of Pillow"], np.asarray(PALETTE.convert("RGB")))
    np.testing.assert_array_equal(decoded["white is zero"][..., 0], 255 - GREY)
    np.testing.assert_array_equal(decoded["orientation 6, LZW"], np.rot90(PICTURE, -1))


def dng() -> bytes:
    return tiff(PICTURE, extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])


def camera_raw() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(PICTURE[::4, ::4], photometric="rgb", subifds=1, metadata=None)
        pattern = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
        writer.write(DEEP[..., 0], photometric="cfa", metadata=None, extratags=pattern)
    return stream.getvalue()


def preview() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(PICTURE[::4, ::4], photometric="rgb", subifds=1, metadata=None)
        writer.write(PICTURE, photometric="rgb", metadata=None)
    return stream.getvalue()


SUBFILE = struct.pack("<HHI", 254, 4, 1)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "DNG": (dng, "a camera's raw file; develop it"),
    "mosaic below a picture": (camera_raw, "a camera's raw file"),
    "picture below its preview": (preview, "a camera's raw file"),
    "thumbnail first": (
        lambda: pages([(PICTURE[::4, ::4], 1), (PICTURE, 0)]), "begins with a reduced copy .a thumbnail. of 10 x 16"
    ),
    "mask first": (lambda: pages([(PICTURE, 1)]).replace(SUBFILE + b"\1", SUBFILE + b"\4"), "begins with a mask"),
    "Fujifilm": (lambda: b"FUJIFILMCCD-RAW 0201" + bytes(100), "a camera's raw file"),
    "Canon": (lambda: b"\0\0\0\x18ftypcrx " + bytes(100), "a camera's raw file"),
    "signed of GDAL": (lambda: tiff(GREY.astype(np.int16)), r"1 samples of 16 bits \(signed, BlackIsZero\)"),
    "bands of GDAL": (
        lambda: tiff(DEEP, photometric="minisblack", planarconfig="contig"),
        r"3 samples of 16 bits \(unsigned, BlackIsZero\).*gdal_translate -co PHOTOMETRIC=RGB",
    ),
    "8-bit bands of GDAL": (
        lambda: tiff(PICTURE, photometric="minisblack", planarconfig="contig"), r"3 samples of 8 bits"
    ),
    "16 bits in planes": (
        lambda: tiff(np.moveaxis(DEEP, -1, 0), planarconfig="separate", photometric="rgb"),
        "RGB, planar.*INTERLEAVE=PIXEL",
    ),
    "floats": (lambda: tiff(GREY.astype(np.float32)), r"32 bits \(float"),
    "Lab": (lambda: saved(Image.new("LAB", (8, 8)), "TIFF"), r"\(unsigned, Lab\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_picture_or_cannot_be_read_is_refused_by_name_on_every_way(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    data = make()
    (tmp_path / "a.tif").write_bytes(data)

    with pytest.raises(BadImageError, match=said):
        served(data)
    for read in (open_source, picture):
        with pytest.raises(BadRequestError, match=said):
            read(tmp_path / "a.tif")
    assert image_content(data).image == data, "the server says what it is"


LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("type_number", [3, 4], ids=["SHORT", "LONG"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_orientation_is_one_rule_however_an_image_comes(
    kind: str, type_number: int, order: str, orientation: int, tmp_path: Path
) -> None:
    exif = exif_block(orientation, kind=type_number, order=order)
    data = saved(PICTURE, kind, exif=b"Exif\0\0" + exif, **LOSSLESS[kind])
    check_ways(data, kind, orientation, tmp_path)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_orientation_of_xmp_alone_turns_nothing(kind: str, tmp_path: Path) -> None:
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        data = saved(PICTURE, kind, pnginfo=info)
    else:
        data = saved(PICTURE, kind, xmp=XMP, **LOSSLESS[kind])
    assert Image.open(io.BytesIO(data)).getexif().get(0x0112) == 6, "Pillow's own reading"
    check_ways(data, kind, 1, tmp_path)


def check_ways(data: bytes, kind: str, orientation: int, folder: Path) -> None:
    expected = np.asarray(Image.open(io.BytesIO(saved(PICTURE, kind, **LOSSLESS[kind]))))
    turns = {1: expected, 3: expected[::-1, ::-1], 6: np.rot90(expected, -1), 7: expected[::-1, ::-1].swapaxes(0, 1)}
    expected = turns[orientation]
    path = folder / f"images/a.{kind.lower()}"
    path.parent.mkdir()
    path.write_bytes(data)
    (folder / "labels").mkdir()
    Image.fromarray(np.zeros(expected.shape[:2], np.uint8)).save(folder / "labels/a.png")
    source = open_source(path)
    np.testing.assert_array_equal(served(data), expected)
    np.testing.assert_array_equal(np.asarray(picture(path)), expected)
    np.testing.assert_array_equal(np.asarray(picture(Image.open(path))), expected)
    np.testing.assert_array_equal(windows(source), expected)
    assert describe(data).size == expected.shape[:2]
    assert image_size(image_tensor(data)) == PICTURE.shape[:2]
    assert [each.size for each in read_dataset(folder).images] == [expected.shape[:2]]


@pytest.mark.parametrize(
    ("data", "frames"),
    [
        (lambda: pages([(PICTURE, 0), (PICTURE[::2, ::2], 1)]), 1),
        (lambda: pages([(PICTURE, 2), (PICTURE, 2)]), 2),
        (lambda: saved(PICTURE, "WEBP", save_all=True, append_images=[Image.fromarray(255 - PICTURE)]), 2),
        (lambda: saved(PICTURE, "PNG", save_all=True, append_images=[Image.fromarray(255 - PICTURE)]), 2),
        (lambda: saved(PICTURE, "GIF", save_all=True, append_images=[Image.fromarray(255 - PICTURE)]), 2),
        (lambda: saved(PICTURE, "JPEG"), 1),
    ],
    ids=["pyramid", "pages", "WebP", "PNG", "GIF", "JPEG"],
)
def test_frames_and_pages_are_counted_but_reduced_copies_are_not(data: Callable[[], bytes], frames: int) -> None:
    assert image_content(data()).frames == frames


@pytest.fixture(scope="module")
def heic() -> Callable[..., bytes]:
    """The picture as a HEIC file with this orientation."""
    pillow_heif.register_heif_opener()

    def write(orientation: int) -> bytes:
        return saved(PICTURE, "HEIF", quality=-1, chroma=444, exif=exif_block(orientation, kind=3, order="<"))

    return write


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_heic_file_is_turned_upright_once(orientation: int, heic: Callable[..., bytes]) -> None:
    image = image_content(heic(orientation)).image

    assert isinstance(image, Image.Image)
    upright = turn(PICTURE, orientation).astype(int)
    assert np.abs(np.asarray(picture(image)).astype(int) - upright).max() <= 3  # of the conversion to YCbCr


@pytest.mark.parametrize("size", [40, 400, -100])
def test_a_heic_file_that_is_cut_short_is_damaged(size: int, heic: Callable[..., bytes]) -> None:
    with pytest.raises(BadRequestError, match="damaged or cut short: "):
        image_content(heic(1)[:size])


def without_photometric(data: bytes) -> bytes:
    """Return a TIFF with tag 262 renamed to 261, which no reader looks at."""
    return data.replace(struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 261, 3, 1), 1)


TABLE = (320, "H", 768, tuple(range(0, 768 * 85, 85)), True)
MATRIX: dict[str, Callable[[], bytes]] = {
    "JPEG, grey or colour": lambda: saved(PICTURE, "JPEG", quality=95),
    "PNG, WebP": lambda: saved(PICTURE, "PNG"),
    "PNG of 16 bits, grey": lambda: saved(Image.fromarray(DEEP[..., 0]), "PNG"),
    "TIFF of 1 to 8 bits": TIFFS["RGB"],
    "TIFF of 16 bits, grey": lambda: tiff(DEEP[..., 0].copy()),
    "TIFF of 16 bits, RGB": TIFFS["16 bits"],
    "TIFF, 0 is white": TIFFS["white is zero"],
    "TIFF of 16 bits, 0 is white": TIFFS["white is zero, 16 bits"],
    "TIFF with a palette": TIFFS["palette of Pillow"],
    "TIFF of grey with a colour table (GDAL)": lambda: tiff(GREY, extratags=[TABLE]),
    "TIFF of one page that is marked as reduced": lambda: pages([(PICTURE, 1)]),
    "TIFF that begins with a thumbnail": REFUSED["thumbnail first"][0],
    "TIFF without a photometric interpretation": lambda: without_photometric(tiff(GREY)),
    "TIFF of signed values": lambda: tiff(GREY.astype(np.int16)),
    "TIFF of signed 8 bits": lambda: tiff((GREY // 2).astype(np.int8)),
    "TIFF of 32 bits": lambda: tiff(GREY.astype(np.uint32)),
    "TIFF of floats": REFUSED["floats"][0],
    "TIFF compressed by LZW, deflate, PackBits": lambda: tiff(PICTURE, compression="lzw"),
    "TIFF compressed by JPEG": lambda: tiff(PICTURE, compression="jpeg"),
    "TIFF compressed by Zstandard or LZMA, 8 bits": lambda: tiff(PICTURE, compression="zstd"),
    "TIFF compressed by Zstandard or LZMA, 16 bits": lambda: tiff(DEEP, compression="zstd"),
    "TIFF compressed by WebP": lambda: tiff(PICTURE, compression="webp"),
    "TIFF compressed by JPEG 2000, JPEG XL, LERC": lambda: tiff(PICTURE, compression="jpeg2000"),
    "GIF, BMP, AVIF, JPEG 2000": lambda: saved(PICTURE, "BMP"),
    "a camera's raw file": dng,
}
IMAGES_PAGE = ROOT / "docs/reference/images.md"


def outcome(read: Callable[[], np.ndarray], expected: np.ndarray | None) -> str:
    """Return what a way in makes of a file; a picture must be that of the others."""
    try:
        pixels = read()
    except (BadRequestError, BadImageError):
        return "refused"
    except (OSError, UnidentifiedImageError):  # Pillow's own, before the picture is here
        return "not opened by Pillow"
    if expected is not None:
        np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=2)
    return "read"


def test_every_kind_of_file_is_one_picture_to_all_ways_in_or_is_refused_as_the_page_says(tmp_path: Path) -> None:
    rows = []
    for number, (name, make) in enumerate(MATRIX.items()):
        data, path = make(), tmp_path / f"{number}.tif"
        path.write_bytes(data)

        def tiles(path: Path = path) -> np.ndarray:
            with closing(open_source(path)) as source:
                found = windows(source)
            return found >> 8 if found.dtype == np.uint16 else found

        cells = [outcome(lambda data=data: served(data), None)]
        expected = served(data) if cells == ["read"] else None
        cells.append(outcome(lambda data=data: np.asarray(picture(data)), expected))
        cells.append(outcome(lambda data=data: np.asarray(picture(Image.open(io.BytesIO(data)))), expected))
        cells.append(outcome(tiles, expected))
        if cells[0] == "refused" and cells[1] != cells[0]:
            raise AssertionError(f"{name}: drawings show what servers refuse")
        rows.append([name, cells[0], *cells[2:]])
    by_outcome: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        by_outcome.setdefault(tuple(cells), []).append(name)
    listed = [["; ".join(names), *cells] for cells, names in by_outcome.items()]
    table = [["files", "path, bytes, curl", "PIL image", "tiles"], ["---"] * 4, *listed]
    written = "\n".join(f"| {' | '.join(row)} |" for row in table)
    head, begin, rest = IMAGES_PAGE.read_text().partition("<!-- written by a test -->\n\n")
    _, end, tail = rest.partition("\n\n<!-- end -->")
    assert all((begin, end)), "the page has the marks"
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        IMAGES_PAGE.write_text(head + begin + written + end + tail)
    assert written in IMAGES_PAGE.read_text()


@pytest.mark.parametrize("kind", [struct.pack("<HHI4s", 262, 2, 1, b"x"), struct.pack("<HHIHH", 262, 3, 2, 1, 2)])
def test_a_photometric_interpretation_that_is_no_number_is_refused(kind: bytes, tmp_path: Path) -> None:
    data = tiff(GREY)
    place = data.index(struct.pack("<HH", 262, 3))
    data = data[:place] + kind + data[place + 12 :]
    (tmp_path / "a.tif").write_bytes(data)

    with pytest.raises(BadImageError, match=r"TIFF tag 262 is .* allowed is one integer"):
        served(data)
    for read in (open_source, picture):
        with pytest.raises(BadRequestError, match="TIFF tag 262"):
            read(tmp_path / "a.tif")


def test_a_colour_table_of_another_size_is_refused_on_every_way(tmp_path: Path) -> None:
    data = tiff(GREY, extratags=[(320, "H", 30, tuple(range(30)), True)])

    with pytest.raises(BadImageError, match="TIFF image"):
        served(data)
    with pytest.raises(BadRequestError, match="a colour table of 30 values; allowed are 768"):
        image_tensor(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(128) + b"DICM" + bytes(100), "a DICOM file: convert it to PNG"),
        (bytes(344) + b"n+1\0", "a NIfTI volume: convert slices"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed by gzip, as NIfTI volumes"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "a video .MP4 or QuickTime.: send its frames"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "a video: send its frames"),
        (b"RIFF\0\1\0\0AVI LIST", "a video"),
        (b"%PDF-1.7", "a PDF document: draw its page"),
        (b"<?xml version='1.0'?>\n<!-- of a program -->\n<svg xmlns=''/>", "a drawing .SVG."),
        (b"<svg/>", "a drawing .SVG."),
        (b"<!DOCTYPE html><html>", "an HTML page, perhaps of a failed download"),
        (b"\x93NUMPY\1\0", "a file of numpy: convert it to PNG or TIFF"),
        (b"PK\3\4" + bytes(10), "a ZIP archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"\0\0\0\x18ftypheix" + bytes(20), "a HEIC file"),
        (b"", "it is empty"),
        (b"hello you", "its first bytes are b'hello yo'"),
    ],
)
def test_what_is_no_image_is_named_by_its_kind_with_the_way_that_reads_it(data: bytes, said: str) -> None:
    with pytest.raises(BadImageError, match=f"is not a JPEG, PNG, WebP or TIFF file: .*{said}"):
        served(data)
    with pytest.raises(BadRequestError, match=said):
        picture(data)


def test_small_values_in_pillows_32_bits_are_not_taken_for_16_bits() -> None:
    image = Image.fromarray(GREY.astype(np.int32))

    with pytest.raises(BadRequestError, match=r"may be of 8 or of 16 bits: send image.convert\(.L.\)"):
        image_tensor(image)
    np.testing.assert_array_equal(np.asarray(picture(image.convert("L")))[..., 0], GREY)
    np.testing.assert_array_equal(np.asarray(picture(np.asarray(image).astype(np.uint16)))[..., 0], GREY >> 8)


NOISE = RNG.integers(0, 256, (40, 64, 3), np.uint8)
PHOTO = saved(NOISE, "JPEG")
PROGRESSIVE = saved(NOISE, "JPEG", progressive=True)
TABLES = PHOTO.index(b"\xff\xdb")
WARNED = {
    "bytes before the end": (PHOTO, PHOTO[:-2] + bytes(20) + PHOTO[-2:]),
    "bytes before the end of a progressive one": (PROGRESSIVE, PROGRESSIVE[:-2] + bytes(20) + PROGRESSIVE[-2:]),
    "no end": (PHOTO, PHOTO[:-2]),
    "no end behind a comment": (PHOTO, PHOTO[:-2] + b"\xff\xfe\0\4ab"),
    "bytes between segments": (PHOTO, PHOTO[:TABLES] + b"abcd" + PHOTO[TABLES:]),
    "bytes before the end, no end": (PHOTO, PHOTO[:-2] + bytes(20)),
    "another revision of JFIF": (PHOTO, PHOTO.replace(b"JFIF\0\1", b"JFIF\0\3")),
}


@pytest.mark.parametrize("name", WARNED)
def test_a_jpeg_that_libjpeg_warns_of_is_read_where_no_pixel_is_missing(name: str, tmp_path: Path) -> None:
    good, warned = WARNED[name]
    (tmp_path / "a.jpg").write_bytes(warned)

    np.testing.assert_array_equal(served(warned), served(good))
    np.testing.assert_array_equal(np.asarray(picture(warned)), served(good))
    np.testing.assert_array_equal(windows(open_source(tmp_path / "a.jpg")), served(good))


@pytest.mark.parametrize(
    "data",
    [
        PHOTO[:-12],
        PHOTO[:-12] + PHOTO[-2:],
        PHOTO[:TABLES] + b"abcd" + PHOTO[TABLES:-12] + PHOTO[-2:],
        PROGRESSIVE[:-2],
        PROGRESSIVE[:-12] + PROGRESSIVE[-2:],
        PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xc4")],
    ],
    ids=["scan", "scan with an end", "scan, and bytes between", "progressive", "last scan", "a scan is missing"],
)
def test_a_jpeg_whose_scan_ends_early_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)

    for read, kind in ((served, BadImageError), (picture, BadRequestError)):
        with pytest.raises(kind, match="JPEG image is damaged or cut short"):
            read(data)
    with pytest.raises(BadRequestError, match="JPEG image is damaged or cut short"):
        open_source(tmp_path / "a.jpg")
