"""Embeddings of images: read from a network's output, compared with usual images, counted and judged."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from bench.coins import variant, with_output
from fakes.docs import ROOT
from segserve_builder.agent.answer_counts import report_of
from segserve_builder.errors import NonFiniteError, SignatureError
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.repository import build_tree
from segserve_builder.spec.model_spec import DIRECTIONS, ModelMetrics, OutOfDistributionPolicy
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.answer_metrics import EMBEDDING_HISTOGRAMS, AnswerMetrics, Measures
from segserve_builder.steps.embedding import (
    MIN_USUAL,
    coordinates,
    embedding_tensor,
    of_usual_images,
    unscaled,
    whitened,
)
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.out_of_distribution import usual_embedding
from segserve_builder.values import ImageStatistics, Instances, ResizeTransform
from segserve_operator.api.segmentation_model import SegmentationModel

COINS = ROOT / "examples/coins"
FEATURES = "/down.1/down.1.3/Conv_output_0"
PLAIN = unscaled(FEATURES)


def usual(number: int, seed: int = 0) -> NDArray[Any]:
    """Return projections that depend on each other."""
    mixing = 0.3 * np.eye(DIRECTIONS) + np.random.default_rng(1).normal(0.0, 0.05, (DIRECTIONS, DIRECTIONS))
    return np.random.default_rng(seed).normal(0.3, 1.0, (number, DIRECTIONS)) @ mixing


def test_coordinates_of_usual_images_have_mean_zero_and_covariance_one() -> None:
    projections = usual(20_000)

    found = whitened(projections, of_usual_images("y", projections))

    assert np.abs(found.mean(0)).max() < 0.01
    assert np.abs(np.cov(found, rowvar=False) - np.eye(DIRECTIONS)).max() < 0.05


def test_the_length_of_coordinates_is_the_mahalanobis_distance() -> None:
    from scipy.spatial.distance import mahalanobis

    projections = usual(20_000)
    mean, inverse = projections.mean(0), np.linalg.inv(np.cov(projections, rowvar=False))
    strange = np.full(DIRECTIONS, 0.5)

    found = np.linalg.norm(whitened(strange, of_usual_images("y", projections)))

    assert found == pytest.approx(mahalanobis(strange, mean, inverse), rel=0.02)


def test_projections_that_depend_on_each_other_and_on_few_images_have_a_finite_distance() -> None:
    one = np.outer(np.linspace(0.0, 1.0, MIN_USUAL), np.ones(DIRECTIONS))

    assert np.isfinite(whitened(np.ones(DIRECTIONS), of_usual_images("y", one))).all()


@pytest.mark.parametrize(
    ("projections", "complaint"),
    [
        (usual(MIN_USUAL - 1), f"needs at least {MIN_USUAL} usual images, got {MIN_USUAL - 1}"),
        (np.ones((MIN_USUAL, DIRECTIONS)), f"the embeddings of all {MIN_USUAL} usual images are the same"),
    ],
)
def test_usual_images_must_be_some_and_differ(projections: NDArray[Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        of_usual_images("y", projections)


def test_a_vector_tokens_and_maps_of_both_layouts_have_the_coordinates_of_their_mean() -> None:
    features = np.random.default_rng(0).normal(1.0, 1.0, (5, 6, 16)).astype(np.float32)
    mean = features.mean((0, 1))[None]

    expected = coordinates(mean, "NCHW", PLAIN)

    for values, layout in (
        (mean, "NHWC"),
        (features.reshape(1, 30, 16), "NCHW"),
        (features[None], "NHWC"),
        (features.transpose(2, 0, 1)[None], "NCHW"),
        (7 * mean, "NCHW"),  # the length tells nothing
    ):
        assert coordinates(values, layout, PLAIN) == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]


def test_the_directions_are_the_same_in_every_process() -> None:
    first = np.eye(1, 64, dtype=np.float32)

    assert coordinates(first, "NCHW", PLAIN).tolist() == [1, 1, 1, 1, 1, -1, -1]


def test_a_network_that_gives_no_usable_embedding_is_an_error() -> None:
    with pytest.raises(SignatureError, match=r"shape \[1, 3\]: it must have 7 channels"):
        coordinates(np.ones((1, 3), np.float32), "NCHW", PLAIN)
    with pytest.raises(NonFiniteError, match="the embedding, has values that are NaN or infinite"):
        coordinates(np.full((1, 16), np.nan, np.float32), "NCHW", PLAIN)


def test_a_threshold_is_of_other_images_than_the_usual_ones() -> None:
    projections = usual(202)

    embedding, distances, threshold = usual_embedding("y", projections, 0.1)

    assert embedding == of_usual_images("y", projections[:101])
    assert len(distances) == 101
    rest = np.linalg.norm(whitened(usual(20_000, seed=3), embedding), axis=1)
    assert (rest > threshold).mean() < 0.2


def test_frames_of_one_scene_that_follow_each_other_do_not_tell_both_what_is_usual_and_the_threshold() -> None:
    flagged = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        # Twenty scenes of twenty frames; a tenth of the variance is within a scene.
        scenes = np.repeat(random.normal(0.0, np.sqrt(0.9), (20, DIRECTIONS)), 20, axis=0)
        frames = scenes + random.normal(0.0, np.sqrt(0.1), scenes.shape)
        embedding, _, threshold = usual_embedding("y", frames, 0.05)
        others = np.linalg.norm(whitened(random.normal(0.0, 1.0, (2000, DIRECTIONS)), embedding), axis=1)
        flagged.append((others > threshold).mean())

    assert np.mean(flagged) < 0.15


@pytest.mark.parametrize(("images", "rate", "needed"), [(197, 0.01, 198), (55, 0.1, 56)])
def test_of_too_few_images_it_is_said_how_many_both_halves_need(images: int, rate: float, needed: int) -> None:
    with pytest.raises(ValueError, match=f"for a false positive rate of {rate}, need at least {needed} images"):
        usual_embedding("y", usual(images), rate)

    assert usual_embedding("y", usual(needed), rate)[2] > 0


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> SegmentationModel:
    """The example's U-Net with features in the middle as a further output."""
    target = tmp_path_factory.mktemp("network") / "embedded.onnx"
    file = with_output(COINS / "coins-unet.onnx", FEATURES, target)
    artifact = {"uri": file.as_uri(), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    declared = PLAIN.model_dump(mode="json", by_alias=True)
    return SegmentationModel.model_validate(variant(artifact=artifact, embedding=declared))


def opened(model: SegmentationModel, **changes: Any) -> InProcessModel:
    pipeline = model.spec.pipeline("coins").model_copy(update=changes)
    return InProcessModel(pipeline, Path(model.spec.artifact.uri.removeprefix("file://")))


def test_strange_images_are_farther_from_usual_ones_and_answers_stay_as_they_are(embedded: SegmentationModel) -> None:
    random = np.random.default_rng(0)
    with Image.open(COINS / "coins.png") as photo:
        pixels = np.asarray(photo)
    places = [tuple(random.integers(0, side - 96) for side in pixels.shape[:2]) for _ in range(60)]
    crops = [_png(pixels[top : top + 96, left : left + 96]) for top, left in places]
    noise = [_png(random.integers(0, 256, (96, 96), np.uint8)) for _ in range(5)]
    plain = opened(embedded)
    projections = np.array([plain.embedding(each) for each in crops])
    usual_one, distances, _ = usual_embedding(FEATURES, projections, 0.1)

    policy = OutOfDistributionPolicy(score="featureDistance", threshold=0.0)
    judging = opened(embedded, embedding=usual_one, out_of_distribution=policy)

    assert judging.score(crops[30]) == pytest.approx(distances[0], rel=1e-4)
    scores = [judging.score(each) for each in noise]
    assert min(each for each in scores if each is not None) > max(distances)
    original = SegmentationModel.model_validate(variant())
    assert list(judging.raw(judging.network_input(crops[0]))) == ["logits"]
    for name, values in opened(original).answer(crops[0], RequestOptions()).items():
        # With another output ONNX Runtime may fuse other nodes, which changes last bits.
        found = judging.answer(crops[0], RequestOptions())[name]
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        if values.dtype.kind == "f":
            assert found == pytest.approx(values, rel=1e-4, abs=1e-4)
        else:
            assert np.count_nonzero(found != values) <= values.size / 1000


def _png(pixels: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def test_the_last_step_reads_the_declared_output_and_a_model_without_one_no_other(
    embedded: SegmentationModel, tmp_path: Path
) -> None:
    def files(model: SegmentationModel) -> str:
        tree = build_tree(model.spec.pipeline("coins"), model.spec.artifact, (), tmp_path)
        return "".join(str(each["config.pbtxt"]) for each in (*tree.steps.values(), *tree.public.values()))

    original = SegmentationModel.model_validate(variant())

    assert files(embedded).count(f'name: "NETWORK_OUTPUT_{FEATURES}"') == 1
    assert FEATURES not in files(original)
    assert embedded.spec.pipeline("coins").revision != original.spec.pipeline("coins").revision
    assert "embedding" not in original.spec.pipeline("coins").identity()


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("nothing", "embedding.output is 'nothing'; the network has 'logits' FP32"),
        ("logits", "for the model's 2 classes the number of channels must be 2"),
    ],
)
def test_an_output_that_is_missing_or_the_answer_is_refused(
    embedded: SegmentationModel, output: str, complaint: str
) -> None:
    with pytest.raises(SignatureError, match=complaint):
        opened(embedded, embedding=unscaled(output))


@pytest.mark.parametrize("shape", [(1, 256, None, None), (1, 197, 768), (1, 2, 3, 4, 5)])
def test_features_with_a_batch_are_refused_where_the_family_has_none(shape: tuple[int | None, ...]) -> None:
    features = TensorSpec("f", "FP32", shape)
    io = NetworkIO(TensorSpec("x", "FP32", (None, 3, None, None)), "NCHW", (), batched=False)

    with pytest.raises(SignatureError, match=r"no batch|without a batch"):
        embedding_tensor(features, io)

    assert embedding_tensor(replace(features, shape=(768,)), io).shape == (1, 768)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            {"outOfDistribution": {"score": "featureDistance", "threshold": 3.0}},
            "the score featureDistance needs spec.embedding, which is not set",
        ),
        (
            {"embedding": PLAIN.model_dump(), "inference": [{"tile": {"height": 64, "width": 64}}]},
            "inference 'tile' merges logits, and no embedding: remove one of the two",
        ),
        ({"embedding": PLAIN.model_dump() | {"mean": (0.0,) * 6}}, "at least 7 items"),
        ({"embedding": PLAIN.model_dump() | {"mean": (float("nan"),) * 7}}, "finite number"),
    ],
)
def test_what_does_not_fit_an_embedding_is_refused(spec: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SegmentationModel.model_validate(variant(**spec))


def test_coordinates_and_distances_are_counted_and_reported(embedded: SegmentationModel) -> None:
    metrics = AnswerMetrics(embedded.spec.pipeline("coins"), ModelMetrics())
    place, nothing = ResizeTransform.of(8, 8), np.zeros(0, np.float32)
    answer = Instances(np.zeros((0, 4), np.float32), nothing, nothing.astype(np.int32), (), 8, 8)
    measures = Measures(ImageStatistics(0.5, 0.4, 0.02, 0.5, 0.5), 0.0, 0.0, 0.0)
    for sign in (1.0, 1.0, -1.0):
        given = sign * np.arange(DIRECTIONS) / 2
        metrics.count(answer, {}, place, measures, (0.0, 0.0), is_test=False, embedding=given)

    told: Counter[tuple[str, str, str]] = Counter()
    for each in metrics.take():
        told[each.name, each.labels.get("direction", ""), each.labels.get("le", "")] += each.amount
    histograms = report_of({"": told}, embedded.assigned).histograms

    distances = histograms["embeddingDistance"]
    assert (sum(distances), distances[8]) == (3, 3)
    assert histograms["embedding:1"][6] == 3
    assert (histograms["embedding:7"][11], histograms["embedding:7"][1]) == (2, 1)


def test_a_model_without_an_embedding_has_no_series_of_it() -> None:
    metrics = AnswerMetrics(SegmentationModel.model_validate(variant()).spec.pipeline("coins"), ModelMetrics())

    names = {each.name for each in metrics.take()}

    assert not {family.name for family in EMBEDDING_HISTOGRAMS.values()} & names
