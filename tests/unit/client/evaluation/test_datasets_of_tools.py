"""Data sets as tools write them: each form with images of each format, paths of other tools and systems."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segserve import DatasetError
from segserve.results.values import SegmentClass
from segserve_platform.evaluation.datasets import Dataset, read_dataset
from segserve_platform.evaluation.regions import pixel_labels

from .conftest import COUNT, HEIGHT, WIDTH, coco_document

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def images_into(folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(COUNT):
        Image.new("RGB", (WIDTH, HEIGHT), (40 * index,) * 3).save(folder / f"{index}.{suffix}", FORMATS[suffix])
    (folder / f"._0.{suffix}").write_bytes(b"\0\5\x16\7 of macOS")


def coco_of(names: list[str]) -> str:
    document = coco_document()
    document["images"] = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    return json.dumps(document)


def yolo(folder: Path, suffix: str, val: Any = "images") -> Dataset:
    images_into(folder / "images", suffix)
    for index in range(COUNT):
        written(folder / "labels" / f"{index}.txt", "0 0.5 0.5 0.25 0.25\n")
    return read_dataset(written(folder / "data.yaml", f"val: {json.dumps(val)}\nnames: [coin]\n"))


def maps(folder: Path, suffix: str) -> Dataset:
    images_into(folder / "images", suffix)
    return read_dataset(folder)


def coco(folder: Path, suffix: str) -> Dataset:
    images_into(folder / "images", suffix)
    return read_dataset(written(folder / "coco.json", coco_of([f"{index}.{suffix}" for index in range(COUNT)])))


def panoptic(folder: Path, suffix: str) -> Dataset:
    images_into(folder / "images", suffix)
    document = json.loads((folder / "panoptic/panoptic.json").read_text())
    document["images"] = [{"id": index, "file_name": f"{index}.{suffix}"} for index in range(COUNT)]
    return read_dataset(written(folder / "panoptic/panoptic.json", json.dumps(document)), folder / "images")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read", [coco, panoptic, yolo, maps])
def test_each_form_is_read_with_images_of_each_format(folder: Path, suffix: str, read: Any) -> None:
    for image in (folder / "images").iterdir():
        image.unlink()
    found = read(folder, suffix)

    assert [each.path.name for each in found.images] == [f"{index}.{suffix}" for index in range(COUNT)]
    assert {each.size for each in found.images} == {(HEIGHT, WIDTH)}


@pytest.mark.parametrize(
    "val",
    ["val.txt", ["images"], ["val.txt", "more"], "lists/windows.txt"],
    ids=["text file", "list", "list of a text file and a folder", "text file of Windows"],
)
def test_val_of_yolo_is_a_folder_a_text_file_or_a_list(tmp_path: Path, val: Any) -> None:
    written(tmp_path / "val.txt", "".join(f"./images/{index}.png\n" for index in range(COUNT)))
    written(tmp_path / "lists/windows.txt", "".join(f"images\\{index}.png\r\n" for index in range(COUNT)))
    (tmp_path / "more").mkdir()
    Image.new("L", (5, 5)).save(tmp_path / "more/x.png")

    found = yolo(tmp_path, "png", val)

    assert [each.name for each in found.images] == [f"{index}.png" for index in range(COUNT)] + ["x.png"] * (
        "more" in val
    )
    assert all(each.annotations for each in found.images[:COUNT])
    with pytest.raises(DatasetError, match=r"'no.txt', which are neither a folder nor a text file: looked for"):
        yolo(tmp_path, "png", "no.txt")
    written(tmp_path / "val.txt", "images/77.png")
    with pytest.raises(DatasetError, match=r"1 of 1 images of .*val.txt are not there: images/77.png"):
        yolo(tmp_path, "png", "val.txt")


@pytest.mark.parametrize("place", ["images\\", "..\\..\\data\\", "../../data/upload/1/", "/data/upload/1/", "C:\\x\\"])
def test_paths_of_label_studio_and_windows_are_found_in_the_folder_that_is_named(tmp_path: Path, place: str) -> None:
    images_into(tmp_path / "pictures", "png")
    document = written(tmp_path / "coco.json", coco_of([f"{place}{index}.png" for index in range(COUNT)]))

    found = read_dataset(document, tmp_path / "pictures")

    assert [each.path for each in found.images] == [tmp_path / "pictures" / f"{index}.png" for index in range(COUNT)]
    with pytest.raises(DatasetError, match=r"\(--images\)"):
        read_dataset(document)


@pytest.mark.parametrize("kind", [str, float, lambda number: f"{number}.0"], ids=["text", "float", "text of a float"])
def test_ids_and_flags_are_read_in_whatever_type_a_tool_writes_them(folder: Path, kind: Any) -> None:
    flags = [None, False, 0, "0", 0.0, "false", "", "1", True, 1.0, "true"]
    typed, plain = coco_document(), coco_document()
    for number, (each, other) in enumerate(zip(typed["annotations"], plain["annotations"], strict=True)):
        flag = flags[number % len(flags)]
        each |= {"image_id": kind(each["image_id"]), "category_id": kind(each["category_id"]), "iscrowd": flag}
        other["iscrowd"] = int(flag in ("1", True, "true"))
    for each in (*typed["categories"], *typed["images"]):
        each["id"] = kind(each["id"])
    panoptic = json.loads((folder / "panoptic/panoptic.json").read_text())
    before = read_dataset(folder / "panoptic/panoptic.json", folder / "images")
    for page in panoptic["annotations"]:
        page["image_id"] = kind(page["image_id"])
        for each in page["segments_info"]:
            each |= {"id": kind(each["id"]), "category_id": kind(each["category_id"])}
    for each in panoptic["categories"]:
        each |= {"id": kind(each["id"]), "isthing": kind(each["isthing"])}
    written(folder / "panoptic/panoptic.json", json.dumps(panoptic))

    found, expected = (
        read_dataset(written(folder / "coco.json", json.dumps(each)), folder / "images") for each in (typed, plain)
    )

    assert found == expected
    assert read_dataset(folder / "panoptic/panoptic.json", folder / "images") == before


@pytest.mark.parametrize("form", ["tif", "tif16", "tif palette", "tif geo", "png16", "png palette"])
def test_a_label_map_of_any_kind_has_the_values_of_the_8_bit_png(folder: Path, form: str) -> None:
    image, classes = read_dataset(folder).images[0], {number: SegmentClass(number, str(number)) for number in range(3)}
    dataset = Dataset("maps", (image,), {number: str(number) for number in range(3)})
    expected = pixel_labels(dataset, image, classes)
    with Image.open(folder / "labels/0.png") as opened:
        values = np.asarray(opened)
    (folder / "labels/0.png").unlink()
    path = folder / "labels" / f"0.{form[:3]}"
    picture = Image.fromarray(values.astype(np.uint16 if form.endswith("16") else np.uint8))
    if form.endswith("palette"):
        picture.putpalette(bytes(range(99)))
    if form == "tif geo":
        tifffile.imwrite(path, np.where(values == 1, 9, values), compression="zlib",
                         extratags=[(42113, "s", 0, "9", True)])  # fmt: skip
    else:
        picture.save(path)

    read = read_dataset(folder).images[0]
    found = pixel_labels(replace(dataset, images=(read,)), read, classes)

    assert read.label_map == path
    if form == "tif geo":  # the class of value 1 is where the map has no data
        assert found.classes == (0, 2)
        assert found.counted is not None
    else:
        assert (found.classes, found.masks, found.counted) == (expected.classes, expected.masks, expected.counted)
