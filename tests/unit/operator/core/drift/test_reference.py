"""References that servers make: of files, and of golden images, with what is uncertain about these."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segserve_builder.agent.protocol import ReferenceReport
from segserve_builder.spec.model_spec import ReferenceFile
from segserve_common.kube.shards import pack
from segserve_operator.api.drift import Drift, DriftReference, DriftWindow, GoldenReference
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.drift.detector import cumulated
from segserve_operator.core.drift.reference import MIN_GOLDEN_IMAGES, ReferenceRefusedError, reference_of
from segserve_operator.core.drift.watch import DriftWatch, basis_of, recorded_of, restored

WINDOW_S = 60.0
FILE = ReferenceFile(uri="s3://references/coins.json", sha256="c" * 64)
OF_GOLDEN = Drift(window=timedelta(seconds=WINDOW_S), reference=DriftReference(golden=GoldenReference()))
OF_FILE = Drift(window=timedelta(seconds=WINDOW_S), reference=DriftReference(file=FILE))
HISTOGRAM = {"shares": [0.25, 0.75], "low": [0.2], "high": [0.3], "windows": 12}


def golden(images: int, **histograms: tuple[int, ...]) -> ReferenceReport:
    observations = {name: float(sum(counts)) for name, counts in histograms.items()}
    return ReferenceReport(sha256="a" * 64, images=images, histograms=histograms, observations=observations)


def compared(report: ReferenceReport) -> DriftWatch:
    """Return the watch that compares with the reference in a report."""
    return DriftWatch.start("coins-1", 0.0, OF_GOLDEN).with_reference(reference_of(report, OF_GOLDEN), 0.0)


def after(watch: DriftWatch, windows: list[np.ndarray]) -> DriftWatch:
    totals = np.cumsum([np.zeros_like(windows[0]), *windows], axis=0)
    for number, total in enumerate(totals):
        counts = {"server": {"brightness": tuple(map(float, total))}}
        watch = watch.measured(counts, OF_GOLDEN, number * WINDOW_S)
    return watch


def test_the_range_of_golden_images_narrows_with_their_number_and_covers_their_own_shares() -> None:
    few, many = (golden_range(images) for images in (40, 4000))

    assert few[0] < many[0] < 0.25 < many[1] < few[1]
    assert few[1] - 0.25 == pytest.approx(math.sqrt(math.log(2 / 0.05) / 80))


def golden_range(images: int) -> tuple[float, float]:
    quarter = images // 4
    reference = reference_of(golden(images, brightness=(quarter, images - quarter)), OF_GOLDEN)
    (low,), (high,) = reference.short["brightness"].low, reference.short["brightness"].high
    return low, high


def test_the_ranges_of_all_histograms_hold_together_as_often_as_declared() -> None:
    random, shares = np.random.default_rng(0), np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    missed = 0
    for _ in range(400):
        drawn = {f"h{number}": tuple(map(int, random.multinomial(50, shares))) for number in range(20)}
        ranges = reference_of(golden(50, **drawn), OF_GOLDEN).short.values()
        expected = cumulated(shares.tolist())
        missed += any((expected < each.low).any() or (expected > each.high).any() for each in ranges)

    assert missed / 400 < 0.05


@pytest.mark.parametrize("images", [30, 100, 1000])
def test_windows_as_the_golden_images_are_no_drift_and_other_ones_are(images: int) -> None:
    random, usual, dark = np.random.default_rng(images), [0.1, 0.2, 0.4, 0.2, 0.1], [0.9, 0.1, 0.0, 0.0, 0.0]
    for _ in range(5):
        watch = compared(golden(images, brightness=tuple(map(int, random.multinomial(images, usual)))))
        assert watch.complete

        same = after(watch, [random.multinomial(40, usual) for _ in range(300)])
        assert not same.drifting
        assert after(watch, [random.multinomial(40, dark) for _ in range(60)]).drifting == {"brightness"}


def test_a_reference_of_golden_images_is_stored_and_can_be_exported() -> None:
    watch = compared(golden(100, brightness=(40, 60)))

    again = restored(watch.stored, 100.0)

    assert (again.complete, again.images) == (True, 100)
    assert again.scales[1].ranges.keys() == {"brightness"}
    assert recorded_of(watch.stored).histograms["brightness"].shares == (0.4, 0.6)


def test_before_its_reference_a_watch_learns_nothing_from_callers_images() -> None:
    watch = after(DriftWatch.start("coins-1", 0.0, OF_GOLDEN), [np.array([20, 20])] * 30)

    assert not watch.complete
    assert not watch.scales[0].ranges
    assert watch.stored == ""


def test_histograms_that_the_reference_lacks_are_not_learnt_later() -> None:
    watch = compared(golden(100, detail=(50, 50)))

    watch = after(watch, [np.array([20, 20])] * 30)

    assert watch.scales[0].ranges.keys() == {"detail"}
    assert watch.left_out() == ("brightness",)


def test_too_few_golden_images_are_refused_with_numbers_and_rare_histograms_left_out() -> None:
    with pytest.raises(ReferenceRefusedError, match="has 29 images; a reference needs at least 30") as told:
        reference_of(golden(29, brightness=(10, 19)), OF_GOLDEN)
    assert told.value.reason == "TooFewGoldenImages"

    reference = reference_of(golden(MIN_GOLDEN_IMAGES, brightness=(10, 20), rare=(10, 19)), OF_GOLDEN)
    assert reference.short.keys() == {"brightness"}


def filed(**change: Any) -> ReferenceReport:
    plain = {"window": "1m", "histograms": {"brightness": HISTOGRAM}, **change}
    return ReferenceReport(sha256=FILE.sha256, content=pack(json.loads(json.dumps(plain))))


def test_a_file_has_the_ranges_of_its_windows() -> None:
    reference = reference_of(filed(), OF_FILE)

    assert (reference.short["brightness"].low, reference.short["brightness"].high) == ((0.2,), (0.3,))
    assert not reference.long


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        (filed(window="5m"), "window must be as long as spec.drift.window, 1m, got 5m"),
        (filed(histograms={"brightness": HISTOGRAM | {"low": [0.2, 0.3]}}), "must have 1 shares"),
        (filed(histograms={}), "at least one histogram must have 12 windows"),
        (filed(more=1), "more: "),
        (ReferenceReport(sha256=FILE.sha256, content="what"), "coins.json: "),
        (ReferenceReport(sha256=FILE.sha256, reason="DigestMismatch", message="it is b"), "DigestMismatch: it is b"),
    ],
)
def test_a_file_that_is_no_reference_is_refused_and_said_why(report: ReferenceReport, complaint: str) -> None:
    with pytest.raises(ReferenceRefusedError) as told:
        reference_of(report, OF_FILE)

    assert told.value.reason == "ReferenceFailed"
    assert complaint in str(told.value)


def test_an_edit_that_leaves_file_golden_set_and_window_as_they_are_keeps_the_reference() -> None:
    moved = FILE.model_copy(update={"uri": "s3://elsewhere/coins.json"})
    longer = DriftWindow(duration=timedelta(hours=2))
    edits = {"min_answers": 50, "tolerance": 0.1, "false_alarms_per_month": 1.0}

    assert basis_of(OF_FILE.model_copy(update=edits), ("north",)) == basis_of(OF_FILE)
    assert basis_of(OF_GOLDEN.model_copy(update=edits), ("north",), "a") == basis_of(OF_GOLDEN, (), "a")
    for reference in (DriftReference(file=moved), DriftReference(file=FILE, window=longer)):
        assert basis_of(Drift(window=OF_FILE.window, reference=reference)) == basis_of(OF_FILE)
    assert basis_of(OF_FILE.model_copy(update={"window": timedelta(minutes=5)})) != basis_of(OF_FILE)


@pytest.mark.parametrize("images_each", [1, 2, 3, 20])
def test_images_with_one_object_or_many_are_no_drift_however_many_of_them_make_a_window(images_each: int) -> None:
    random = np.random.default_rng(images_each)

    def objects(images: int) -> np.ndarray:
        """Return the scores of images by bucket: half of these have 300 low ones, half have 30 high ones."""
        return np.where(random.random((images, 1)) < 0.5, [[300, 0, 0]], [[0, 0, 30]])

    drawn = objects(2000)
    sizes = drawn.sum(1)
    report = ReferenceReport(
        sha256="a" * 64,
        images=len(drawn),
        histograms={"brightness": tuple(map(int, drawn.sum(0)))},
        observations={"brightness": float(sizes.sum() ** 2 / (sizes @ sizes))},
        image_shares={"brightness": tuple((drawn / sizes[:, None]).mean(0).tolist())},
    )

    usual = [objects(images_each).sum(0) for _ in range(600)]

    assert not after(compared(report), usual).drifting
    assert after(compared(report), [*usual, *[np.array([0, 30 * images_each, 0])] * 60]).drifting == {"brightness"}


def test_another_golden_set_or_file_begins_another_reference() -> None:
    other = Drift(window=OF_FILE.window, reference=DriftReference(file=FILE.model_copy(update={"sha256": "d" * 64})))
    window = Drift(window=OF_FILE.window)

    found = {basis_of(OF_GOLDEN, (), "a"), basis_of(OF_GOLDEN, (), "b"), *map(basis_of, (OF_FILE, other, window))}

    assert len(found) == 5
    assert basis_of(window, (), "a") == basis_of(window, (), "b")


def test_references_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="recorded, golden and file exclude each other, got golden and file"):
        DriftReference(golden=GoldenReference(), file=FILE)


def test_a_reference_of_golden_images_needs_some() -> None:
    spec = {
        "artifact": {"uri": "coins.onnx", "sha256": "0" * 64},
        "family": "semantic-logits",
        "classes": [{"id": 0, "name": "table"}, {"id": 1, "name": "coin"}],
        "preprocess": [{"decode": {}}],
        "postprocess": [{"argmax": {}}],
        "drift": {"reference": {"golden": {}}},
    }
    manifest = {"apiVersion": "segserve.dev/v1alpha1", "kind": "SegmentationModel", "metadata": {"name": "coins"}}

    with pytest.raises(ValidationError, match=r"the reference golden needs spec\.golden, which is not set"):
        SegmentationModel.model_validate({**manifest, "spec": spec})
    SegmentationModel.model_validate({**manifest, "spec": spec | {"golden": {"uri": "golden", "sha256": "1" * 64}}})
