"""A name that no model can have is refused by the client: on its way it might become another model's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from segserve import AsyncClient, BadRequestError, Client
from segserve.calls.steps import check_model_name
from segserve_builder.spec.names import MODEL_NAME_MAX_LENGTH, MODEL_NAME_PATTERN, network_alias

if TYPE_CHECKING:
    from .conftest import Served

WRONG = ["", "discs/../coins", "../coins", "coins/", "coins?x", "coins%2Finfer", "Coins", "coins\n", "a" * 41, None, 7]


def refusals(served: Served, photo: bytes, name: Any) -> list[str]:
    """Return the message of every method that takes a model's name, of both clients."""
    pixels = np.zeros((80, 80), np.uint8)

    async def in_tasks() -> list[str]:
        async with AsyncClient(served.url, transport=served.transport) as client:
            texts = []
            for call in (client.segment(photo, model=name), client.model_info(name)):
                with pytest.raises(BadRequestError) as caught:
                    await call
                texts.append(caught.value.message)
            with pytest.raises(BadRequestError) as caught:
                await client.segment_tiled(pixels, model=name)
            texts.append(caught.value.message)
            for images in (client.segment_many, client.segment_stream):
                with pytest.raises(BadRequestError) as caught:
                    [found async for found in images([photo], model=name)]
                texts.append(caught.value.message)
            return texts

    with Client(served.url, transport=served.transport) as client:
        texts = []
        for call in (
            lambda: client.segment(photo, model=name),
            lambda: client.model_info(name),
            lambda: client.segment_tiled(pixels, model=name),
            lambda: list(client.segment_many([photo], model=name)),
            lambda: list(client.segment_stream([photo], model=name)),
        ):
            with pytest.raises(BadRequestError) as caught:
                call()
            texts.append(caught.value.message)
    return texts + asyncio.run(in_tasks())


@pytest.mark.parametrize("name", WRONG, ids=repr)
def test_every_method_refuses_a_name_that_is_none_with_the_pattern_and_sends_nothing(
    served: Served, photo: bytes, name: Any
) -> None:
    texts = refusals(served, photo, name)

    assert len(texts) == 10
    assert all(MODEL_NAME_PATTERN.strip("^$") in text and repr(name) in text for text in texts)
    assert (served.gateway.inferences, served.gateway.config_requests) == (0, 0)


@pytest.mark.parametrize("name", ["coins", "c", "7", "coins-2-b", "a" * MODEL_NAME_MAX_LENGTH, network_alias("coins")])
def test_names_of_resources_and_of_their_bare_networks_are_taken(name: str) -> None:
    check_model_name(name)
