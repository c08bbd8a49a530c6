"""Results decode what was answered, and say so where it cannot be one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Asked, items
from segserve import InstanceResult, ModelInfo, ProtocolError, SemanticResult
from segserve.calls.answers import read_model_info, read_result, wanted_outputs
from segserve_common.drawing.palette import palette
from segserve_common.kserve import InferAnswer, Tensor

from .conftest import (
    CLASSES,
    HEIGHT,
    INSTANCE,
    SEMANTIC,
    WIDTH,
    coin_masks,
    decoded,
    instance_answer,
    png,
    semantic_answer,
)

INFO = read_model_info("coins", SEMANTIC, {"revision": "coins-aaaaaaaaaa", "classes": json.dumps(CLASSES)})


def answer(arrays: dict[str, np.ndarray]) -> InferAnswer:
    tensors = {
        name: Tensor.of_items(name, array.tolist()) if array.dtype == object else Tensor.of_array(name, array)
        for name, array in arrays.items()
    }
    return InferAnswer("coins", tensors)


def semantic(info: ModelInfo = INFO, **changed: np.ndarray) -> SemanticResult:
    result = read_result(answer(semantic_answer(Asked("coins", {}, [], {})) | changed), info)
    assert isinstance(result, SemanticResult)
    return result


def instances(**changed: np.ndarray) -> InstanceResult:
    result = read_result(answer(instance_answer(Asked("discs", {}, [], {})) | changed), INFO)
    assert isinstance(result, InstanceResult)
    return result


def test_instances_carry_box_score_class_and_mask() -> None:
    result = instances()

    assert (result.model, result.revision, result.size) == ("coins", "discs-bbbbbbbbbb", (HEIGHT, WIDTH))
    assert [(one.class_id, one.class_name, round(one.score, 2)) for one in result] == [
        (1, "coin", 0.93),
        (1, "coin", 0.87),
    ]
    assert result[0].box == (8, 8, 33, 33)
    for one, expected in zip(result, coin_masks(), strict=True):
        np.testing.assert_array_equal(one.mask, expected)
        assert one.area == expected.sum()
        np.testing.assert_array_equal(decoded(one.rle), expected)


def test_instances_as_arrays_keep_their_shape_where_there_are_none() -> None:
    nothing = instances(
        MASKS=items(), BOXES=np.zeros((0, 4), np.float32), SCORES=np.zeros(0, np.float32), CLASSES=np.zeros(0, np.int32)
    )
    assert (len(nothing), nothing.boxes.shape, nothing.scores.shape) == (0, (0, 4), (0,))
    assert instances().class_ids.tolist() == [1, 1]


def test_masks_of_instances_are_stacked_in_their_order() -> None:
    np.testing.assert_array_equal(instances().masks, coin_masks())
    nothing = instances(
        MASKS=items(), BOXES=np.zeros((0, 4), np.float32), SCORES=np.zeros(0, np.float32), CLASSES=np.zeros(0, np.int32)
    )
    assert (nothing.masks.shape, nothing.masks.dtype) == ((0, HEIGHT, WIDTH), np.bool_)


def test_semantic_labels_areas_and_masks_agree() -> None:
    result = semantic()
    expected = coin_masks().any(axis=0)

    np.testing.assert_array_equal(result.labels, expected)
    np.testing.assert_array_equal(result.mask("coin"), expected)
    np.testing.assert_array_equal(result.mask(1), expected)
    assert result.areas == {"background": (~expected).sum(), "coin": expected.sum()}
    assert result.confidence == pytest.approx({"background": 0.9, "coin": 0.8})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("as_png", [True, False])
def test_a_label_map_of_8_or_16_bits_is_read_as_png_and_raw(dtype: type[np.generic], as_png: bool) -> None:
    labels = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % np.iinfo(dtype).max).astype(dtype)
    result = semantic(LABELS=items(png(labels) if as_png else labels.tobytes()))

    np.testing.assert_array_equal(result.labels, labels)
    assert result.labels.dtype == dtype


def test_a_palette_png_gives_ids_not_colours() -> None:
    labels = coin_masks()[0].astype(np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([200, 10, 10, 0, 255, 0])

    np.testing.assert_array_equal(semantic(LABELS=items(png(np.asarray(image)))).labels, labels)


def test_labels_are_put_together_from_masks() -> None:
    result = read_result(answer(semantic_answer(Asked("coins", {}, [], {"encoding": "rle"}))), INFO)
    assert isinstance(result, SemanticResult)

    np.testing.assert_array_equal(result.labels, semantic().labels)
    np.testing.assert_array_equal(result.mask("coin"), semantic().mask("coin"))


def test_a_class_that_the_model_does_not_have_is_a_key_error_that_names_those_it_has() -> None:
    with pytest.raises(KeyError, match=r"'dog'.*0 background, 1 coin"):
        semantic().mask("dog")


def test_classes_that_are_answered_but_not_named_are_called_by_their_number() -> None:
    result = semantic(ModelInfo("coins", frozenset(SEMANTIC)))
    assert [known.name for known in result.classes] == ["0", "1"]
    assert result.areas.keys() == {"0", "1"}


def test_results_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        semantic().revision = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        semantic().labels[0, 0] = 1


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"SIZE": np.array([0, 80], np.int32)}, id="an image without rows"),
        pytest.param({"SIZE": np.array([60, 80, 3], np.int32)}, id="a size of three numbers"),
        pytest.param({"SIZE": np.array([60, 80], np.int64)}, id="a size of another type"),
        pytest.param({"CLASSES": np.array([0], np.int32)}, id="areas without classes"),
        pytest.param({"REVISION": items()}, id="no revision"),
        pytest.param({"LABELS": items(b"x", b"y")}, id="two label maps"),
        pytest.param({"LABELS": items()}, id="neither labels nor masks"),
        pytest.param({"LABELS": np.zeros(1, np.uint8)}, id="labels that are numbers"),
    ],
)
def test_an_answer_that_is_not_of_the_contract_is_a_protocol_error(changed: dict[str, np.ndarray]) -> None:
    with pytest.raises(ProtocolError):
        semantic(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"BOXES": np.zeros((3, 4), np.float32)}, id="more boxes than masks"),
        pytest.param({"SCORES": np.zeros(1, np.float32)}, id="fewer scores than masks"),
        pytest.param({"BOXES": np.zeros((2, 5), np.float32)}, id="boxes of five numbers"),
        pytest.param({"BOXES": np.full((2, 4), np.inf, np.float32)}, id="boxes without an end"),
        pytest.param({"SCORES": np.full(2, np.nan, np.float32)}, id="scores that are no numbers"),
    ],
)
def test_instances_that_contradict_themselves_are_a_protocol_error(changed: dict[str, np.ndarray]) -> None:
    with pytest.raises(ProtocolError):
        instances(**changed)


@pytest.mark.parametrize("broken", [{"score": float("nan")}, {"box": [0, 0, float("inf"), 1]}, {"id": None}])
def test_a_segment_that_is_none_is_a_protocol_error(broken: dict[str, object]) -> None:
    row = {"id": 1, "class": 1, "isThing": True, "score": 0.5, "area": 3, "box": [0, 0, 3, 1]} | broken
    arrays = semantic_answer(Asked("coins", {}, [], {}))
    shared = {name: arrays[name] for name in ("REVISION", "SIZE", "LABELS", "MASKS")}
    with pytest.raises(ProtocolError, match="SEGMENTS"):
        read_result(answer(shared | {"SEGMENTS": items(json.dumps([row]).encode())}), INFO)


def test_labels_of_another_size_are_a_protocol_error_when_looked_at() -> None:
    with pytest.raises(ProtocolError, match="99 bytes"):
        _ = semantic(LABELS=items(b"\0" * 99)).labels


@pytest.mark.parametrize("classes", ["7", "[7]", '[{"id":1}]', '[{"id":1,"name":"a","colour":"#12"}]', "{"])
def test_classes_of_another_form_are_a_protocol_error_that_names_the_model(classes: str) -> None:
    with pytest.raises(ProtocolError, match="'coins'"):
        read_model_info("coins", SEMANTIC, {"classes": classes})


def test_confidence_is_asked_for_only_where_wanted_and_there() -> None:
    assert "CONFIDENCE" not in wanted_outputs(INFO, confidence=False)
    assert "CONFIDENCE" in wanted_outputs(INFO, confidence=True)
    assert set(wanted_outputs(ModelInfo("discs", frozenset(INSTANCE)), confidence=True)) == set(INSTANCE)


def test_a_model_that_answers_otherwise_is_named_with_what_it_has() -> None:
    with pytest.raises(ProtocolError, match=r"'resnet'.*has logits"):
        wanted_outputs(ModelInfo("resnet", frozenset({"logits"})), confidence=False)


def test_an_overlay_colours_masks_and_leaves_the_rest(photo: bytes) -> None:
    drawn = np.asarray(semantic().overlay(photo, labels=False))
    coin = coin_masks().any(axis=0)

    assert (drawn[~coin] == 90).all()
    assert (drawn[20, 20] == np.round(0.55 * 90 + 0.45 * np.array([255, 204, 0]))).all()
    assert (drawn[coin] == [255, 204, 0]).all(axis=1).any()


def test_instances_have_colours_of_their_own_unless_the_class_decides(photo: bytes) -> None:
    inside = [(20, 20), (20, 58)]
    by_instance = np.asarray(instances().overlay(photo, alpha=1, labels=False))
    by_class = np.asarray(instances().overlay(photo, alpha=1, labels=False, colour_by="class"))

    assert [tuple(by_instance[place]) for place in inside] == [palette(0), palette(1)]
    assert [tuple(by_class[place]) for place in inside] == [(255, 204, 0)] * 2
