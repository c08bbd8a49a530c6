"""Every query about servers and answers, answered by a Prometheus that scraped real Tritons with callers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from bench.platform import MODELS, Running
from fakes.prometheus import answers, ask, prometheus, queries, unexpectedly_empty
from fakes.waiting import until
from segserve import BadRequestError, Client
from segserve_builder.steps.answer_metrics import METRIC_FAMILIES

pytestmark = [pytest.mark.platform, pytest.mark.needs("prometheus")]

EMPTY: Final = {
    "nv_gpu": "there is no GPU",
    "offset 1d": "a day ago nothing was served",
    "ALERTS": "nothing is wrong",
}
"""Parts of queries that may be empty here, and why."""
OWN: Final = ("nv_", *(family.name for family in METRIC_FAMILIES))


def servers(running: Running) -> dict[str, dict[str, str]]:
    """Return the addresses at which servers tell metrics, with the labels that a cluster's PodMonitor adds."""
    ports = {file.parent.name: json.loads(file.read_text()) for file in running.state.glob("groups/*/ports.json")}
    common = {"namespace": "lab", "pool": "default"}
    return {f"127.0.0.1:{port['metrics']}": {**common, "group": group, "pod": group} for group, port in ports.items()}


def test_every_query_about_servers_and_answers_has_an_answer(
    serve: Callable[..., Running], photo: bytes, tmp_path: Path
) -> None:
    running = serve(MODELS)
    asked = [query for query in queries() if any(name in query for name in OWN)]

    with prometheus(tmp_path, servers(running)) as url, Client(running.url) as client:

        def without_answer() -> list[str]:
            for model in ("coins", "coins-instances"):
                client.segment(photo, model=model)
                with pytest.raises(BadRequestError):
                    client.segment(b"no image", model=model)
            return unexpectedly_empty(answers(url, asked), EMPTY)

        until(lambda: isinstance(ask(url, "vector(1)"), list), "Prometheus answers")
        until(lambda: not without_answer(), "all that may not be empty has an answer")
        found = answers(url, asked)

    assert {query: answer for query, answer in found.items() if isinstance(answer, str)} == {}
    assert len(found) > 30
