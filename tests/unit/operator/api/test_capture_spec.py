"""The section of a model's samples."""

from __future__ import annotations

import pytest

from fakes.pools import COINS
from segserve_operator.api.loading import load
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import SegmentationModel

SINK = "sink: s3://bucket/samples"


def coins(capture: str) -> SegmentationModel:
    (model,) = load(f"{COINS}  capture: {capture}\n", "coins.yaml")
    return model


def test_capture_makes_no_revision_and_is_off_unless_asked() -> None:
    (without,) = load(COINS, "coins.yaml")

    assert without.spec.capture is None
    assert "capture" not in without.model_dump(mode="json", by_alias=True, exclude_none=True)["spec"]
    assert coins(f"{{{SINK}}}").pipeline == without.pipeline


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("{}", "sink"),
        ("{sink: https://example.com/samples}", "sink"),
        (f"{{{SINK}, share: 0}}", "share"),
        (f"{{{SINK}, share: 2}}", "share"),
        (f"{{{SINK}, when: [surprise]}}", "when"),
        (f"{{{SINK}, slices: ['camera 7']}}", "slices"),
        (f"{{{SINK}, redact: {{classes: []}}}}", "classes"),
        (f"{{{SINK}, redact: {{classes: [face]}}}}", "unknown class 'face'"),
        (f"{{{SINK}, redact: {{classes: [coin], method: pixelate}}}}", "method"),
        (f"{{{SINK}, retention: forever}}", "must be a duration"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(capture: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        coins(capture)


def test_classes_of_another_model_are_its_own() -> None:
    redact = coins(f"{{{SINK}, redact: {{classes: [face], model: faces}}}}").spec.capture
    assert redact.redact.model == "faces"
