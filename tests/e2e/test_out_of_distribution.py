"""Images that are unlike those that a model was made for, on the real Triton: told, counted, refused."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bench.coins import variant, with_output, write
from bench.platform import MODELS, Running
from fakes.waiting import until
from segserve import Client, OutOfDistributionError
from segserve_builder.spec.model_spec import Embedding
from segserve_builder.steps.embedding import of_usual_images, unscaled
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModel

from .test_answer_metrics import scraped, value

pytestmark = pytest.mark.platform

FLAGGING, REFUSING, EMBEDDED = "coins-flagging", "coins-refusing", "coins-embedded"
FEATURES = "/down.1/down.1.3/Conv_output_0"
FLAGGED = "segserve_out_of_distribution_total"


@pytest.fixture
def noise() -> bytes:
    """A picture of nothing."""
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8)
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def blurred(photo: bytes) -> bytes:
    """Return the picture out of focus."""
    written = io.BytesIO()
    Image.open(io.BytesIO(photo)).filter(ImageFilter.GaussianBlur(3)).save(written, "PNG")
    return written.getvalue()


def embedded(folder: Path, photo: bytes) -> tuple[dict[str, Any], InProcessModel]:
    """Return a model whose usual images are parts of the picture, and the same one in this process."""
    network = with_output(MODELS.parent / "coins-unet.onnx", FEATURES, folder / "embedded.onnx")
    artifact = {"uri": network.as_uri(), "sha256": hashlib.sha256(network.read_bytes()).hexdigest()}

    def made(embedding: Embedding) -> tuple[dict[str, Any], InProcessModel]:
        policy = {"score": "featureDistance", "threshold": 20.0, "onFlag": "Flag"}
        written = embedding.model_dump(mode="json", by_alias=True)
        model = variant(name=EMBEDDED, artifact=artifact, embedding=written, outOfDistribution=policy)
        return model, InProcessModel(SegmentationModel.model_validate(model).pipeline, network)

    _, plain = made(unscaled(FEATURES))
    projections = []
    for number in range(40):
        part, left = io.BytesIO(), 5 * number
        Image.open(io.BytesIO(photo)).crop((left, 0, left + 160, 240)).save(part, "PNG")
        projections.append(plain.embedding(part.getvalue()))
    return made(of_usual_images(FEATURES, np.array(projections)))


def test_a_strange_image_is_told_counted_or_refused_as_its_model_says_and_usual_ones_are_answered(
    serve: Callable[..., Running], tmp_path: Path, photo: bytes, noise: bytes
) -> None:
    energy = {"score": "energy", "threshold": -2.0, "onFlag": "Flag"}
    detail = {"score": "detailChange", "usualDetail": 0.023, "threshold": 1.0, "onFlag": "Refuse"}
    # Without counts of answers the first step measures for the score alone.
    uncounted = {"answers": False}
    far, in_process = embedded(tmp_path, photo)
    models = (
        far,
        variant(name=FLAGGING, outOfDistribution=energy),
        variant(model="coins-instances", name=REFUSING, outOfDistribution=detail, metrics=uncounted),
    )
    running = serve(write(tmp_path / "models.yaml", *models))

    with Client(running.url) as client:
        usual, strange = (client.segment(image, model=FLAGGING).out_of_distribution for image in (photo, noise))
        assert client.segment(photo, model=REFUSING).out_of_distribution is None
        distances = [client.segment(image, model=EMBEDDED).out_of_distribution for image in (photo, noise)]
        for image in (blurred(photo), noise):
            with pytest.raises(
                OutOfDistributionError, match=r"its score detailChange is [23]\.\d+, allowed is at most 1"
            ) as told:
                client.segment(image, model=REFUSING)

    assert told.value.status == 400
    assert usual is not None
    assert strange is not None
    assert (usual.flagged, strange.flagged) == (False, True)
    assert usual.threshold == strange.threshold == -2.0
    assert [each.score for each in distances if each] == pytest.approx(
        [in_process.score(each) for each in (photo, noise)],
        rel=1e-4,  # whitening of parts that overlap magnifies last bits
    )
    assert [each.flagged for each in distances if each] == [False, True]
    until(
        lambda: value(scraped(running), "segserve_embedding_distance_count", model=EMBEDDED) == 2,
        "both images' embeddings are counted",
    )
    assert value(scraped(running), "segserve_embedding_count", model=EMBEDDED, direction="7") == 2
    until(lambda: value(scraped(running), FLAGGED, model=FLAGGING) >= 1, "the flagged image is counted")
    series = scraped(running)
    assert value(series, FLAGGED, model=FLAGGING) == 1
    until(
        lambda: value(scraped(running), "segserve_out_of_distribution_margin_count", model=FLAGGING) == 2,
        "both images' scores are counted",
    )
