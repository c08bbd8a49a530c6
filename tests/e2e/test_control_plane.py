"""`client.models` and `client.rollouts` on the real platform."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench.coins import variant
from bench.platform import Running
from fakes.callers import PHOTO
from segserve import AsyncClient, Client, ConflictError, Local, NotFoundError, NotServingError
from segserve_platform.resources import RolloutPhase, SegmentationModel

pytestmark = pytest.mark.platform

NAME = "controlled"
POLICY = {"steps": [{"weight": 50, "minDuration": "2h"}], "gates": [{"gate": "errorRate"}]}


def model(min_area: int) -> dict[str, object]:
    steps = [{"argmax": {}}, {"removeSmallRegions": {"minArea": min_area}}]
    return variant(name=NAME, rollout=POLICY, postprocess=steps)


@pytest.fixture(scope="module")
def client(coins: Running) -> Iterator[Client]:
    """A client that has brought a model to the shared platform; the model goes again by the client alone."""
    with Client(coins.url, platform=Local(coins.state)) as client:
        client.models.apply(model(150))
        client.models.wait(NAME)
        yield client
        client.models.delete(NAME)
        client.models.wait(NAME, for_="delete")
        with pytest.raises(NotFoundError, match=f"no SegmentationModel '{NAME}'; there are: coins, coins-instances"):
            client.models.get(NAME)


def test_what_fails_its_golden_images_ends_the_wait_and_the_former_goes_on(client: Client) -> None:
    stable = client.models.get(NAME).status.roles.stable.revision

    client.models.apply(model(100_000))

    with pytest.raises(NotServingError, match="GoldenFailed"):
        client.models.wait(NAME)
    assert client.segment(PHOTO, model=NAME).revision == stable


def is_read(found: SegmentationModel, wanted: SegmentationModel) -> bool:
    """Tell whether a condition is about the spec that was applied; the status's own generation lags until it serves."""
    return any(each.observed_generation == wanted.metadata.generation for each in found.status.conditions)


def test_a_rollout_is_seen_paused_and_ended_by_the_client(client: Client, coins: Running) -> None:
    wanted = client.models.apply(model(160))

    async def story() -> RolloutPhase:
        async with AsyncClient(coins.url, platform=Local(coins.state)) as other:
            while not is_read(await other.models.get(NAME), wanted):
                await asyncio.sleep(0.1)
            while (await other.rollouts.status(NAME)).phase is not RolloutPhase.PROGRESSING:
                await asyncio.sleep(0.1)
            assert (await other.rollouts.pause(NAME)).paused
            with pytest.raises(ConflictError, match="paused already"):
                await other.rollouts.pause(NAME)
            return (await other.rollouts.abort(NAME)).phase

    assert asyncio.run(story()) is RolloutPhase.ROLLED_BACK
    with pytest.raises(NotServingError, match="is RolledBack"):
        client.rollouts.wait(NAME)
    newest = client.rollouts.list(NAME)[0]
    assert newest.spec.candidate == client.rollouts.status(NAME).revision
    assert newest.status.decisions[-1].actor != "segserve"
