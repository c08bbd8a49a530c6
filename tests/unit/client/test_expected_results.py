"""`expect` names the type of result that a program is written for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fakes.kserve import Gateway, Model
from segserve import (
    AsyncClient,
    BadRequestError,
    Client,
    Failure,
    InstanceResult,
    ResultTypeError,
    SemanticResult,
)
from segserve.tiled import TiledObjects, TiledSemanticResult

from .conftest import HEIGHT, INSTANCE, WIDTH, instance_answer, parameters

if TYPE_CHECKING:
    from .conftest import Served


def each_way(served: Served, photo: bytes, model: str, expect: Any) -> list[Any]:
    """Return the result by every method that takes images, of both clients."""

    async def in_tasks() -> list[Any]:
        async with AsyncClient(served.url, transport=served.transport) as client:
            many = [found async for found in client.segment_many([photo], model=model, expect=expect)]
            frames = [found async for found in client.segment_stream([photo], model=model, expect=expect)]
            return [await client.segment(photo, model=model, expect=expect), *many, *frames]

    with Client(served.url, transport=served.transport) as client:
        many = list(client.segment_many([photo], model=model, expect=expect))
        frames = list(client.segment_stream([photo], model=model, expect=expect))
        return [client.segment(photo, model=model, expect=expect), *many, *frames, *asyncio.run(in_tasks())]


@pytest.mark.parametrize(("model", "expect"), [("coins", SemanticResult), ("discs", InstanceResult)])
def test_every_method_returns_the_type_that_is_expected(served: Served, photo: bytes, model: str, expect: type) -> None:
    assert [type(result) for result in each_way(served, photo, model, expect)] == [expect] * 6


def test_another_type_is_refused_before_an_image_is_sent_and_both_are_named(served: Served, photo: bytes) -> None:
    with (
        Client(served.url, transport=served.transport) as client,
        pytest.raises(ResultTypeError, match=r"'coins' returns SemanticResult, not InstanceResult") as caught,
    ):
        client.segment(photo, model="coins", expect=InstanceResult)

    assert (caught.value.model, caught.value.revision) == ("coins", "coins-aaaaaaaaaa")
    assert served.gateway.inferences == 0


def test_another_type_is_a_failure_of_each_image_where_errors_are_returned(gateway: Gateway, photo: bytes) -> None:
    with gateway.http() as url, Client(url) as client:
        found = list(client.segment_many([photo] * 2, model="discs", expect=SemanticResult, on_error="return"))

    assert [type(one.error) for one in found if isinstance(one, Failure)] == [ResultTypeError] * 2


@pytest.mark.parametrize("wrong", [int, "InstanceResult", InstanceResult | SemanticResult])
def test_what_is_not_a_type_of_result_is_refused_with_those_there_are(
    gateway: Gateway, photo: bytes, wrong: Any
) -> None:
    allowed = "SemanticResult, InstanceResult, DetectionResult"
    with gateway.http() as url, Client(url) as client, pytest.raises(BadRequestError, match=allowed):
        client.segment(photo, model="coins", expect=wrong)


def test_a_model_of_another_task_under_the_same_name_is_noticed(gateway: Gateway, photo: bytes) -> None:
    with gateway.http() as url, Client(url) as client:
        client.segment(photo, model="coins", expect=SemanticResult)
        gateway.models["coins"] = Model(INSTANCE, parameters("coins-bbbbbbbbbb"), instance_answer)
        found = client.segment(photo, model="coins", expect=InstanceResult)

    assert found.revision == "discs-bbbbbbbbbb"


@pytest.mark.parametrize(
    ("model", "expect", "other"),
    [("coins", TiledSemanticResult, TiledObjects), ("discs", TiledObjects, TiledSemanticResult)],
)
def test_a_tiled_result_of_another_type_is_refused_before_a_tile_is_sent(
    gateway: Gateway, model: str, expect: Any, other: Any
) -> None:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)

    async def in_tasks(url: str) -> Any:
        async with AsyncClient(url) as client:
            with pytest.raises(ResultTypeError, match=f"returns a {expect.__name__}"):
                await client.segment_tiled(image, model=model, expect=other)
            return await client.segment_tiled(image, model=model, expect=expect)

    with gateway.http() as url, Client(url) as client:
        with pytest.raises(ResultTypeError, match=f"returns a {expect.__name__}"):
            client.segment_tiled(image, model=model, expect=other)
        sent = gateway.inferences
        results = [client.segment_tiled(image, model=model, expect=expect), asyncio.run(in_tasks(url))]

    assert sent == 0
    assert [type(result) for result in results] == [expect] * 2
    assert gateway.inferences == 2
