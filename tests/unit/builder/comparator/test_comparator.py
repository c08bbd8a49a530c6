"""Copies of requests are asked of both groups, and counted by how they were answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.compared_groups import COMPARISON, INFER, World, at_full_rate, comparing, copy_of, framed
from fakes.group_servers import GROUP
from fakes.waiting import eventually
from raw_inference import Protocol
from segserve_builder.comparator import service, tally
from segserve_builder.comparator.service import Pacing
from segserve_builder.copies.copies import MODEL_INFER
from segserve_builder.copies.groups import MAX_ANSWER_BYTES, GroupClient
from segserve_builder.spec.names import FLAGGED_WORDS
from segserve_common.kserve import HEADER_LENGTH, InferRequest, Tensor, encode_http
from segserve_operator.core import evidence
from segserve_operator.core.rollout.counters import PairCounts


@pytest.fixture(params=["http", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with comparing(request.param) as compared:
        compared.compare(coins=COMPARISON)
        yield compared


async def test_both_groups_are_asked_the_callers_bytes(world: World) -> None:
    copy = copy_of(world.protocol, b"an image")

    reply = await world.copies.post(**copy)
    await world.idle()

    sent = copy["content"] if world.protocol == "http" else copy["content"][5:]
    assert reply.status_code in (200, 204)
    assert world.servers.bodies == {"blue": [sent], "green": [sent]}


async def test_what_the_body_needs_of_the_headers_goes_with_it_and_no_other() -> None:
    async with comparing("http") as world:
        world.compare(coins=COMPARISON)
        copy = copy_of("http", b"an image")
        secrets = {"authorization": "Bearer secret", "cookie": "a=b", "x-segserve-group": "other"}

        await world.copies.post(copy["url"] + "?q=%2f", content=copy["content"], headers={**copy["headers"], **secrets})
        await world.idle()

    (headers,) = world.servers.headers["green"]
    assert headers[HEADER_LENGTH.lower()] == copy["headers"][HEADER_LENGTH]
    assert headers["content-type"] == copy["headers"]["Content-Type"]
    assert headers["accept-encoding"] == "identity"
    assert headers[GROUP] == "green"
    assert not secrets.keys() & headers.keys() - {GROUP}
    assert world.servers.paths == [f"{INFER}?q=%2f"] * 2


async def test_the_first_pairs_warm_the_candidate_and_are_not_counted(world: World) -> None:
    await world.send_all(service.WARM_UP_PAIRS)
    assert (await world.pairs())["coins"]["failed"] == [0, 0, 0, 0]

    await world.send_all(3)
    assert (await world.pairs())["coins"]["failed"] == [3, 0, 0, 0]


async def test_a_candidate_that_few_ask_is_warm_after_a_while(world: World) -> None:
    await world.warm_up()
    await world.send_all(1)

    assert (await world.pairs())["coins"]["failed"] == [1, 0, 0, 0]


HTTP_CELLS = [
    (b"", b"", [1, 0, 0, 0]),
    (b"", 500, [0, 1, 0, 0]),
    (503, b"", [0, 0, 1, 0]),
    (502, 500, [0, 0, 0, 1]),
    (400, 400, [0, 0, 0, 0]),
    (b"", 400, [0, 1, 0, 0]),
    (400, b"", [0, 0, 1, 0]),
    (400, 500, [0, 1, 0, 0]),
    (b"", 404, [0, 0, 0, 0]),
]
CODE = grpc.StatusCode
GRPC_CELLS = [
    (b"", b"", [1, 0, 0, 0]),
    (b"", CODE.INTERNAL, [0, 1, 0, 0]),
    (CODE.UNKNOWN, b"", [0, 0, 1, 0]),
    (CODE.UNAVAILABLE, CODE.DATA_LOSS, [0, 0, 0, 1]),
    (CODE.INVALID_ARGUMENT, CODE.INVALID_ARGUMENT, [0, 0, 0, 0]),
    (b"", CODE.INVALID_ARGUMENT, [0, 1, 0, 0]),
    (CODE.INVALID_ARGUMENT, CODE.RESOURCE_EXHAUSTED, [0, 1, 0, 0]),
    (b"", CODE.UNIMPLEMENTED, [0, 0, 0, 0]),
]
CELLS = [("http", *cell) for cell in HTTP_CELLS] + [("grpc", *cell) for cell in GRPC_CELLS]


@pytest.mark.parametrize(("protocol", "stable", "candidate", "cell"), CELLS)
async def test_a_pair_counts_in_the_cell_of_who_failed(
    protocol: Protocol, stable: Any, candidate: Any, cell: list[int]
) -> None:
    async with comparing(protocol) as world:
        world.compare(coins=COMPARISON)
        await world.warm_up()
        world.servers.answers = {"blue": stable, "green": candidate}

        await world.send_all(1)
        pairs = (await world.pairs())["coins"]

    assert pairs["failed"] == cell
    answered = stable == candidate == b""
    assert sum(pairs["ratios"]) == answered
    assert [sum(count for _, count in side) for side in pairs["latencies"]] == [sum(cell)] * 2


FLAGGED = f"the image is out of distribution: its score detail is 0.3, allowed is at most 0.1 {FLAGGED_WORDS}"


@pytest.mark.parametrize(
    ("protocol", "refused", "failed"), [("http", 400, 500), ("grpc", CODE.INVALID_ARGUMENT, CODE.INTERNAL)]
)
async def test_an_image_that_one_model_refuses_by_its_own_threshold_is_no_evidence_beside_an_answer(
    protocol: Protocol, refused: Any, failed: Any
) -> None:
    async with comparing(protocol) as world:
        world.compare(coins=COMPARISON)
        await world.warm_up()
        world.servers.words = FLAGGED
        for world.servers.answers in ({"blue": b"", "green": refused}, {"blue": refused, "green": b""}):
            await world.send_all(1)
        assert (await world.pairs())["coins"]["failed"] == [0, 0, 0, 0]

        world.servers.answers = {"blue": refused, "green": failed}
        await world.send_all(1)
        pairs = (await world.pairs())["coins"]

    assert pairs["failed"] == [0, 1, 0, 0]


@pytest.mark.parametrize("asked", [("SIZE", "OUT_OF_DISTRIBUTION", "MASKS"), ("CONTINUED", "SIZE", "MASKS")])
async def test_copies_ask_for_no_output_that_one_of_the_revisions_may_lack(
    world: World, asked: tuple[str, ...]
) -> None:
    await world.copies.post(**copy_of(world.protocol, b"an image", outputs=asked))
    await world.idle()

    check_sent(world, copy_of(world.protocol, b"an image", outputs=("SIZE", "MASKS")))


@pytest.mark.parametrize("outputs", ["OVERLAY", "SIZE,OVERLAY", "", "SIZE"])
async def test_copies_ask_for_no_overlay_and_for_what_it_has_replaced(world: World, outputs: str) -> None:
    other = {"encoding": "rle", **({"outputs": "SIZE"} if outputs == "SIZE" else {})}
    overlay = {"overlay": "png", **({"outputs": outputs} if outputs else {}), "encoding": "rle"}
    await world.copies.post(**copy_of(world.protocol, b"an image", outputs=("OVERLAY", "MASKS"), parameters=overlay))
    await world.idle()

    check_sent(world, copy_of(world.protocol, b"an image", outputs=("MASKS",), parameters=other))


def check_sent(world: World, expected: dict[str, Any]) -> None:
    """The only copy that one group got is the expected one."""
    (sent,) = world.servers.bodies["green"]
    if world.protocol == "grpc":
        assert pb.ModelInferRequest.FromString(sent) == pb.ModelInferRequest.FromString(expected["content"][5:])
        return
    length = int(world.servers.headers["green"][0][HEADER_LENGTH.lower()])
    assert json.loads(sent[:length]) == json.loads(expected["content"][: int(expected["headers"][HEADER_LENGTH])])
    assert sent[length:] == expected["content"][int(expected["headers"][HEADER_LENGTH]) :]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_group_that_never_answers_has_failed_and_stands_in_the_last_bin(protocol: Protocol) -> None:
    async with comparing(protocol, impatient_of="green") as world:
        world.compare(coins=COMPARISON)
        world.comparator.refresh()
        world.servers.answers["green"] = None
        await world.send()
        await world.idle()
        world.clock.now_s += service.WARM_UP_S
        await world.send_all(1)
        pairs = (await world.pairs())["coins"]

    assert pairs["failed"] == [0, 1, 0, 0]
    assert pairs["latencies"][1] == [[tally.HUNG_MS, 1]]
    assert pairs["ratios"] == [0] * len(pairs["ratios"])


async def test_after_a_pair_that_hangs_half_as_many_are_asked() -> None:
    pacings: list[Pacing] = []

    def pace(requests_per_s: float) -> Pacing:
        pacings.append(at_full_rate(requests_per_s))
        return pacings[-1]

    async with comparing("http", impatient_of="green", pace=pace) as world:
        world.compare(coins=COMPARISON)
        world.servers.answers["green"] = None
        await world.send_all(1)

        assert [pacing.share for pacing in pacings] == [0.5]


async def test_a_gateway_that_is_not_there_is_no_evidence(world: World) -> None:
    await world.warm_up()
    gone = GroupClient(f"unix:{world.folder.path}/gone.sock")
    world.comparator._ask = gone.ask

    await world.send_all(1)
    await gone.close()

    pairs = (await world.pairs())["coins"]
    assert pairs["failed"] == [0, 0, 0, 0]
    assert pairs["latencies"] == [[], []]


async def test_answers_over_grpc_may_be_larger_than_are_held() -> None:
    async with comparing("grpc") as world:
        world.compare(coins=COMPARISON)
        await world.warm_up()
        world.servers.answers["green"] = b"a" * (MAX_ANSWER_BYTES + 1)
        await world.send_all(1)

        assert (await world.pairs())["coins"]["failed"] == [1, 0, 0, 0]


async def test_a_model_that_is_not_compared_is_not_asked(world: World) -> None:
    await world.send(model="other")
    await world.idle()

    assert world.asked() == 0
    assert (await world.pairs()).keys() == {"coins"}


async def test_other_groups_count_from_zero_under_another_epoch(world: World) -> None:
    await world.warm_up()
    await world.send_all(1)
    before = (await world.pairs())["coins"]

    world.compare(coins={**COMPARISON, "candidate": "red"})
    after = (await world.pairs())["coins"]

    assert before["failed"] == [1, 0, 0, 0]
    assert after["failed"] == [0, 0, 0, 0]
    assert after["candidate"] == "red"
    assert after["epoch"] != before["epoch"]


async def test_the_same_groups_at_another_rate_keep_their_counts(world: World) -> None:
    await world.warm_up()
    await world.send_all(1)
    before = await world.pairs()

    world.compare(coins={**COMPARISON, "requests_per_s": 2.0})

    assert await world.pairs() == before


async def test_a_comparison_that_comes_again_counts_from_zero(world: World) -> None:
    await world.warm_up()
    await world.send_all(1)
    before = await world.pairs()
    world.compare()
    assert await world.pairs() == {}
    world.compare(coins=COMPARISON)
    after = await world.pairs()

    assert after["coins"]["failed"] == [0, 0, 0, 0]
    assert after["coins"]["epoch"] != before["coins"]["epoch"]


async def test_copies_beyond_the_rate_are_dropped(world: World) -> None:
    world.compare(coins={**COMPARISON, "requests_per_s": 2.0})
    for _ in range(50):
        await world.send()  # each a hundredth of a second later
    await world.idle()

    assert len(world.servers.bodies["green"]) == 1
    assert (await world.pairs())["coins"]["dropped"] == 49


async def test_copies_that_would_wait_too_long_are_dropped_and_nobody_waits_for_the_groups(world: World) -> None:
    world.servers.answers = {"blue": None, "green": None}
    most = service.PAIRS_PER_MODEL + service.WAITING_PER_MODEL

    for _ in range(most + 7):
        assert await world.send() in (200, 204)

    async def are_asked() -> bool:
        return world.asked() == 2 * service.PAIRS_PER_MODEL

    await eventually(are_asked, "a few pairs are under way")
    assert (await world.pairs())["coins"]["dropped"] == 7


async def test_an_abort_ends_what_waits_and_what_is_under_way(world: World) -> None:
    world.servers.answers = {"blue": None, "green": None}
    for _ in range(service.PAIRS_PER_MODEL + 3):
        await world.send()
    assert world.budget.held > 0

    world.compare()
    assert await world.pairs() == {}

    await world.idle()
    assert len(world.servers.bodies["green"]) <= service.PAIRS_PER_MODEL


@pytest.mark.parametrize(
    ("tensor", "parameters"),
    [
        pytest.param("IMAGE", {"sequence_id": "camera 7"}, id="a stream"),
        pytest.param("EMBEDDING", {}, id="the id of an image"),
    ],
)
async def test_a_request_that_one_server_alone_can_answer_is_not_repeated(
    world: World, tensor: str, parameters: dict[str, str]
) -> None:
    if world.protocol == "grpc":
        message = pb.ModelInferRequest(model_name="coins")
        message.inputs.add(name=tensor, datatype="BYTES", shape=[1])
        for name, value in parameters.items():
            message.parameters[name].string_param = value
        await world.copies.post(MODEL_INFER, content=framed(message.SerializeToString()))
    else:
        request = InferRequest("coins", (Tensor.of_items(tensor, [b"x"]),), parameters=parameters)
        headers, body = encode_http(request)
        await world.copies.post(INFER, headers=headers, content=body)

    await world.idle()
    assert world.asked() == 0
    assert (await world.pairs())["coins"]["dropped"] == 1


async def test_damaged_comparisons_compare_nothing(world: World) -> None:
    assert (await world.pairs()).keys() == {"coins"}
    world.folder.comparisons.write_text('{"coins": {"stable": "blue"')
    assert await world.pairs() == {}
    world.folder.comparisons.unlink()
    assert await world.pairs() == {}


async def test_it_tells_that_it_lives(world: World) -> None:
    assert (await world.control.get("/live")).status_code == 200
    assert (await world.control.get("/other")).status_code == 404
    assert (await world.control.post("/pairs")).status_code == 405


async def test_sockets_are_for_one_group_of_users(world: World) -> None:
    for path in (world.folder.copies, world.folder.control):
        assert path.stat().st_mode & 0o777 == 0o660


async def test_the_counts_are_those_that_the_gateways_side_reads(world: World) -> None:
    pairs = (await world.pairs())["coins"]

    assert list(pairs) == [field.name for field in fields(PairCounts)]
    nothing = evidence.Pairs.nothing()
    assert np.size(pairs["failed"]) == nothing.failed.size
    assert np.shape(pairs["ratios"]) == nothing.ratios.shape
    assert np.shape(pairs["disagreements"]) == nothing.disagreements.shape
    assert tally.RATIOS == evidence.RATIOS
    assert tally.DISAGREEMENTS == evidence.DISAGREEMENTS
    assert evidence.EDGES_MS[-1] <= tally.HUNG_MS
