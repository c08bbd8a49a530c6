"""`segserve predict` of many images: which they are, what is written of them, and what becomes of those that fail."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Fault, Gateway

from ..conftest import coin_masks
from .conftest import Command


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
    assert complaint.startswith("3 images, all segmented")


@pytest.mark.parametrize(
    ("named", "said"),
    [("nix/*.jpg", "no file matches 'nix/*.jpg'"), ("empty", "empty has no images; looked for *.jpeg")],
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


def test_progress_is_shown_on_a_terminal_and_leaves_nothing_in_what_is_piped(url: str, photos: Path) -> None:
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "segserve.cli", "predict", "discs", str(photos), "-r", "--json", "--url", url],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm"},
            check=True,
        )
        shown = os.read(controller, 100_000).decode()
    finally:
        os.close(terminal)
        os.close(controller)

    assert len(json.loads(done.stdout)["images"]) == 3
    assert "images" in shown
    assert "/3" in shown
