"""Answers of both groups are compared, and the pairs that differ most are kept for the sheet."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.compared_groups import COMPARISON, World, comparing, copy_of
from raw_inference import Protocol
from segserve_builder.comparator import kept, service, sheet
from segserve_builder.comparator.comparing import AnswerComparer, AnswerComparison
from segserve_builder.comparator.sheet import Sheet
from segserve_builder.comparator.worker import ExchangedPair, compare_answers, confidence_shift
from segserve_builder.copies.bodies import WireBody, read_answer, read_image
from segserve_builder.copies.http_server import serving
from segserve_common.kserve import BYTES, HEADER_LENGTH, Tensor


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
