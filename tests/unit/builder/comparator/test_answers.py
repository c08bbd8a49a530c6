"""Answers of both groups are compared, and the pairs that differ most are kept for the sheet."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.compared_groups import COMPARISON, World, comparing, copy_of
from fakes.pipelines import pipeline_of
from raw_inference import Protocol
from segserve_builder.comparator import kept, service, sheet
from segserve_builder.comparator.comparing import AnswerComparer, AnswerComparison
from segserve_builder.comparator.sheet import Sheet
from segserve_builder.comparator.worker import ExchangedPair, compare_answers, confidence_shift
from segserve_builder.copies.bodies import WireBody, read_answer, read_image
from segserve_builder.copies.http_server import serving
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.kernels.rle import encode_bitmap
from segserve_builder.spec.model_spec import Output
from segserve_builder.steps.postprocess import Postprocess, request_from_parameters
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS, Task
from segserve_builder.values import (
    Candidates,
    ClassMasks,
    Instances,
    KeypointDetections,
    LabelMap,
    Logits,
    NoHeads,
    Panoptic,
    ResizeTransform,
    Segment,
)
from segserve_common.kserve import BYTES, HEADER_LENGTH, InferRequest, Tensor, encode_http


def boxes(*rows: list[float]) -> dict[str, Tensor]:
    """Return an answer of objects of one class."""
    count = len(rows)
    arrays = {
        "SIZE": np.array([100, 100], "<i4"),
        "BOXES": np.array(rows, "<f4").reshape(count, 4),
        "CLASSES": np.zeros(count, "<i4"),
        "SCORES": np.ones(count, "<f4"),
    }
    tensors = {name: Tensor.of_array(name, array) for name, array in arrays.items()}
    return {**tensors, "REVISION": Tensor.of_items("REVISION", [b"coins-a"])}


WHOLE, HALF, NOTHING = boxes([0, 0, 40, 40]), boxes([0, 0, 40, 20]), boxes([60, 60, 90, 90])


def wire(protocol: Protocol, tensors: Mapping[str, Tensor]) -> WireBody:
    if protocol == "grpc":
        message = pb.ModelInferResponse(model_name="coins", raw_output_contents=[each.raw for each in tensors.values()])
        for each in tensors.values():
            message.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return WireBody(message.SerializeToString())
    outputs = [
        {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        | {"parameters": {"binary_data_size": len(each.raw)}}
        for each in tensors.values()
    ]
    header = json.dumps({"model_name": "coins", "outputs": outputs}).encode()
    return WireBody(header + b"".join(each.raw for each in tensors.values()), str(len(header)))


def pair_of(protocol: Protocol, stable: WireBody, candidate: WireBody) -> ExchangedPair:
    copy = copy_of(protocol, b"an encoded image")
    if protocol == "grpc":
        return ExchangedPair(protocol, 12.5, WireBody(copy["content"][5:]), stable, candidate)
    return ExchangedPair(protocol, 12.5, WireBody(copy["content"], copy["headers"][HEADER_LENGTH]), stable, candidate)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_compared_over_both_protocols(protocol: Protocol) -> None:
    stable = wire(protocol, WHOLE)

    same, half, other = (
        compare_answers(pair_of(protocol, stable, wire(protocol, each)), keep_below=0.0)
        for each in (WHOLE, HALF, NOTHING)
    )

    assert (same.agreement, other.agreement) == (1.0, 0.0)
    assert half.agreement == pytest.approx(0.5)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_kept_pair_shows_the_image_and_both_answers(protocol: Protocol) -> None:
    pair = pair_of(protocol, wire(protocol, WHOLE), wire(protocol, HALF))

    held = sheet.SheetPair.model_validate_json(compare_answers(pair, keep_below=1.0).sheet_pair)

    assert held.asked_at_s == 12.5
    assert held.image.tensor().to_items() == (b"an encoded image",)
    assert {each.name: each.tensor() for each in held.stable} == WHOLE
    assert {each.name: each.tensor() for each in held.candidate} == HALF


SIDE = 24
TRANSFORM = ResizeTransform.of(SIDE, SIDE)
Scene = Literal["right", "other", "nothing"]


def square(scene: Scene) -> np.ndarray:
    """Return one square of pixels, in a corner that the scene chooses, or none."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    corner = {"right": slice(2, 10), "other": slice(12, 20), "nothing": slice(0)}[scene]
    mask[corner, corner] = 1
    return mask


def value_of(task: str, scene: Scene) -> Any:
    """Return an answer as a value: one object or region, in another place and of another class in another scene."""
    mask, number, count = square(scene), 1 if scene == "right" else 2, int(scene != "nothing")
    low = 2 if scene == "right" else 12
    found = (
        np.array([[low, low, low + 8, low + 8]], np.float32)[:count],
        np.array([0.9 if scene == "right" else 0.4], np.float32)[:count],
        np.array([number], np.int32)[:count],
    )
    match task:
        case "semantic":
            labels = {"right": mask, "other": 2 - mask, "nothing": mask * 0}[scene]
            return LabelMap(labels, Logits(np.zeros((3, SIDE, SIDE), np.float32), TRANSFORM))
        case "multi-label":
            masks = [mask * 0] * 3
            masks[number] = mask
            areas = np.array([each.sum() for each in masks], np.int64)
            runs = tuple(map(encode_bitmap, masks))
            return ClassMasks(runs, areas, (areas > 0).astype(np.float32), SIDE, SIDE)
        case "instance":
            return Instances(*found, (encode_bitmap(mask),)[:count], SIDE, SIDE)
        case "detection":
            return Candidates(*found, NoHeads(), TRANSFORM)
        case "keypoints":
            return KeypointDetections(*found, np.full((count, 2, 3), low, np.float32), SIDE, SIDE)
        case _:
            return Panoptic(mask.astype(np.uint16), (Segment(1, number, is_thing=True, score=0.9),)[:count])


FAMILY_OF = {
    "semantic": "semantic-logits",
    "multi-label": "semantic-logits",
    "instance": "yolo-seg",
    "detection": "yolo-detect",
    "keypoints": "yolo-pose",
    "panoptic": "detr-panoptic",
}


def named_outputs(task: str) -> Iterator[frozenset[str]]:
    """Yield every subset of the outputs of a task, and with OVERLAY, which no answer is compared by."""
    kind: Task = "semantic" if task == "multi-label" else task  # type: ignore[assignment]
    names = [tensor.name for tensor in PUBLIC_OUTPUTS[kind] if tensor.name != "REVISION"]
    for length in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, length):
            yield frozenset(chosen)
    yield frozenset({"OVERLAY"})
    yield frozenset({"SIZE", "OVERLAY"})


def exchanged(
    post: Postprocess, task: str, named: frozenset[str], by: str, encoding: str, scenes: tuple[Scene, Scene]
) -> ExchangedPair:
    """Return a request that names outputs, as KServe or by the parameter, and what the last step answers to both."""
    outputs = ",".join(sorted(named))
    parameters = {"outputs": outputs} if by == "parameter" else {}
    parameters |= {"encoding": encoding} if encoding else {}
    every = frozenset(post._empty) - {"REVISION"}
    # Triton leaves out what a request does not name; the step leaves empty what the parameter does not name.
    wanted = named if by == "KServe" else every
    options = request_from_parameters(parameters, Output())
    answers = []
    for scene in scenes:
        arrays = post.encoded(value_of(task, scene), options, wanted)
        arrays |= {"OVERLAY": np.empty(0, np.object_)} if "OVERLAY" in wanted else {}
        tensors = [
            Tensor.of_array(name, array)
            if array.dtype != np.object_
            else Tensor(name, BYTES, array.shape, Tensor.of_items(name, array.ravel().tolist()).raw)
            for name, array in arrays.items()
        ]
        answers.append(wire("http", {each.name: each for each in tensors}))
    image = Tensor.of_items("IMAGE", [b"an encoded image"])
    asked = tuple(sorted(named)) if by == "KServe" else ()
    headers, body = encode_http(InferRequest("coins", (image,), asked, parameters))
    return ExchangedPair("http", 12.5, WireBody(body, headers[HEADER_LENGTH]), *answers)


def shows(task: str, named: frozenset[str], by: str, *, as_masks: bool) -> bool:
    """Whether outputs show what is in an image: where, and of a map also which class or segment is there."""
    if by == "KServe" and "SIZE" not in named:
        return False
    if task in ("instance", "detection", "keypoints"):
        # Nothing says of masks alone that they are of objects.
        return "BOXES" in named or ("MASKS" in named and (by == "parameter" or bool(named & {"SCORES", "CLASSES"})))
    return {"panoptic": "SEGMENTS"}.get(task, "CLASSES") in named and ("MASKS" if as_masks else "LABELS") in named


@pytest.mark.parametrize("by", ["KServe", "parameter"])
@pytest.mark.parametrize("encoding", ["", "rle", "polygons", "raw"])
@pytest.mark.parametrize("task", FAMILY_OF)
def test_whatever_outputs_a_caller_names_answers_agree_by_what_they_show(task: str, encoding: str, by: str) -> None:
    has_masks = task not in ("detection", "keypoints")
    if encoding and not has_masks:
        return
    stages = [{"multiLabel": {}}] if task == "multi-label" else []
    image = TensorSpec("image", "UINT8", (None, 1, None, None))
    post = Postprocess(pipeline_of(FAMILY_OF[task], 3, postprocess=stages), NetworkIO(image, "NCHW", ()))
    as_masks = task == "multi-label" or encoding in ("rle", "polygons")

    def agreed(named: frozenset[str], *scenes: Scene) -> float | None:
        first, second = scenes
        pair = exchanged(post, task, named, by, encoding, (first, second))
        return compare_answers(pair, keep_below=0.0).agreement

    for named in named_outputs(task):
        pairs = itertools.product(("right", "other", "nothing"), repeat=2)
        found = {scenes: agreed(named, *scenes) for scenes in pairs}
        compared = shows(task, named, by, as_masks=as_masks)
        for scenes, value in found.items():
            if scenes[0] != scenes[1]:
                assert value is None or value < (0.9 if compared else 1), (named, scenes)
            elif compared:
                assert value == pytest.approx(1), (named, scenes)
            elif value is not None:
                # A table without a segment shows that there is none.
                assert (task, scenes[0], value) == ("panoptic", "nothing", 1), (named, scenes)
        assert (found["right", "other"] is not None) == compared, named


SIZE = Tensor.of_array("SIZE", np.array([100, 100], "<i4"))


def scored(*scores: float) -> dict[str, Tensor]:
    rows = [[0.0, 0.0, 40.0, 40.0]] * len(scores)
    return {**boxes(*rows), "SCORES": Tensor.of_array("SCORES", np.array(scores, "<f4"))}


def mapped(confidences: list[float], areas: list[int]) -> dict[str, Tensor]:
    """Return an answer of a label map, with the mean confidence of each class."""
    return {
        "SIZE": SIZE,
        "LABELS": Tensor.of_array("LABELS", np.zeros((100, 100), "u1")),
        "CLASSES": Tensor.of_array("CLASSES", np.arange(len(areas), dtype="<i4")),
        "AREAS": Tensor.of_array("AREAS", np.array(areas, "<i8")),
        "CONFIDENCE": Tensor.of_array("CONFIDENCE", np.array(confidences, "<f4")),
    }


@pytest.mark.parametrize(
    ("stable", "candidate", "shift"),
    [
        (scored(0.9, 0.7), scored(0.5, 0.5), -0.3),
        (scored(0.5), scored(0.9, 0.9), 0.4),
        (scored(0.5), scored(), None),
        (scored(0.5), scored(float("nan")), None),
        (mapped([0.9, 0.5], [9000, 1000]), mapped([0.7, 0.5], [9000, 1000]), -0.18),
        ({"SIZE": SIZE, "BOXES": WHOLE["BOXES"]}, WHOLE, None),
    ],
)
def test_the_shift_of_confidence_is_that_of_the_mean_score(
    stable: dict[str, Tensor], candidate: dict[str, Tensor], shift: float | None
) -> None:
    arrays = [
        {name: each.to_array() for name, each in answer.items() if name != "REVISION"} for answer in (stable, candidate)
    ]

    assert confidence_shift(*arrays) == (None if shift is None else pytest.approx(shift, abs=1e-6))


def test_an_answer_in_json_alone_is_read() -> None:
    outputs = [
        {"name": "BOXES", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 40, 20]},
        {"name": "REVISION", "datatype": "BYTES", "shape": [1], "data": ["coins-a"]},
    ]

    tensors = read_answer("http", WireBody(json.dumps({"outputs": outputs}).encode()))

    assert tensors["BOXES"].to_array().tolist() == [[0, 0, 40, 20]]
    assert tensors["REVISION"] == Tensor.of_items("REVISION", [b"coins-a"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_candidates_answer_that_cannot_be_read_agrees_in_nothing(protocol: Protocol) -> None:
    good, bad = wire(protocol, WHOLE), WireBody(b"\xff not an answer", "999" if protocol == "http" else "")

    assert compare_answers(pair_of(protocol, good, bad), keep_below=0.0).agreement == 0.0
    assert compare_answers(pair_of(protocol, bad, good), keep_below=0.0).agreement is None


def test_a_request_without_an_image_has_none_to_show() -> None:
    request = {"inputs": [{"name": "TEXT", "datatype": BYTES, "shape": [1], "data": ["a"]}]}

    assert read_image("http", WireBody(json.dumps(request).encode())) is None


@pytest.fixture(params=["http", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    comparer = AnswerComparer()
    async with comparing(request.param, compare=comparer.compare) as compared:
        compared.compare(coins=COMPARISON)
        await compared.warm_up()
        yield compared
    await comparer.close()


async def answered(world: World, candidate: Mapping[str, Tensor], image: bytes = b"image 0") -> None:
    """Send a copy, which stable answers with `WHOLE`."""
    for group, tensors in (("blue", WHOLE), ("green", candidate)):
        body = wire(world.protocol, tensors)
        world.servers.answers[group] = body.content
        world.servers.reply_headers[group] = {HEADER_LENGTH: body.header_length}
    await world.send(image)
    await world.idle()


async def shown(world: World) -> Sheet:
    return Sheet.model_validate_json((await world.control.get("/sheet", params={"model": "coins"})).content)


async def test_disagreements_are_counted_and_the_worst_pairs_are_shown_first(world: World) -> None:
    for image, candidate in enumerate((WHOLE, HALF, NOTHING)):
        await answered(world, candidate, b"image %d" % image)

    found = await shown(world)
    pairs = (await world.pairs())["coins"]
    assert pairs["disagreements"] == [1, *[0] * 10, 1, 0, 1]
    assert (found.stable, found.candidate, found.compared) == ("blue", "green", 3)
    assert [pair.agreement for pair in found.pairs] == pytest.approx([0.0, 0.5])
    assert found.pairs[0].image.tensor().to_items() == (b"image 2",)


async def test_a_sheet_shows_each_image_once_however_often_it_comes(world: World) -> None:
    for candidate in (HALF, NOTHING, HALF):
        await answered(world, candidate)

    found = await shown(world)
    assert (found.compared, [pair.agreement for pair in found.pairs]) == (3, pytest.approx([0.0]))


async def test_images_are_forgotten_with_their_comparison(world: World) -> None:
    await answered(world, NOTHING)
    assert len((await shown(world)).pairs) == 1

    world.compare()
    assert (await world.control.get("/sheet", params={"model": "coins"})).status_code == 404
    world.compare(coins=COMPARISON)
    assert (await shown(world)).pairs == ()


async def sheet_status(world: World) -> int:
    return (await world.control.get("/sheet", params={"model": "coins"})).status_code


async def test_after_shadow_the_images_are_kept_for_an_hour_and_nothing_more_is_asked(world: World) -> None:
    await answered(world, NOTHING)
    world.compare(coins=None)
    assert await world.pairs() == {}
    await world.send()
    await world.idle()

    found = await shown(world)
    assert (found.candidate, found.compared, len(found.pairs)) == ("green", 1, 1)
    assert found.ended_at_s is not None
    world.clock.now_s += kept.KEPT_S
    assert await sheet_status(world) == 404


@pytest.mark.parametrize("then", [{}, {"coins": {**COMPARISON, "candidate": "red"}}])
async def test_kept_images_are_forgotten_with_the_model_at_an_abort_and_by_the_next_rollout(
    world: World, then: dict[str, Any]
) -> None:
    """A gateway tells its comparator nothing of a model that was deleted, or whose rollout a person aborted."""
    await answered(world, NOTHING)
    world.compare(coins=None)
    assert await sheet_status(world) == 200
    world.compare(**then)
    await world.pairs()
    world.compare(coins=None)

    assert await sheet_status(world) == 404


async def test_images_of_ended_comparisons_go_first_where_there_are_too_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answered(world, NOTHING)
    world.compare(coins=None, disks=COMPARISON)
    assert await sheet_status(world) == 200
    monkeypatch.setattr(service, "SHEET_BYTES", 0)
    world.comparator._forget_beyond(0)

    assert await sheet_status(world) == 404


async def test_a_port_of_loopback_shows_sheets_and_nothing_else(world: World) -> None:
    await answered(world, NOTHING)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        serving(port, world.comparator.show, max_body=0, budget=world.budget, max_connections=1),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        found = Sheet.model_validate_json((await client.get("/sheet?model=coins")).content)
        refused = [(await client.get(path)).status_code for path in ("/pairs", "/live", "/sheet?model=other")]
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(trust_env=False) as second:
                await second.get(f"http://127.0.0.1:{port}/sheet?model=coins")

    assert len(found.pairs) == 1
    assert refused == [404, 404, 404]


@pytest.mark.parametrize("limit", [0, 10_000])
async def test_what_is_kept_is_bounded_in_number_and_bytes(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agreements = iter([0.5, 0.9, *[0.7] * 10, 0.1])

    async def compare(*_: Any, keep_below: float) -> AnswerComparison:
        agreement = next(agreements)
        assert keep_below <= 1.0
        return AnswerComparison(agreement, json.dumps({"agreement": agreement}).encode())

    monkeypatch.setattr(service, "SHEET_BYTES", limit)
    async with comparing("http", compare=compare) as world:
        world.compare(coins=COMPARISON)
        await world.warm_up()
        await world.send_all(13)
        pairs = json.loads((await world.control.get("/sheet?model=coins")).content)["pairs"]

    agreed = [pair["agreement"] for pair in pairs]
    assert agreed == ([0.1, 0.5, *[0.7] * (service.MOST_PAIRS - 2)] if limit else [])
