"""Files of exporters that people use: `segserve init` serves each as its own library answers, or refuses it by name.

Nothing is edited. Weights are random, so what only training decides is not held here: the normalisation that no file
says is replaced by the library's where `init` marks it with CHECK.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from bench.platform import ROOT, platform
from networks.exporter_files import ROWS, SIX, Refused, Served
from segserve import Client, PanopticResult, SemanticResult
from segserve.results.masks import EncodedMask
from segserve.results.objects import Objects
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModel
from tools import EXPORTERS

pytestmark = [pytest.mark.needs("exporters"), pytest.mark.timeout(3600)]

ORACLE = ROOT / "tests/oracles/exporters.py"
Answer = Mapping[str, NDArray[Any]]


@cache
def exported(case: str, folder: Path) -> Path:
    """Write a case's network, photographs and answers in a process of its exporter."""
    place = folder / case
    place.mkdir()
    command = [EXPORTERS, "-W", "ignore", ORACLE, case, place]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return place


@cache
def initialised(case: str, place: Path) -> subprocess.CompletedProcess[str]:
    row = ROWS[case]
    arguments = row.arguments if isinstance(row, Served) else ()
    command = [sys.executable, "-m", "segserve_platform.cli", "init", "photos", "net.onnx", "-o", "out", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=600)


def resource(place: Path, row: Served) -> dict[str, Any]:
    """Return what `init` has written, with the library's preprocessing where it is a guess."""
    manifest: dict[str, Any] = yaml.safe_load((place / "out/model.yaml").read_text())
    if row.normalise is not None:
        *before, _ = manifest["spec"]["preprocess"]
        manifest["spec"]["preprocess"] = [*before, {"normalise": dict(row.normalise)}]
    for stage in manifest["spec"]["preprocess"]:
        stage.get("resize", {}).update(row.resize)
    if row.colour is not None:
        manifest["spec"]["input"]["colour"] = row.colour
    return manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exporters")


@pytest.mark.parametrize("case", ROWS)
def test_a_file_is_served_as_its_library_answers_or_refused_by_name(case: str, folder: Path) -> None:
    row, place = ROWS[case], exported(case, folder)

    done = initialised(case, place)

    if isinstance(row, Refused):
        assert (done.returncode, row.words in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr
    manifest = resource(place, row)
    assert manifest["spec"]["family"] == row.family
    spec = SegmentationModel.model_validate(manifest).spec
    model = InProcessModel(spec.pipeline("any"), place / "out" / spec.artifact.uri)
    for photo in sorted((place / "photos").iterdir()):
        expected = dict(np.load(place / f"{photo.stem}.npz"))
        is_map = model.task in ("semantic", "panoptic")
        answer = model.answer(photo.read_bytes(), RequestOptions(encoding="raw") if is_map else RequestOptions())
        compare(found_in(answer), expected, row)


@pytest.mark.platform
def test_the_real_servers_answer_the_same(folder: Path, tmp_path: Path) -> None:
    files = []
    for case in SIX:
        row, place = ROWS[case], exported(case, folder)
        assert isinstance(row, Served)
        initialised(case, place)
        manifest = resource(place, row)
        manifest["metadata"]["name"] = case
        manifest["spec"].pop("golden")
        file = place / "out/served.yaml"
        file.write_text(yaml.safe_dump(manifest))
        files.append(file)
    with platform(*files) as running, Client(running.url) as client:
        for case in SIX:
            for photo in sorted((exported(case, folder) / "photos").iterdir()):
                row = ROWS[case]
                assert isinstance(row, Served)
                expected = dict(np.load(exported(case, folder) / f"{photo.stem}.npz"))
                compare(arrays(client.segment(photo, model=case)), expected, row)


def found_in(answer: Answer) -> Answer:
    """Return the arrays of an answer under the names of the exporters' files."""
    height, width = (int(side) for side in answer["SIZE"])
    if "BOXES" in answer:
        found = {"boxes": answer["BOXES"], "scores": answer["SCORES"], "classes": answer["CLASSES"]}
        if "KEYPOINTS" in answer:
            found["keypoints"] = answer["KEYPOINTS"]
        if "MASKS" in answer:
            found["masks"] = np.array([EncodedMask(bytes(each), height, width).bitmap for each in answer["MASKS"]])
        return found
    labels = np.frombuffer(answer["LABELS"][0], np.uint8).reshape(height, width)
    if "SEGMENTS" in answer:
        classes = np.full(256, 255)
        for segment in yaml.safe_load(answer["SEGMENTS"][0]):
            classes[segment["id"]] = segment["class"]
        labels = classes[labels]
    return {"labels": labels}


def arrays(result: Any) -> Answer:
    """Return the same of a result of the client."""
    if isinstance(result, SemanticResult):
        return {"labels": result.labels}
    if isinstance(result, PanopticResult):
        classes = np.full(int(result.ids.max(initial=0)) + 1, 255)
        for segment in result.segments:
            classes[segment.id] = segment.class_id
        return {"labels": classes[result.ids]}
    assert isinstance(result, Objects)
    found = {"boxes": result.boxes, "scores": result.scores, "classes": result.class_ids}
    return found | ({"masks": np.array([each.mask for each in result])} if hasattr(result, "masks") else {})


def compare(found: Answer, expected: Answer, row: Served) -> None:
    """Compare what is served with the library's answer; the order of objects does not count."""
    if "labels" in expected:
        assert found["labels"].shape == expected["labels"].shape
        assert (found["labels"] != expected["labels"]).mean() <= row.labels
        return
    assert 0 <= len(found["boxes"]) - len(expected["boxes"]) <= row.more
    left = set(range(len(found["boxes"])))
    for number, box in enumerate(expected["boxes"]):
        same = [one for one in left if found["classes"][one] == expected["classes"][number]]
        assert same, f"object {number} of class {expected['classes'][number]} is missing"
        nearest = min(
            same, key=lambda one: np.abs(found["boxes"][one] - box).max() + _apart(found, one, expected, number)
        )
        left.remove(nearest)
        assert np.abs(found["boxes"][nearest] - box).max() <= row.box_px
        assert abs(found["scores"][nearest] - expected["scores"][number]) <= row.score
        if "keypoints" in expected:
            assert np.abs(found["keypoints"][nearest] - expected["keypoints"][number]).max() <= row.box_px
        if "masks" in expected:
            one, other = found["masks"][nearest], expected["masks"][number]
            assert (one & other).sum() >= row.iou * (one | other).sum()


def _apart(found: Answer, one: int, expected: Answer, other: int) -> float:
    return abs(float(found["scores"][one]) - float(expected["scores"][other]))
