"""`segserve predict` of many images: which they are, what is written of them, and what becomes of those that fail."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pty
import re
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from fakes.kserve import Fault, Gateway
from segserve.exports.coco import merge
from segserve_platform.cli.coco_text import CocoText

from ..conftest import HEIGHT, WIDTH, coin_masks
from .conftest import Command, conditions, model


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with gateway.http() as url:
        yield url


@pytest.fixture
def photos(tmp_path: Path, photo: bytes) -> Path:
    """Three images, one of them in a folder below; and a text."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "below/a.png"):
        (folder / name).write_bytes(photo)
    (folder / "notes.txt").write_text("no image")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_glob_a_folder_and_standard_input_name_images_each_once(
    command: Command, url: str, photos: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo)))

    _, printed, complaint = command(
        "predict", "discs", f"{photos}/*.jpg", photos, photos / "a.png", "-", "--json", "--url", url
    )

    assert [image["file_name"] for image in json.loads(printed)["images"]] == ["b.jpg", "a.png", "stdin"]
    assert complaint.splitlines()[0] == f"skipped 1 file without the name of an image: {photos}/notes.txt"
    assert complaint.splitlines()[1].startswith("3 images, all segmented")


@pytest.mark.parametrize(
    ("named", "said"),
    [("nix/*.jpg", "no file matches 'nix/*.jpg'"), ("empty", "empty has no images; looked for *.apng")],
)
def test_what_names_no_image_is_an_error(
    command: Command, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    code, _, complaint = command("predict", "discs", named, "--url", url)

    assert (code, complaint.startswith(f"error: {said}")) == (1, True)


def test_overlays_and_masks_of_folders_keep_their_form(
    command: Command, url: str, photos: Path, tmp_path: Path
) -> None:
    overlays, masks = tmp_path / "overlays", tmp_path / "masks"

    code, _, _ = command("predict", "discs", photos, "-r", "-o", overlays, "--masks", masks, "--url", url)

    assert code == 0
    assert files(overlays) == {"a.png", "b.png", "below/a.png"}
    assert files(masks) == {f"{stem}-00{n}-coin.png" for stem in ("a", "b", "below/a") for n in (1, 2)}
    with Image.open(masks / "below/a-002-coin.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask) > 0, coin_masks()[1])


@pytest.mark.parametrize(("limit", "option"), [(2, False), (3, False), (300, True), (None, True), (None, False)])
def test_results_that_reach_the_limit_of_objects_are_counted(
    command: Command, gateway: Gateway, url: str, photos: Path, limit: int | None, option: bool
) -> None:
    discs = gateway.models["discs"]
    own = {} if limit is None else {"maxDetections": str(limit)}
    gateway.models["discs"] = type(discs)(discs.outputs, {**discs.parameters, **own}, discs.answer)

    for form in ([], ["--json"]):
        asked = ["--max-detections", 2] if option else []
        code, _, complaint = command("predict", "discs", photos, *asked, *form, "--url", url)

        named = "--max-detections" if option else "maxDetections of output or a stage"
        note = f"note: 2 of 2 results have as many objects as the limit ({named}): there may be more"
        assert (code, note in complaint) == (0, option or limit == 2)


def test_a_semantic_mask_is_a_label_map(command: Command, url: str, photos: Path, tmp_path: Path) -> None:
    command("predict", "coins", photos / "a.png", "--masks", tmp_path / "masks", "--url", url)

    with Image.open(tmp_path / "masks/a.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), coin_masks().any(axis=0))


def test_an_image_that_fails_is_named_and_the_others_are_done(
    command: Command, url: str, photos: Path, tmp_path: Path
) -> None:
    (photos / "a.png").unlink()
    (photos / "broken.png").symlink_to(photos / "gone.png")
    target = tmp_path / "new/found.json"

    code, printed, complaint = command(
        "predict", "discs", photos / "broken.png", photos, photos / "missing.png", "--coco", target, "--url", url
    )

    assert code == 1
    assert printed.count("discs-bbbbbbbbbb") == 1
    assert f"error: {photos}/broken.png: cannot read image" in complaint
    assert "3 images, 2 failed" in complaint
    assert [(one["id"], one["file_name"]) for one in json.loads(target.read_text())["images"]] == [(2, "b.jpg")]


def test_an_ordinary_image_is_segmented_without_what_only_tiles_need(url: str, photos: Path) -> None:
    script = (
        "import sys; from segserve_platform.cli.app import main; sys.argv = ['segserve', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print(*(name for name, module in sys.modules.items() if module), file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, "predict", "discs", photos / "a.png", "--url", url],
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = set(done.stderr.splitlines()[-1].split())
    assert not loaded & {"segserve.tiled", "pydantic", "pygments", "click", "segserve_operator"}


def data_sets(count: int, objects: int) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        found = [
            {
                "id": each,
                "image_id": number,
                "segmentation": {"size": [9, 9], "counts": "ä" + "0a" * 500},
                "bbox": [0.5, 1],
            }
            for each in range(1, objects + 1)
        ]
        categories = [{"id": number % 3, "name": f'"{number % 3}"'}]
        yield {
            "images": [{"id": number, "file_name": f"{number}\n.jpg"}],
            "categories": categories,
            "annotations": found,
        }


@pytest.mark.parametrize(("count", "objects"), [(0, 0), (1, 0), (1, 1), (3, 2), (40, 70)])
def test_a_data_set_that_is_written_as_it_comes_has_the_text_of_the_merged_one(count: int, objects: int) -> None:
    with CocoText() as text:
        for data_set in data_sets(count, objects):
            text.add(data_set)
        for _ in range(2):  # it is printed and written
            assert "".join(text.chunks()) == json.dumps(merge([*data_sets(count, objects)]), indent=2) + "\n"


def test_a_data_set_takes_no_more_memory_with_more_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        gc.collect()  # an encoder of indented JSON is a cycle
        tracemalloc.start()
        with CocoText(tmp_path) as text:
            for data_set in data_sets(count, 50):
                text.add(data_set)
            size = sum(map(len, text.chunks()))
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size > count * 50_000
        return taken

    peak(1)  # what is imported and compiled once is of no image
    # When Python collects cycles is by version; 300 more images are 15 MB of text.
    assert peak(400) < peak(100) + 1_000_000


def test_what_is_interrupted_leaves_no_file_of_a_data_set(tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    target.write_text("of before")

    def interrupted() -> None:
        with CocoText(tmp_path) as text:
            for data_set in data_sets(3, 10):
                text.add(data_set)
                assert files(tmp_path) == {"found.json"}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"found.json": "of before"}


def test_what_all_images_would_fail_of_ends_it_at_the_first(
    command: Command, url: str, photos: Path, gateway: Gateway
) -> None:
    code, _, complaint = command("predict", "dogs", photos, "-r", "--in-flight", "1", "--url", url)

    assert (code, complaint.count("error:"), gateway.inferences) == (1, 1, 0)


def test_a_server_that_fails_once_costs_one_image(command: Command, url: str, photos: Path, gateway: Gateway) -> None:
    gateway.faults.append(Fault(http=500, message="no memory"))

    code, printed, complaint = command("predict", "discs", photos, "-r", "--in-flight", "1", "--url", url)

    assert (code, printed.count("discs-bbbbbbbbbb")) == (1, 2)
    assert "no memory" in complaint


def test_of_many_images_each_has_a_line_in_the_order_of_their_names(
    command: Command, url: str, photos: Path, photo: bytes
) -> None:
    for number in range(12):
        (photos / f"n{number:02}.png").write_bytes(photo)

    _, printed, _ = command("predict", "discs", f"{photos}/n*.png", "--in-flight", "8", "--url", url)

    lines = printed.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"n{number:02}.png" for number in range(12)]
    assert all("2 coin" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "said"), [("--masks", "--masks must be a folder"), ("--coco", "--coco must be a file")]
)
def test_a_target_of_the_wrong_kind_is_found_out_before_anything_is_asked(
    command: Command, url: str, photos: Path, gateway: Gateway, option: str, said: str
) -> None:
    target = photos / "a.png" if option == "--masks" else photos

    code, _, complaint = command("predict", "discs", photos / "b.jpg", option, target, "--url", url)

    assert (code, said in complaint, gateway.inferences) == (1, True, 0)


def screen(raw: str) -> list[str]:
    """Return the lines of a terminal after it was sent the output of rich."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", raw):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.startswith("\x1b"):
            row -= int(part[2:-1]) if part.endswith("A") else 0
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_tables_bar_and_messages_on_one_terminal_leave_whole_lines(url: str, photos: Path, photo: bytes) -> None:
    (photos / "broken.gif").write_bytes(b"GIF89a")
    command = [
        sys.executable,
        "-m",
        "segserve_platform.cli",
        "predict",
        "discs",
        str(photos),
        "-r",
        "-o",
        str(photos / "out"),
    ]
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*command, "--url", url, "--in-flight", "1"],
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ):
        os.close(terminal)
        sent = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while read := os.read(controller, 100_000):
                sent += read
    os.close(controller)
    shown = sent.decode()

    lines = screen(shown)
    assert "/4" in shown, "the bar was shown"
    for name in ("a.png", "b.jpg", "below/a.png"):
        assert f"{name}  80 x 60" in [line.strip() for line in lines]
        assert f"overlay: {photos}/out/{Path(name).with_suffix('.png')}" in lines
    assert sum(line.startswith("┃ class") for line in lines) == 3
    assert any(line.startswith(f"error: {photos}/broken.gif:") for line in lines)
    assert not any("images" in line and "━━━" in line for line in lines), "nothing is left of the bar"


def written(path: Path, form: str, **options: Any) -> Path:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path, form, **options)
    return path


@pytest.mark.parametrize("form", ["GIF", "BMP", "AVIF", "JPEG2000", "TGA", "PPM"])
def test_a_format_that_servers_do_not_decode_is_decoded_here_and_sent_as_pixels(
    command: Command, url: str, tmp_path: Path, gateway: Gateway, form: str
) -> None:
    path = written(tmp_path / "photo", form)

    code, _, complaint = command("predict", "coins", path, "-o", tmp_path / "overlay.png", "--url", url)

    assert (code, complaint) == (0, "")
    with Image.open(path) as image:
        np.testing.assert_array_equal(gateway.asked[-1].inputs["PIXELS"], np.asarray(image.convert("RGB")))
    assert (tmp_path / "overlay.png").is_file()


def test_a_damaged_image_that_is_decoded_here_is_an_error_of_its_own(
    command: Command, url: str, photos: Path, gateway: Gateway
) -> None:
    whole = written(photos / "whole.bmp", "BMP").read_bytes()
    (photos / "cut.bmp").write_bytes(whole[: len(whole) // 2])

    code, _, complaint = command("predict", "discs", photos / "cut.bmp", photos / "whole.bmp", "--url", url)

    assert (code, len(gateway.asked)) == (1, 1)
    assert f"error: {photos}/cut.bmp: the BMP image is damaged or cut short" in complaint


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_or_pages_it_is_said_that_only_the_first_is_segmented(
    command: Command, url: str, tmp_path: Path, form: str
) -> None:
    more = [Image.new("RGB", (WIDTH, HEIGHT), (n, 0, 0)) for n in (90, 200)]
    path = written(tmp_path / "several", form, save_all=True, append_images=more)

    code, _, complaint = command("predict", "coins", path, "--url", url)

    assert code == 0
    assert complaint == f"note: only the first of the 3 frames or pages of {path} was segmented\n"


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)], ids=["grey", "RGB"])
@pytest.mark.parametrize("largest", [4095, 65535])
def test_an_image_of_16_bits_that_uses_little_of_them_is_noted(
    command: Command, url: str, tmp_path: Path, suffix: str, shape: tuple[int, ...], largest: int
) -> None:
    path = tmp_path / f"deep.{suffix}"
    assert cv2.imwrite(str(path), np.full(shape, largest, np.uint16))

    code, _, complaint = command("predict", "coins", path, "--url", url)

    assert code == 0
    noted = f"note: the values of {path} go up to 4095 of 65535, which is nearly black; set `window: [0, 4095]` of the"
    assert complaint.startswith(noted) is (largest == 4095)


def test_nodata_of_a_geotiff_is_noted(command: Command, url: str, tmp_path: Path) -> None:
    path = tmp_path / "geo.tif"
    tifffile.imwrite(path, np.zeros((HEIGHT, WIDTH), np.uint8), extratags=[(42113, "s", 5, "-9999", True)])

    code, _, complaint = command("predict", "coins", path, "--url", url)

    assert code == 0
    assert complaint == (
        f"note: pixels of {path} without data (nodata is -9999) are segmented and counted as others are; "
        "`segserve batch` leaves them out\n"
    )


def test_files_of_one_name_have_different_names_in_coco_and_masks(
    command: Command, url: str, tmp_path: Path, photo: bytes
) -> None:
    for name in ("x/a.png", "y/a.png", "y/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo)
    twins = [tmp_path / "x/a.png", tmp_path / "y/a.png"]

    _, printed, _ = command("predict", "discs", *twins, "--json", "--masks", tmp_path / "masks", "--url", url)
    command("predict", "coins", tmp_path / "y", "--masks", tmp_path / "maps", "--url", url)

    assert [image["file_name"] for image in json.loads(printed)["images"]] == ["x/a.png", "y/a.png"]
    assert files(tmp_path / "masks") == {f"{folder}/a-00{n}-coin.png" for folder in "xy" for n in (1, 2)}
    assert files(tmp_path / "maps") == {"a.png.png", "a.jpg.png"}


@pytest.mark.parametrize("option", ["-o", "--coco", "--masks"])
def test_what_does_not_fit_on_the_disk_leaves_the_file_that_was_there(
    url: str, photos: Path, tmp_path: Path, option: str
) -> None:
    target = tmp_path / "found"
    if option == "--masks":
        target.mkdir()
    else:
        target = tmp_path / "found.png"
        target.write_text("before")

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "segserve_platform.cli",
            "predict",
            "coins",
            photos / "a.png",
            option,
            target,
            "--url",
            url,
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, "cannot write" in done.stderr) == (1, True)
    assert files(tmp_path) - files(photos.parent) == set()
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []
    assert option == "--masks" or target.read_text() == "before"
    assert option != "--masks" or files(target) == set()


def test_a_device_is_written_to_and_not_replaced(command: Command, url: str, photos: Path) -> None:
    assert command("predict", "discs", photos / "a.png", "--coco", "/dev/null", "--url", url)[0] == 0
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("timeout", ["5s", "2m", "0.5", "30"])
def test_a_timeout_has_a_unit_or_is_in_seconds(command: Command, url: str, photos: Path, timeout: str) -> None:
    assert command("predict", "discs", photos / "a.png", "--timeout", timeout, "--url", url)[0] == 0


def test_another_timeout_is_an_error_of_the_command_line(command: Command, url: str, photos: Path) -> None:
    code, _, complaint = command("predict", "discs", photos / "a.png", "--timeout", "soon", "--url", url)

    assert (code, "such as 1h, 90s or 1h30m" in complaint) == (2, True)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The state folder of a platform that is not up, with a model that has not passed its golden images."""
    failed = model("fresh", roles={}, conditions=conditions("DigestMismatch", "sha256 is 1111", Degraded="True"))
    folder = tmp_path / "state/objects/SegmentationModel/fresh"
    folder.mkdir(parents=True)
    status = failed.pop("status")
    (folder / "spec.yaml").write_text(yaml.safe_dump(failed))
    (folder / "status.yaml").write_text(yaml.safe_dump(status))
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_model_that_exists_but_does_not_serve_is_not_unknown(
    command: Command, url: str, photos: Path, stored: Path
) -> None:
    code, _, complaint = command("predict", "fresh", photos / "a.png", "--url", url)

    assert code == 1
    assert "the model exists, but does not serve: DigestMismatch: sha256 is 1111" in complaint
    assert "did you mean" not in complaint
    assert "did you mean 'fresh'?" in command("predict", "frsh", photos / "a.png", "--url", url)[2]


def test_where_nothing_listens_and_no_platform_is_up_it_is_said_how_to_start_one(
    command: Command, photos: Path, stored: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, _, complaint = command("predict", "fresh", photos / "a.png", "--url", address)

    assert code == 1
    assert "no platform is up on this machine: `segserve up` starts it" in complaint
    assert len(complaint.splitlines()) == 1
