"""Images that are unlike those that a model was made for, on the real Triton: told, counted, refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.coins import variant, write
from bench.platform import Running
from fakes.waiting import until
from segserve import Client, OutOfDistributionError

from .test_answer_metrics import scraped, value

pytestmark = pytest.mark.platform

FLAGGING, REFUSING = "coins-flagging", "coins-refusing"
FLAGGED = "segserve_out_of_distribution_total"


@pytest.fixture
def noise() -> bytes:
    """A picture of nothing."""
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8)
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def test_a_strange_image_is_told_counted_or_refused_as_its_model_says_and_usual_ones_are_answered(
    serve: Callable[..., Running], tmp_path: Path, photo: bytes, noise: bytes
) -> None:
    energy = {"score": "energy", "threshold": -2.0, "onFlag": "Flag"}
    detail = {"score": "detail", "threshold": 0.1, "onFlag": "Refuse"}
    # Without counts of answers the first step measures for the score alone.
    uncounted = {"answers": False}
    models = (
        variant(name=FLAGGING, outOfDistribution=energy),
        variant(model="coins-instances", name=REFUSING, outOfDistribution=detail, metrics=uncounted),
    )
    running = serve(write(tmp_path / "models.yaml", *models))

    with Client(running.url) as client:
        usual, strange = (client.segment(image, model=FLAGGING).out_of_distribution for image in (photo, noise))
        assert client.segment(photo, model=REFUSING).out_of_distribution is None
        with pytest.raises(OutOfDistributionError, match=r"its score detail is 0\.\d+, allowed is at most 0.1") as told:
            client.segment(noise, model=REFUSING)

    assert told.value.status == 400
    assert usual is not None
    assert strange is not None
    assert (usual.flagged, strange.flagged) == (False, True)
    assert usual.threshold == strange.threshold == -2.0
    until(lambda: value(scraped(running), FLAGGED, model=FLAGGING) >= 1, "the flagged image is counted")
    series = scraped(running)
    assert value(series, FLAGGED, model=FLAGGING) == 1
    until(
        lambda: value(scraped(running), "segserve_out_of_distribution_margin_count", model=FLAGGING) == 2,
        "both images' scores are counted",
    )
