"""The section of a model's limits."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.pools import COINS
from segserve_operator.api.loading import load
from segserve_operator.api.meta import SpecError
from segserve_operator.api.segmentation_model import SegmentationModel


def coins(limits: str) -> SegmentationModel:
    (model,) = load(f"{COINS}  limits: {limits}\n", "coins.yaml")
    return model


def test_limits_make_no_revision() -> None:
    (unlimited,) = load(COINS, "coins.yaml")

    assert coins("{perCaller: {requestsPerSecond: 5}}").pipeline == unlimited.pipeline


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{perCaller: {requestsPerSecond: 0}}", "must be at least 1"),
        ("{perCaller: {megabytesPerSecond: 3000}}", "must be at most 2000"),
        ("{perCaller: {requestsPerSecond: 6}, total: {requestsPerSecond: 5}}", "must not allow more than total"),
        ("{perCaller: {megabytesPerSecond: 6}, total: {megabytesPerSecond: 5}}", "must not allow more than total"),
        ("{everybody: {}}", "everybody"),
    ],
)
def test_what_cannot_be_is_refused(limits: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        coins(limits)
