"""Gates that ask others, a blue-green switch and the burn rate on the real parts, each with a rollback."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp import web

from bench.ports import free_port
from fakes.answering_service import service
from fakes.rollout_load import pictures
from fakes.waiting import HANG_S, until
from faults.plan import Fault
from faults.scenarios import coins
from faults.story import ENDED, Story

pytestmark = [pytest.mark.platform, pytest.mark.needs("prometheus"), pytest.mark.timeout(600)]

HELD: Final[dict[str, Any]] = {"steps": [{"weight": 50, "pause": True}], "bakeTime": "5m"}
BLUE_GREEN: Final[dict[str, Any]] = {"strategy": "blueGreen", "steps": [], "bakeTime": "5m"}


class Outside:
    """A service of the tenant's own: it reports a number, as a metric and by the status of its answer to a webhook."""

    def __init__(self) -> None:
        self.wrong = 0
        self.url = ""
        self.asked: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=f'masks_wrong{{model="coins"}} {self.wrong}\n')
        self.asked.append(await request.json())
        return web.Response(status=404 if self.wrong > 10 else 200)

    @contextmanager
    def runs(self) -> Iterator[None]:
        ready, ended, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            async with service(self.answer) as self.url:
                ready.set()
                await ended.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        assert ready.wait(HANG_S)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(HANG_S)
            loop.close()


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    own = Outside()
    with own.runs():
        yield own


@pytest.fixture(scope="module")
def prometheus(outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes the service every second."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    scraped = {"job_name": "own", "static_configs": [{"targets": [outside.url.removeprefix("http://")]}]}
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scraped]}))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(["prometheus", *options], stdout=log, stderr=log) as run:
        try:
            until(lambda: _found(address) == [0.0], "Prometheus has scraped the service")
            yield f"http://{address}"
        finally:
            run.terminate()


def _found(address: str) -> list[float]:
    try:
        answer = httpx.get(f"http://{address}/api/v1/query", params={"query": "masks_wrong"})
    except httpx.TransportError:
        return []
    if not answer.is_success:  # it starts
        return []
    return [float(each["value"][1]) for each in answer.json()["data"]["result"]]


def changed(area: int, policy: dict[str, Any], *gates: dict[str, Any]) -> dict[str, Any]:
    """Return the coins with another smallest area, which no picture shows, and a policy with these gates alone."""
    model = coins({**policy, "gates": list(gates)}, area=area)
    model["spec"]["slo"] = {"errorPercent": 1}  # latencies here are those of a busy machine
    return model


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """One platform under load, for one rollout after the other."""
    with Story(changed(150, HELD, {"gate": "errorRate"}), 20, pictures()).begun() as begun:
        yield begun


@contextmanager
def rollout(story: Story, model: dict[str, Any]) -> Iterator[None]:
    """Watch the rollout of a model for the time of the block, in which it has to be rolled back."""
    story.stages.clear()
    story.apply(model)
    with story.watching():
        yield
        assert story.reaches(*ENDED), story.stages
    assert story.stages[-1].phase == "RolledBack", story.stages
    story.load.settles_on(story.stable, count=10)
    assert story.platform.watched.role("coins", "stable") == (story.stable, "main")


def test_a_service_that_finds_masks_wrong_has_a_revision_rolled_back(story: Story, outside: Outside) -> None:
    gate = {"gate": "webhook", "name": "own-check", "url": outside.url, "interval": "1s"}
    with rollout(story, changed(151, HELD, gate)):
        assert story.reaches("Progressing", *ENDED)
        story.load.answered(5)
        assert story.first_of(*ENDED) is None, story.stages
        outside.wrong = 11

    outside.wrong = 0
    assert outside.asked[-1]["model"] == "coins"
    assert "the service answered 404" in story.stages[-1].message


def test_a_query_of_prometheus_has_a_revision_rolled_back(story: Story, outside: Outside, prometheus: str) -> None:
    gate = {"gate": "promql", "name": "own-query", "address": prometheus, "interval": "1s"}
    gate |= {"query": 'max(masks_wrong{model="{model}"})', "max": 10.0}
    with rollout(story, changed(152, HELD, gate)):
        assert story.reaches("Progressing", *ENDED)
        story.load.answered(5)
        assert story.first_of(*ENDED) is None, story.stages
        outside.wrong = 11

    outside.wrong = 0
    assert "result 11, max 10" in story.stages[-1].message


def test_a_blue_green_switch_that_burns_the_error_budget_is_taken_back(story: Story) -> None:
    with rollout(story, changed(153, BLUE_GREEN, {"gate": "burnRate", "longWindow": "12s"})):
        assert story.reaches("Baking", *ENDED)
        story.load.settles_on(story.candidate, count=10)
        story.platform.plan.set(**{story.candidate: Fault(errors=0.5)})

    assert {stage.weight for stage in story.stages if stage.phase == "Baking"} == {100}
    assert "the budget burns" in story.stages[-1].message
