"""`segserve.evaluate` has torchmetrics' figures of the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segserve
from segserve import Client
from segserve.results.result import SemanticResult
from tools import PEER_PACKAGES, ROOT

from .conftest import CLASSES, FOUND, TRUE, Disc, Served, id_map, image_of, label_map, matches

pytestmark = pytest.mark.needs("torchmetrics")
ROUNDED = 0.6e-4


def segments(discs: list[Disc]) -> np.ndarray:
    """Return (H, W, 2): the class of each pixel, and the number of its disc; what is in none is one segment."""
    ids = id_map(discs)
    classes = np.array([0, *(disc.class_id for disc in discs), 0], np.int64)[ids]
    return np.stack([classes, np.where(classes > 0, ids, 0)], axis=-1)


def test_figures_are_those_of_torchmetrics(served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_platform.evaluation.scores.FEWEST_CALIBRATED", 1)
    true, found = (np.stack([label_map(discs) for discs in side]) for side in (TRUE, FOUND))
    true[:, :, -9:] = 255
    for index, labels in enumerate(true):
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    confidence = np.zeros(true.shape)
    with Client() as client:
        for index, answer in enumerate(found):
            sure = client.segment(image_of(index), model="sure", expect=SemanticResult, confidence=True).confidence
            assert sure is not None
            confidence[index] = np.array([sure[name] for name in CLASSES.values()])[answer]
    scores, right = matches(folder)
    arrays = folder / "arrays.npz"
    np.savez(
        arrays,
        true=true,
        found=found,
        confidence=confidence,
        true_segments=np.stack([segments(discs) for discs in TRUE]),
        found_segments=np.stack([segments(discs) for discs in FOUND]),
        scores=scores,
        right=right,
    )
    oracle = [sys.executable, ROOT / "tests/oracles/torchmetrics_figures.py", arrays, PEER_PACKAGES]
    done = subprocess.run(oracle, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout)

    pixels = segserve.evaluate("sure", folder, resamples=0)
    world = segserve.evaluate("world", folder / "panoptic", images=folder / "images", resamples=0)
    discs = segserve.evaluate("discs", folder / "coco", images=folder / "images", resamples=0)

    names = list(CLASSES.values())
    for figure in ("iou", "dice"):
        assert [pixels.classes[name][figure].mean for name in names] == pytest.approx(expected[figure], abs=ROUNDED)
    assert [world.classes[name]["pq"].mean for name in (*names[1:], names[0])] == pytest.approx(
        np.ravel(expected["pq"]).tolist(), abs=ROUNDED
    )
    assert pixels.metrics["ece"].mean == pytest.approx(expected["pixelEce"], abs=ROUNDED)
    assert discs.metrics["ece"].mean == pytest.approx(expected["objectEce"], abs=ROUNDED)
