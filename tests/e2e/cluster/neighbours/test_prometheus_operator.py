"""The Prometheus operator takes the chart's monitors and rules, and dashboards have data, as how-to/install.md says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from bench.ports import free_port
from fakes.callers import EIGHT, Load
from fakes.cluster import Cluster, Json
from fakes.cluster_models import LITTLE, model, pool, smallest
from fakes.issued import tls_secret
from fakes.pools import pods_with
from fakes.prometheus import answers, ask, configured_prometheus, queries, unexpectedly_empty
from fakes.prometheus_operator import JOBS, monitored
from fakes.served_namespace import ServedNamespace
from fakes.terminal import Terminal
from fakes.waiting import until
from faults.plan import POOL_VARIABLE, Fault, text
from faults.platform import revision_of
from faults.scenarios import AT_FIRST

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(900)]

SLO: Final = {"errorPercent": 1, "p95Milliseconds": 30_000}
DRIFT: Final = {"window": "5s", "minAnswers": 10, "reference": {"window": {"duration": "1m"}}}
EMPTY: Final = {
    "nv_gpu": "there is no GPU",
    "offset 1d": "a day ago nothing was served",
    "pending_overflow": "Envoy tells a counter once it has counted",
}
"""Parts of queries that may be empty here, and why."""


def coins(area: int, **step: Any) -> Json:
    """Return the coins' model with a limit of area; a candidate has half of the requests for one step."""
    rollout = {"steps": [{"weight": 50, **step}], "bakeTime": "10s"}
    return model(postprocess=smallest(area), slo=SLO, drift=DRIFT, rollout=rollout)


GOOD, BAD, HELD = coins(153, minDuration="20s"), coins(154), coins(155, pause=True)


def pools(host: str) -> list[Json]:
    """Return two: servers of one know what BAD does wrong, and the other's gateway has a certificate.

    At the address to notify nobody listens, which is counted as well.
    """
    plan = text({revision_of(BAD): Fault(after=AT_FIRST, errors=1.0)})
    containers = {"agent": {"resources": LITTLE}, "triton": {"env": [{"name": POOL_VARIABLE, "value": plan}]}}
    return [
        pool(server=pods_with(containers), notifications=[{"url": f"http://{host}:{free_port()}/"}]),
        pool("secure", gateway={"replicas": 1, "tls": {"secretName": "tls"}}),
        tls_secret(trustme.CA(key_type=trustme.KeyType.ECDSA), timedelta(days=1)),
    ]


def test_monitors_and_rules_are_taken_and_dashboards_have_data_of_rollouts_however_they_end(
    cluster: Cluster, built: Callable[..., Path], tmp_path: Path
) -> None:
    found: dict[str, Any] = {}
    with (
        monitored(cluster, built, tmp_path, *pools(cluster.host), coins(150)) as watched,
        configured_prometheus(tmp_path, watched.config, watched.rules, watched.program) as url,
    ):

        def without_answer() -> list[str]:
            # What a rollout shows goes with it.
            found.update({query: said for query, said in answers(url, queries()).items() if said or query not in found})
            return unexpectedly_empty(found, EMPTY)

        served = watched.served
        until(lambda: isinstance(ask(url, "vector(1)"), list), "Prometheus answers")
        with served.load():
            served.apply(GOOD)
            cluster.wait("it is promoted", lambda: ended(served, GOOD) == "Succeeded")
        with Load(served.url(), pause_s=0.3, transports=EIGHT):
            served.apply(BAD)
            cluster.wait("it is rolled back", lambda: ended(served, BAD) == "RolledBack")
        with served.load():
            served.apply(HELD)
            until(lambda: ask(url, "segserve_rollout_held == 1"), "it waits for a person")
            without_answer()
            aborted = Terminal(cluster, served.name)("rollout", "abort", "coins")
            assert aborted.returncode == 0, aborted.stderr
            with suppress(AssertionError):  # the test says which queries have none
                until(lambda: not without_answer(), "every query has an answer", within_s=240)

        assert {query: answer for query, answer in found.items() if isinstance(answer, str)} == {}
        assert unexpectedly_empty(found, EMPTY) == []
        until(lambda: ask(url, "up == 0") == [], "all that is watched answers")
        seen = ask(url, "count by (job) (up)")
        assert isinstance(seen, list)
        assert len(seen) == JOBS - 1  # both of servers have one name


def ended(served: ServedNamespace, candidate: Json) -> str:
    """Return how the rollout of a candidate is; empty where another one is the last."""
    said = served.status("coins").get("rollout") or {}
    return str(said["phase"]) if said.get("revision") == revision_of(candidate) else ""
