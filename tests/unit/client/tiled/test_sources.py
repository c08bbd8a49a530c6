"""Which large images are opened, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segserve import BadRequestError
from segserve.tiled import ImageTooLargeError, sources
from segserve.tiled.grid import Window
from segserve.tiled.sources import by_path, open_source


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_of_a_colour_png_are_kept(tmp_path: Path, channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 65536, (30, 40, channels), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., [2, 1, 0, 3][:channels]])

    assert (open_source(tmp_path / "a.png").read(Window(3, 5, 20, 40)) == image[3:20, 5:40, :3]).all()


@pytest.mark.parametrize("compression", ["lzw", "jpeg"])
def test_compressed_tiffs_of_other_programs_are_read(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("imagecodecs")
    image = np.full((130, 140, 3), 90, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), compression=compression, photometric="rgb")
    source = open_source(tmp_path / "a.tif")

    assert np.abs(source.read(Window(0, 0, 130, 140)).astype(int) - 90).max() <= 2
    source.close()


def test_the_first_level_of_a_pyramid_is_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(image, tile=(64, 64), subifds=1, photometric="rgb", compression="zlib")
        writer.write(image[::2, ::2], tile=(64, 64), subfiletype=1, photometric="rgb", compression="zlib")
    source = open_source(tmp_path / "p.tif")

    assert (source.height, source.width) == (256, 256)
    assert (source.read(Window(10, 20, 90, 200)) == image[10:90, 20:200]).all()
    source.close()


def test_an_image_on_disk_is_not_kept_in_memory_by_reading_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2000, 8000, 3), np.uint8), photometric="rgb")
    source = open_source(tmp_path / "a.tif")

    def resident_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssFile")).split()[1])

    before = resident_kib()
    for top in range(0, 2000, 100):
        source.read(Window(top, 0, top + 100, 8000))

    assert resident_kib() - before < 16_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.png", b"nothing", "cannot be read as a large image"),
        ("a.tif", b"II*\0nothing at all", "TIFF image is damaged or cut short"),
        ("a.npy", b"nothing", r"is not a \.npy file"),
    ],
)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(BadRequestError, match=said):
        open_source(tmp_path / name)


def test_a_stack_of_pages_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((5, 64, 64), np.uint8), photometric="minisblack")

    with pytest.raises(BadRequestError, match=r"axes .*\(5, 64, 64\)"):
        open_source(tmp_path / "z.tif")


def test_a_zarr_group_is_refused(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "g.zarr").create_array("inner", shape=(4, 4), dtype="uint8")

    with pytest.raises(BadRequestError, match=r"group of inner; pass the path .*inner .of an OME-Zarr"):
        open_source(tmp_path / "g.zarr")


def test_a_png_too_large_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(sources, "MAX_DECODED_PIXELS", 9999)

    with pytest.raises(ImageTooLargeError, match=r"100 x 100 pixels.*limited to 9999"):
        open_source(tmp_path / "a.png")


def test_a_tiff_of_one_huge_compressed_strip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((200, 200), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=200, compression="zlib")
    monkeypatch.setattr(sources, "MAX_CHUNK_BYTES", 39_999)

    with pytest.raises(ImageTooLargeError, match="strips of 200 rows, 40000 bytes each"):
        open_source(tmp_path / "a.tif")


def test_workers_open_a_zarr_array_by_its_path(tmp_path: Path) -> None:
    import zarr

    group = zarr.create_group(tmp_path / "g.zarr")
    array = group.create_array("inner", data=np.full((4, 5), 7, np.uint8))

    source = by_path(array).open()

    assert (source.read(Window(0, 0, 4, 5)) == 7).all()
