"""`segserve samples`: what is kept of a model, as a list, as files for labelling tools, and gone."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from fakes.kserve import Gateway
from segserve_builder.capture.rule import CapturedClass, CaptureRule
from segserve_builder.capture.samples import Exchange, make_sample
from segserve_builder.capture.store import SampleStore
from segserve_builder.golden.judging import load as load_golden
from segserve_builder.sources import folder_digest
from segserve_builder.sources.access import LOCAL
from segserve_common.kserve import Tensor
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.loading import load

from ..conftest import HEIGHT, WIDTH
from .conftest import MODEL_FILE, Command

CLASSES = (CapturedClass(id=0, name="background"), CapturedClass(id=1, name="coin"))


def apply(tmp_path: Path, more: str = "") -> None:
    (resource,) = load(MODEL_FILE % hashlib.sha256(b"").hexdigest() + more, "model.yaml")
    manifest = resource.to_dict()
    manifest.pop("status", None)
    LocalStore(StateFolder(tmp_path / "state")).apply(resource, manifest)


def exchange(number: int, confidence: float) -> Exchange:
    pixels = np.full((HEIGHT, WIDTH, 3), 60 * number, np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    bitmap[4:12, 4:12] = 1
    masks = [coco.encode(np.asfortranarray(each))["counts"] for each in (1 - bitmap, bitmap)]
    answer = {
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "CLASSES": np.array([0, 1], np.int32),
        "AREAS": np.array([HEIGHT * WIDTH - 64, 64], np.int64),
        "CONFIDENCE": np.array([confidence, confidence], np.float32),
        "MASKS": np.array(masks, object),
    }
    image = Tensor.of_items("IMAGE", [written.getvalue()])
    return Exchange(
        f"id-{number}", 1_763_800_000.0 + number, "coins", "camera-7", {"note": "\x1b[2Jred"}, image, answer
    )


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local platform's model with three samples, the second one the least certain."""
    folder = tmp_path / "samples"
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    apply(tmp_path, f"  capture: {{sink: {folder.as_uri()!r}}}\n")
    rule = CaptureRule(
        group="main",
        revision="coins-1",
        share=1,
        per_minute=60,
        sink="",
        retention_s=1,
        classes=CLASSES,
        max_pixels=10**6,
    )
    samples = SampleStore(folder.as_uri(), LOCAL)
    for number, confidence in ((1, 0.9), (2, 0.5), (3, 0.8)):
        made = make_sample(exchange(number, confidence), rule)
        assert made is not None
        samples.write(made)
    return folder


def listed(command: Command, *arguments: str) -> list[dict[str, Any]]:
    code, printed, _ = command("samples", "list", "coins", "--local", "-o", "json", *arguments)
    assert code == 0
    rows: list[dict[str, Any]] = json.loads(printed)
    return rows


def test_the_newest_samples_are_listed_first(command: Command, sink: Path) -> None:
    def order(*arguments: str) -> list[str]:
        return [row["request_id"] for row in listed(command, *arguments)]

    assert order() == ["id-3", "id-2", "id-1"]
    assert order("--limit", "2") == order("--limit", "2", "--reason", "share") == ["id-3", "id-2"]
    assert order("--reason", "error") == []
    assert order("--newer-than", "1h") == []
    _, printed, _ = command("samples", "list", "coins", "--local")
    assert re.findall(r"share +(\S+) +- +camera-7", printed) == ["0.20", "0.50", "0.10"]


def test_what_a_row_says_steers_no_terminal(command: Command, sink: Path) -> None:
    _, printed, _ = command("samples", "show", "coins", "id-1", "--local")

    assert "red" in printed
    assert "\x1b" not in printed


def test_a_sample_is_shown_by_its_request_and_its_image_written(command: Command, sink: Path, tmp_path: Path) -> None:
    image = tmp_path / "sample.png"
    code, printed, _ = command("samples", "show", "coins", "id-2", "--image", image, "--local")

    assert (code, "coins-1" in printed) == (0, True)
    with Image.open(image) as opened:
        assert opened.size == (WIDTH, HEIGHT)
    _, _, complaint = command("samples", "show", "coins", "id-9", "--local")
    assert "no sample 'id-9'" in complaint


@pytest.mark.parametrize("form", ["coco", "label-studio", "cvat"])
def test_an_export_has_the_images_and_the_answers(command: Command, sink: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "labels"
    code, printed, complaint = command("samples", "export", "coins", "--to", form, "--output", out, "--local")

    assert (code, complaint) == (0, "")
    assert "3 samples" in printed
    images = {path.name for path in (out / "images").iterdir()}
    assert len(images) == 3
    match form:
        case "coco":
            document = json.loads((out / "annotations.json").read_text())
            assert {each["file_name"] for each in document["images"]} == images
            assert len(document["annotations"]) == 6
        case "label-studio":
            tasks = json.loads((out / "tasks.json").read_text())
            assert {task["data"]["image"].rpartition("/")[2] for task in tasks} == images
            assert all(task["predictions"][0]["result"] for task in tasks)
        case "cvat":
            root = ET.parse(out / "annotations.xml").getroot()
            assert {image.get("name") for image in root.iterfind("image")} == images
            assert {mask.get("label") for mask in root.iterfind("image/mask")} == {"coin"}


def exported(command: Command, folder: Path, limit: int) -> dict[str, Any]:
    command("samples", "export", "coins", "--limit", str(limit), "--output", folder, "--local")
    document: dict[str, Any] = json.loads((folder / "annotations.json").read_text())
    return document


def test_corrections_become_a_golden_set_that_grows(
    command: Command, sink: Path, tmp_path: Path, gateway: Gateway
) -> None:
    golden, corrected = tmp_path / "golden", tmp_path / "corrected.json"
    square = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]
    for number in (1, 2):
        document = exported(command, tmp_path / "labels", number)
        document["categories"] = [{"id": 9, "name": "coin"}]
        document["annotations"] = [
            {"id": index, "image_id": image["id"], "category_id": 9, "segmentation": square}
            for index, image in enumerate(document["images"])
        ]
        corrected.write_text(json.dumps(document))
        with gateway.http() as url:
            code, printed, complaint = command(
                "samples", "label-back", "coins", corrected, "--golden", golden, "--url", url, "--local"
            )

        assert (code, complaint) == (0, "")
        assert f"{number} images; sha256 {folder_digest(golden)}" in printed
    cases = load_golden(golden).cases
    assert [case.labels.classes for case in cases if case.labels is not None] == [(1,), (1,)]
    assert {case.expected.classes for case in cases} == {(0, 1)}
    assert all(case.expected.masks and case.expected.scores is None for case in cases)


def test_labels_of_an_image_that_is_no_sample_are_refused_and_nothing_is_written(
    command: Command, sink: Path, tmp_path: Path, gateway: Gateway
) -> None:
    document = exported(command, tmp_path / "labels", 2)
    document["images"][1]["file_name"] = "stranger.png"
    corrected = tmp_path / "corrected.json"
    corrected.write_text(json.dumps(document))
    with gateway.http() as url:
        arguments = ("label-back", "coins", corrected, "--golden", tmp_path / "golden", "--url", url, "--local")
        code, _, complaint = command("samples", *arguments)

    assert (code, "'stranger.png', of which coins has no sample" in complaint) == (1, True)
    assert not (tmp_path / "golden").exists()


def test_samples_are_deleted_by_request_and_by_age(command: Command, sink: Path) -> None:
    assert command("samples", "delete", "coins", "--request-id", "id-2", "--local")[0] == 0
    assert {row["request_id"] for row in listed(command)} == {"id-1", "id-3"}
    assert command("samples", "delete", "coins", "--request-id", "id-2", "--local")[0] == 1
    assert command("samples", "delete", "coins", "--older-than", "1h", "--local")[0] == 0
    assert not [path for path in sink.rglob("*") if path.is_file()]
    assert "one of --request-id" in command("samples", "delete", "coins", "--local")[2]


def test_a_model_that_keeps_no_samples_says_so(command: Command, sink: Path, tmp_path: Path) -> None:
    apply(tmp_path)

    assert "has no spec.capture" in command("samples", "list", "coins", "--local")[2]
    assert len(listed(command, "--sink", sink.as_uri())) == 3


def test_samples_of_a_deleted_model_are_listed_and_deleted_by_their_sink(
    command: Command, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(sink.parent / "empty"))

    assert "--sink names the samples of one that was deleted" in command("samples", "list", "coins", "--local")[2]
    assert len(listed(command, "--sink", sink.as_uri())) == 3
    assert command("samples", "delete", "coins", "--all", "--sink", sink.as_uri(), "--local")[0] == 0
    assert not [path for path in sink.rglob("*") if path.is_file()]
