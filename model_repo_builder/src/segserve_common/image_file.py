"""Reads from its bytes what an image file is: the server's decoder, the client and the command line judge by it."""

from __future__ import annotations

import io
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Data: TypeAlias = "bytes | mmap.mmap"

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
"""Suffixes of the files that servers decode."""
UPRIGHT: Final = 1
SWAPPED: Final = 5
"""From this orientation on, rows are columns."""
FROM_BELOW: Final = frozenset({3, 4, 7, 8})
FROM_RIGHT: Final = frozenset({2, 3, 6, 7})
MAX_PARTS: Final = 2**16
"""Most segments or chunks of a file. A photograph has a handful, the largest PNG one for every 4 or 8 KiB."""
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
START_OF_SCAN: Final = 0xDA
END_OF_JPEG: Final = b"\xff\xd9"
_WITHOUT_LENGTH: Final = frozenset({0x01, 0xD8})
_NO_FRAMES: Final = frozenset({0xC4, 0xC8, 0xCC})  # tables among the markers of frames
# A marker after any number of fill bytes; a scan's data contains 0xFF only before 0 and as one of eight markers.
_MARKER: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_PALETTE: Final = 3

_SUBFILE, _OLD_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SUB_IFDS = 274, 277, 284, 322, 323, 330
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _GEO_KEYS, _GDAL_NODATA, _DNG_VERSION = 338, 339, 34735, 42113, 50706
COLOUR_MAP: Final = 320
_READ: Final = frozenset(
    {_SUBFILE, _OLD_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR}
    | {_TILE_WIDTH, _TILE_LENGTH, _SUB_IFDS, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _GEO_KEYS, _GDAL_NODATA, _DNG_VERSION}
)
_TYPES: Final = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_SHORT, _LONG = 3, 4
_MOST_VALUES: Final = 1024
_MOST_SUB_IFDS: Final = 16
_MOST_PAGES: Final = 64
"""Up to this many pages are searched for a mask: a GeoTIFF has some 20 for its overviews."""
_REDUCED, _MASK = 1, 4
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
MOSAICS: Final = frozenset({32803, 34892})
_NAMES: Final = {0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
UNSIGNED: Final = 1
_FORMATS: Final = {1: "unsigned", 2: "signed", 3: "float"}
_RAW: Final = "a camera's raw file; develop it to JPEG or TIFF first"
_COMPRESSIONS: Final = {
    34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34933: "PNG", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_HEAD: Final = 512
"""Bytes by which a file that is no image is named."""
_READ_BY_PILLOW: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
_READ_BY_OPENCV: Final = frozenset({1, 5, 8, 32773, 32946})
_BY_PILLOW: Final = "convert it to PNG or JPEG (Pillow reads it)"
_FRAMES: Final = "send its frames one by one, as images"
_PAGES: Final = "draw its page as a PNG first"
_KINDS: Final = (
    (0, rb"FUJIFILM|IIRO|IIRS|MMOR|IIU\0|FOVb|IIII|....ftypcrx ", _RAW, ""),
    (4, rb"ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC file", "convert it to JPEG (pillow-heif reads it)"),
    (4, rb"ftypavi[fs]", "an AVIF file", _BY_PILLOW),
    (4, rb"ftyp|moov|mdat|wide", "a video (MP4 or QuickTime)", _FRAMES),
    (0, rb"RIFF....AVI |\x1a\x45\xdf\xa3|FLV\x01|OggS|\x00\x00\x01[\xb3\xba]|\x30\x26\xb2\x75", "a video", _FRAMES),
    (128, rb"DICM", "a DICOM file", "convert it to PNG, scaled by its window (pydicom reads it)"),
    (344, rb"n[+i][12]\0", "a NIfTI volume", "convert slices to PNG, scaled (nibabel reads it)"),
    (0, rb"\x1f\x8b", "compressed by gzip, as NIfTI volumes (.nii.gz) are", "unpack it first"),
    (0, rb"\x93NUMPY", "a file of numpy", "convert it to PNG or TIFF, or use `segserve batch`, which reads it"),
    (0, rb"PK\x03\x04", "a ZIP archive", "unpack it first"),
    (0, rb"\x89HDF\r\n", "an HDF5 file", "convert an array of it to PNG or TIFF (h5py reads it)"),
    (0, rb"%PDF", "a PDF document", _PAGES),
    (0, rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", _PAGES),
    (0, rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg", "a drawing (SVG)", _PAGES),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", "an HTML page, perhaps of a failed download", ""),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*<\?xml", "an XML document", ""),
    (0, rb"version https://git-lfs", "a pointer of Git LFS", "git lfs pull brings the file"),
    (0, rb"NRRD000|ObjectType\s*=|SIMPLE  =", "a volume (NRRD, MetaImage or FITS)", "convert slices to PNG"),
    (0, rb"ZISRAWFILE|\xda\xce\xbe\x0a|\x70\0\0\0", "a microscope's file", "export its planes as TIFF"),
    (0, rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 file", _BY_PILLOW),
    (0, rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL file", "convert it to PNG (djxl)"),
    (0, rb"GIF8[79]a", "a GIF file", _BY_PILLOW),
    (0, rb"BM....\0\0\0\0|P[1-7][\s#]|qoif|\x0a\x05\x01\x08|DDS |\x00\x00\x01\x00", "of another format", _BY_PILLOW),
    (0, rb"8BPS", "a Photoshop file", "export it as PNG or TIFF"),
    (0, rb"\x76\x2f\x31\x01|#\?RADIANCE", "a picture of high dynamic range", "convert it to a PNG of 16 bits"),
)  # fmt: skip
"""What files are by the bytes at an offset, and how their pictures get here; the first that fits counts."""
# What the signatures of files are in base64, at the start or after what is no base64; JPEG's also for URLs.
_BASE64: Final = re.compile(rb"(?:\A|[^\w+/])(iVBORw0K|[/_]9j[/_]|UklGR|SUk[qr]A|TU0AK|R0lGOD)|\A\s*data:[\w/]*[;,]")
_BASE64_FORMATS: Final = {b"iV": "PNG", b"/9": "JPEG", b"_9": "JPEG", b"Uk": "WebP", b"SU": "TIFF", b"TU": "TIFF"}
ALLOWED_SAMPLES: Final = "unsigned 8 bit, and unsigned 16 bit as grey or interleaved RGB or RGBA"


def is_named_as(path: Path, suffixes: AbstractSet[str] = IMAGE_SUFFIXES) -> bool:
    """Return whether a file has one of these suffixes, in any case.

    macOS puts a file `._x.png`, which is not an image, beside `x.png` on other file systems.
    """
    return path.suffix.lower() in suffixes and not path.name.startswith("._")


class ImageFileError(ValueError):
    """A file is not an image that segserve reads; the message says what it is."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """An image file by its header. `height` and `width` are as stored, before `orientation` 1..8 is applied.

    The other fields are TIFF's: `photometric`, `sample_format`, `planar`, `compression` and `extra_samples` by
    their numbers, `tile` the height and width of a tile (1 without), `nodata` the value that GDAL writes. In a GeoTIFF,
    `alpha` is the number of the band, and `mask_page` the number of the page, that is 0 where there are no data.
    """

    format: Literal["JPEG", "PNG", "WebP", "TIFF"]
    height: int
    width: int
    orientation: int
    channels: int
    bits: int
    photometric: int = RGB
    sample_format: int = UNSIGNED
    planar: int = 1
    compression: int = 1
    extra_samples: tuple[int, ...] = ()
    tile: tuple[int, int] = (1, 1)
    nodata: float | None = None
    alpha: int | None = None
    mask_page: int | None = None
    is_placed: bool = False
    """Whether a TIFF has a place on Earth (GeoTIFF's keys)."""

    @property
    def gaps(self) -> str:
        """What says in which pixels a GeoTIFF has no data; empty if it has them everywhere."""
        marks = {f"nodata is {self.nodata or 0:g}": self.nodata, "an alpha band": self.alpha, "a mask": self.mask_page}
        return ", ".join(name for name, mark in marks.items() if mark is not None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation >= SWAPPED else (self.height, self.width)

    @property
    def samples(self) -> str:
        """The samples of a TIFF in words."""
        kind = _FORMATS.get(self.sample_format, f"sample format {self.sample_format}")
        colour = _NAMES.get(self.photometric, f"photometric interpretation {self.photometric}")
        return f"{self.channels} samples of {self.bits} bits ({kind}, {colour}{', planar' if self.planar == 2 else ''})"

    def check_compression(self) -> None:
        """Raise `ImageFileError` if servers do not decode a TIFF's compression; tiles, which send pixels, may."""
        read = _READ_BY_OPENCV if self.bits == 16 else _READ_BY_PILLOW
        if self.format == "TIFF" and self.compression not in read:
            raise ImageFileError(
                f"TIFF image of {self.bits} bits is compressed by "
                f"{_COMPRESSIONS.get(self.compression, f'scheme {self.compression}')}; servers read "
                f"{'LZW, deflate and PackBits' if self.bits == 16 else 'LZW, deflate, PackBits, JPEG and Zstandard'}: "
                "gdal_translate -co COMPRESS=DEFLATE, or segserve batch, which sends pixels"
            )

    def is_deep(self) -> bool:
        """Return whether a TIFF has 16 bits of a kind that is read; others are read by `shallow_tiff`, or not.

        Raises `ImageFileError` for other samples.
        """
        is_known = self.sample_format == UNSIGNED and self.photometric != 8
        if is_known and self.bits in (1, 2, 4, 8):
            return False
        is_grey = self.channels == 1 and self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        is_colour = self.channels in (3, 4) and self.photometric == RGB and self.planar == 1
        if is_known and self.bits == 16 and (is_grey or is_colour):
            return True
        raise unread_samples(self)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise `ImageFileError` for an image that is too large or empty."""
    if not 0 < height * width <= max_pixels:
        raise ImageFileError(
            f"image of {width} x {height} = {height * width} pixels; allowed are 1 to {max_pixels} (input.maxPixels)"
        )


def unread_samples(file: ImageHeader) -> ImageFileError:
    """Return the error for the samples of a TIFF that are not read, with what converts them."""
    advice = ""
    if file.sample_format == UNSIGNED and file.bits in (8, 16) and file.channels >= 3:
        advice = "; if its bands are red, green and blue: gdal_translate -co PHOTOMETRIC=RGB -co INTERLEAVE=PIXEL"
    return ImageFileError(f"TIFF image has {file.samples}; allowed are {ALLOWED_SAMPLES}{advice}")


def describe_file(path: Path) -> ImageHeader:
    """Describe a file, reading only the parts that matter; raises as `describe` does, and `OSError`."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return describe(b"")
    with data:
        return describe(data)


def describe(data: Data) -> ImageHeader:
    """Describe a JPEG, PNG, WebP or TIFF file by its first bytes and its header, without decoding it.

    Orientation is EXIF's (in a PNG the eXIf chunk, in a TIFF the tag), or 1 if it is broken; XMP's orientation is
    ignored, as in browsers. Of several pages or frames, the first is described. Raises `ImageFileError` for other
    files, raw files of cameras, TIFFs that begin with a thumbnail or mask, and headers that are damaged.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:8] == PNG_SIGNATURE:
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise ImageFileError(f"PNG image is damaged or cut short: no header in its {len(data)} bytes")
        width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
        exif = b""
        try:
            for kind, start, end in png_chunks(data):
                if kind == b"eXIf":
                    exif = data[start + 8 : end - 4]
                    break
        except ImageFileError:
            pass  # the decoder refuses the file; its size is known
        photometric = PALETTE if colour == _PNG_PALETTE else RGB
        return ImageHeader(
            "PNG", height, width, exif_orientation(exif), _PNG_CHANNELS.get(colour, 4), bits, photometric=photometric
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:4] in TIFF_SIGNATURES:
        try:
            return _tiff(data)
        except struct.error as error:
            raise ImageFileError(f"TIFF image is damaged or cut short: {error}") from error
    seen = f"its first bytes are {bytes(data[:8])!r}" if len(data) else "it is empty"
    head = bytes(data[:_HEAD])
    for offset, signature, what, way in _KINDS:
        if re.match(signature, head[offset:], re.DOTALL):
            seen = f"it is {what}{way and f': {way}'}"
            break
    seen = base64_in(head) or seen
    raise ImageFileError(f"image is not a JPEG, PNG, WebP or TIFF file: {seen}")


def base64_in(head: bytes) -> str:
    """Return what a file is if it begins with an image in base64, bare, in JSON or a data: URL; else empty."""
    found = _BASE64.search(head.replace(b"\\/", b"/").replace(b"%2F", b"/"))
    if found is None:
        return ""
    format_ = _BASE64_FORMATS.get((found[1] or b"")[:2], "file")
    return (
        f"it is the base64 text of a {format_}; send the bytes themselves, or "
        '{"image": "<base64>"} as application/json to POST /v1/models/NAME:segment'
    )


def _jpeg(data: Data) -> ImageHeader:
    frame = exif = None
    for marker, start, end in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES and frame is None:
            frame = data[start : start + 6]
        elif marker == 0xE1 and exif is None and data[start : start + 6] == b"Exif\0\0":
            exif = data[start + 6 : end]
    if frame is None or len(frame) < 6:
        raise ImageFileError("JPEG image is damaged or cut short: it has no frame header")
    bits, height, width, channels = struct.unpack(">BHHB", frame)
    return ImageHeader("JPEG", height, width, exif_orientation(exif or b""), channels, bits)


def jpeg_segments(data: Data) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment up to the end of the image, and where its body starts and ends.

    Raises `ImageFileError` if there are too many.
    """
    position = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None or found[1] == END_OF_JPEG[1:]:
            return
        marker, start = found[1][0], found.end() + 2
        if marker in _WITHOUT_LENGTH:
            position = found.end()
            continue
        position = found.end() + max(int.from_bytes(data[start - 2 : start], "big"), 2)
        yield marker, start, position
    raise ImageFileError(f"JPEG image has more than {MAX_PARTS} segments; at most that many are allowed")


def png_chunks(data: Data) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's type, start and end.

    Raises `ImageFileError` if one goes beyond the data, and if there are too many.
    """
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if position + 12 > len(data):
            raise ImageFileError(f"PNG image is damaged or cut short: no IEND in its {len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ImageFileError(
                f"PNG image is damaged or cut short: chunk {kind!r} ends at {end} of {len(data)} bytes"
            )
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise ImageFileError(f"PNG image has more than {MAX_PARTS} chunks; at most that many are allowed")


def _webp(data: Data) -> ImageHeader:
    kind = data[12:16]
    if len(data) >= 30 and kind == b"VP8X":
        height, width = 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    elif len(data) >= 30 and kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif len(data) >= 25 and kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        height, width = 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    else:
        raise ImageFileError(f"WebP image is damaged or cut short: no header in its {len(data)} bytes")
    exif = next((data[start:end] for kind, start, end in webp_chunks(data) if kind == b"EXIF"), b"")
    return ImageHeader("WebP", height, width, exif_orientation(exif), 3, 8)


def webp_chunks(data: Data) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's type, and where its body starts and ends; raises `ImageFileError` if there are too many."""
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, position + 8 + length
        position += 8 + length + length % 2
    raise ImageFileError(f"WebP image has more than {MAX_PARTS} chunks; at most that many are allowed")


def exif_orientation(exif: bytes) -> int:
    """Return the orientation 1..8 in an EXIF block (a TIFF header and directory), 1 if there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(entries):
            tag, kind = struct.unpack_from(order + "HH", exif, directory + 2 + 12 * entry)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                (value,) = struct.unpack_from(order + _TYPES[kind], exif, directory + 10 + 12 * entry)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:
        # A broken EXIF block does not make the picture bad; Pillow and OpenCV also read on.
        return UPRIGHT
    return UPRIGHT


def _tiff(data: Data) -> ImageHeader:
    tags, names, following = _directory(data, _first_offset(data))
    if len(set(names)) < len(names):
        # Readers differ in which of the two they take.
        raise ImageFileError(
            f"TIFF image has {len(names)} tags, of which some are repeated: {names[:100]}; allowed is one of each"
        )
    channels, bits = _number(tags, _SAMPLES, 1), tags.get(_BITS, (1,))
    if len(set(bits)) > 1:
        raise ImageFileError(f"TIFF image has samples of {bits} bits; allowed are {ALLOWED_SAMPLES}")
    _check_photometric(tags)
    photometric = _number(tags, _PHOTOMETRIC, RGB)
    if COLOUR_MAP in names and photometric == BLACK_IS_ZERO and channels == 1 and bits[0] >= 8:
        photometric = PALETTE  # as for GDAL, which adds a table of colours to a written file without changing this
    nodata = b"".join(each for each in tags.get(_GDAL_NODATA, ()) if isinstance(each, bytes)).strip(b"\0 ")
    orientation = _number(tags, _ORIENTATION, UPRIGHT)
    described = ImageHeader(
        "TIFF",
        height=_number(tags, _LENGTH, 0),
        width=_number(tags, _WIDTH, 0),
        orientation=orientation if 1 <= orientation <= 8 else UPRIGHT,
        channels=channels,
        bits=bits[0],
        photometric=photometric,
        sample_format=max(tags.get(_SAMPLE_FORMAT, (UNSIGNED,))),
        planar=_number(tags, _PLANAR, 1) if channels > 1 else 1,
        compression=_number(tags, _COMPRESSION, 1),
        extra_samples=tags.get(_EXTRA_SAMPLES, ()),
        tile=(_number(tags, _TILE_LENGTH, 1), _number(tags, _TILE_WIDTH, 1)),
        nodata=float(nodata) if re.fullmatch(rb"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|nan)", nodata) else None,
    )
    if _GEO_KEYS in tags:
        described = replace(_marked(described, _pages(data, following, _MOST_PAGES)), is_placed=True)
    subfile = _number(tags, _SUBFILE, _REDUCED if _number(tags, _OLD_SUBFILE, 1) == 2 else 0)
    is_raw = _DNG_VERSION in tags or described.photometric in MOSAICS or data[8:10] == b"CR"
    if is_raw or any(_is_raw(data, described, offset) for offset in tags.get(_SUB_IFDS, ())[:_MOST_SUB_IFDS]):
        raise ImageFileError(f"image is {_RAW}")
    is_alone = not following and not tags.get(_SUB_IFDS)
    if subfile & _MASK or (subfile & _REDUCED and not is_alone):
        kind = "a mask" if subfile & _MASK else "a reduced copy (a thumbnail)"
        raise ImageFileError(
            f"TIFF image begins with {kind} of {described.height} x {described.width} pixels, and only the first page "
            "is read; write the picture as the first page"
        )
    return described


def _check_photometric(tags: Mapping[int, Any]) -> None:
    """Raise `ImageFileError` if a TIFF's tags lack the photometric interpretation.

    Readers differ in what they take for granted then: Pillow that 0 is white, libtiff that it is black.
    """
    if _PHOTOMETRIC not in tags:
        raise ImageFileError(
            "TIFF image does not say whether 0 is black or white (tag 262, photometric interpretation, is missing): "
            "tiffset -s 262 1 says black, 2 says RGB"
        )


def check_opened(tags: Mapping[int, Any], frames: int) -> int:
    """Return the photometric interpretation of a TIFF of so many frames that Pillow has opened, by its tags.

    Raises `ImageFileError` for what is not read from a file either.
    """
    if _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) in MOSAICS:
        raise ImageFileError(f"image is {_RAW}")
    if frames > 1 and tags.get(_SUBFILE, 0) & (_REDUCED | _MASK):
        raise ImageFileError("TIFF image is a reduced copy (a thumbnail) or a mask; seek to the page of the picture")
    _check_photometric(tags)
    bits, formats = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (UNSIGNED,))
    header = ImageHeader("TIFF", 1, 1, UPRIGHT, len(bits), max(bits), tags[_PHOTOMETRIC], max(formats))
    if header.sample_format != UNSIGNED or header.bits > 16:
        raise unread_samples(header)
    return header.photometric


def _marked(file: ImageHeader, following: Iterator[Mapping[int, tuple[Any, ...]]]) -> ImageHeader:
    """Return a GeoTIFF with its alpha band and mask page; its overviews have masks of their own."""
    extra, size = file.extra_samples, (_MASK, file.height, file.width)
    alpha = next((file.channels - len(extra) + place for place, kind in enumerate(extra) if kind in (1, 2)), None)
    pages = ([_number(tags, tag, 0) for tag in (_SUBFILE, _LENGTH, _WIDTH)] for tags in following)
    masks = (n for n, (kind, *own) in enumerate(pages, 1) if (kind & (_REDUCED | _MASK), *own) == size)
    return replace(file, alpha=alpha, mask_page=next(masks, None))


def _first_offset(data: Data) -> int:
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    offset: int = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    return offset


def _number(tags: Mapping[int, tuple[Any, ...]], tag: int, default: int) -> int:
    values = tags.get(tag, (default,))
    if len(values) == 1 and isinstance(values[0], int):
        return values[0]
    raise ImageFileError(f"TIFF tag {tag} is {values!r}; allowed is one integer")


def _directory(data: Data, offset: int) -> tuple[dict[int, tuple[Any, ...]], list[int], int]:
    """Return the values of tags that matter, the numbers of all tags, and the offset of the next directory."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    word, count_word, entry, inline = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    if offset > len(data):
        raise struct.error(f"a directory begins at {offset} of {len(data)} bytes")
    (entries,) = struct.unpack_from(order + count_word, data, offset)
    first = offset + struct.calcsize(order + count_word)
    if first + entries * entry > len(data):
        raise struct.error(f"a directory of {entries} tags ends after {len(data)} bytes")
    tags, names = dict[int, tuple[Any, ...]](), list[int]()
    for place in range(first, first + entries * entry, entry):
        tag, kind, count = struct.unpack_from(order + "HH" + word, data, place)
        names.append(tag)
        if tag not in _READ or kind not in _TYPES or not 0 < count <= _MOST_VALUES:
            continue
        form = f"{order}{count}{_TYPES[kind]}"
        start = place + entry - inline
        if struct.calcsize(form) > inline:
            (start,) = struct.unpack_from(order + word, data, start)
        if start + struct.calcsize(form) > len(data):
            raise struct.error(f"tag {tag} ends after {len(data)} bytes")
        tags[tag] = struct.unpack_from(form, data, start)
    end = first + entries * entry
    following = struct.unpack_from(order + word, data, end)[0] if end + inline <= len(data) else 0
    return tags, names, following


def _is_raw(data: Data, described: ImageHeader, offset: int) -> bool:
    """Return whether a directory below the first holds the picture: a mosaic, or more pixels than the first."""
    try:
        tags, _, _ = _directory(data, offset)
        photometric, width, height = (_number(tags, tag, 0) for tag in (_PHOTOMETRIC, _WIDTH, _LENGTH))
    except (struct.error, ImageFileError, TypeError):
        return False
    return photometric in MOSAICS or width * height > described.width * described.height


def frame_count(data: Data) -> int:
    """Return the number of frames or pages of a file that `describe` accepts, without reduced copies and masks.

    For a JPEG it is 1: further pictures of an MPO are previews and depth maps.
    """
    if data[:8] == PNG_SIGNATURE:
        animation = next((start for kind, start, _ in png_chunks(data) if kind == b"acTL"), None)
        return 1 if animation is None else max(int.from_bytes(data[animation + 8 : animation + 12], "big"), 1)
    if data[:4] == b"RIFF":
        return max(sum(kind == b"ANMF" for kind, _, _ in webp_chunks(data)), 1)
    if data[:4] not in TIFF_SIGNATURES:
        return 1
    pages = _pages(data, _first_offset(data), MAX_PARTS)
    return max(sum(not _number(tags, _SUBFILE, 0) & (_REDUCED | _MASK) for tags in pages), 1)


def _pages(data: Data, offset: int, most: int) -> Iterator[dict[int, tuple[Any, ...]]]:
    """Yield the tags of a TIFF's pages from the one at `offset` up to one that is damaged."""
    seen = set[int]()
    while offset and offset not in seen and len(seen) < most:
        seen.add(offset)
        try:
            tags, _, offset = _directory(data, offset)
            _ = [_number(tags, tag, 0) for tag in (_SUBFILE, _LENGTH, _WIDTH)]
        except (struct.error, ImageFileError):
            return
        yield tags


def shallow_tiff(data: bytes, file: ImageHeader) -> NDArray[np.uint8]:
    """Return the pixels of a TIFF of at most 8 bits as stored, not turned: (H, W) if grey, else RGB (H, W, 3).

    Raises `ImageFileError` for data that are damaged, or of a kind that Pillow does not read.
    """
    import numpy as np
    from PIL import TiffImagePlugin

    if data[:4] == b"MM\0+":
        raise ImageFileError("TIFF image is a big-endian BigTIFF, which Pillow does not read; write it little-endian")

    class StoredTiff(TiffImagePlugin.TiffImageFile):
        def load_end(self) -> None:
            """Leave the pixels as they are: Pillow would turn them, also as XMP says."""

    try:
        # Not Image.open: its limit on pixels would apply before the model's.
        image = StoredTiff(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damaged bytes lead to
        if "unknown pixel mode" in str(error):
            raise unread_samples(file) from error
        raise ImageFileError(
            f"TIFF image is damaged or cut short, or of a kind that cannot be read: {error}"
        ) from error
    if image.height * image.width != file.height * file.width:
        raise ImageFileError(f"TIFF image has two sizes, {image.size} and {(file.width, file.height)}")
    try:
        if file.photometric == PALETTE and image.mode == "L":
            return coloured(np.asarray(image), image.tag_v2[COLOUR_MAP])
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except MemoryError:
        raise
    except Exception as error:
        raise ImageFileError(
            f"TIFF image is damaged or cut short, or of a kind that cannot be read: {error}"
        ) from error


def coloured(indices: NDArray[np.uint8], table: Sequence[int]) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3) of indices (H, W) by a TIFF's table of 3 x 256 values of 16 bits.

    Raises `ImageFileError` for a table of another size.
    """
    import numpy as np

    if len(table) != 768:
        raise ImageFileError(f"TIFF image of 8 bits has a colour table of {len(table)} values; allowed are 768")
    colours = np.asarray(table, np.uint16).reshape(3, -1).T >> 8
    return colours.astype(np.uint8)[indices]


def windowed(pixels: NDArray[np.uint16], window: tuple[int, int]) -> NDArray[np.uint16]:
    """Return pixels with the low end of a window of values as 0, the high one as 65535, and all beyond cut off."""
    import numpy as np

    low, high = window
    values = (np.clip(np.arange(65536), low, high) - low) * 65535 // (high - low)
    return values.astype(np.uint16)[pixels]


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return stored pixels (H, W) or (H, W, C) upright, given their orientation 1..8; a view."""
    if orientation >= SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in FROM_BELOW else 1, :: -1 if orientation in FROM_RIGHT else 1]
