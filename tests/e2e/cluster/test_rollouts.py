"""Rollouts on a real cluster: a candidate that is bad in any of five ways goes, and its callers' stable stays."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from cluster import kind
from fakes.artifact_server import ArtifactServer
from fakes.cluster import Cluster, Json
from fakes.cluster_models import default_pool, model, smallest
from fakes.installed_operator import installed
from fakes.pools import pods_with
from fakes.rollout_load import RolloutLoad
from fakes.served_namespace import ServedNamespace
from fakes.waiting import HANG_S
from faults.golden_sets import recorded
from faults.networks import artifact, with_other_weights
from faults.plan import POOL_VARIABLE, Fault, text
from faults.platform import revision_of
from faults.scenarios import AT_FIRST, COINS, POLICY, SLO, labelled_coins
from faults.story import ENDED
from segserve_common.kube.names import SHEETS_PORT
from segserve_platform.evaluation.sheets import fetch_sheet

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

RATE: Final = 20.0
WITHOUT_SHADOW: Final = {**POLICY, "shadow": {"enabled": False}}
TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
FAULTS: Final = {
    151: Fault(after=AT_FIRST, errors=0.05),
    152: Fault(after=AT_FIRST, errors=1.0),
    153: Fault(after=AT_FIRST, crash_after=5),
    156: Fault(after=AT_FIRST, labels="shifted"),
}
"""What is wrong with a revision, by its smallest area; the servers' environment tells them."""


def coins(area: int = 150, **spec: Any) -> Json:
    rollout = {**WITHOUT_SHADOW, "steps": [{"weight": 50, "minDuration": "3m"}]}
    return model(**{"slo": dict(SLO), "rollout": rollout, "postprocess": smallest(area), "keepPrevious": "1m", **spec})


class TenantService(ThreadingHTTPServer):
    """A service of a tenant on this machine, which keeps what it is told, and refuses candidates."""

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), _Answer)
        self.received: list[Json] = []


class _Answer(BaseHTTPRequestHandler):
    server: TenantService

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append(told)
        self.send_response(404 if "candidate" in told else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def tenant() -> Iterator[TenantService]:
    with TenantService() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


@pytest.fixture(scope="module")
def rolling(cluster: Cluster, tenant: TenantService) -> Iterator[ServedNamespace]:
    """One model on a pool of one server and one gateway, whose servers know what to do wrong."""
    plan = text({revision_of(coins(area)): fault for area, fault in FAULTS.items()})
    pool = default_pool(
        replicas=1,
        gateway={"replicas": 1, "requestTimeoutSeconds": 5, "shadow": True},
        artifacts={"privateHosts": [cluster.host]},
        server={"drainSeconds": 3, **pods_with({"triton": {"env": [{"name": POOL_VARIABLE, "value": plan}]}})},
        notifications=[{"url": f"http://{cluster.host}:{tenant.server_port}/"}],
    )
    with ExitStack() as stack:
        name = stack.enter_context(cluster.namespace("rollouts"))
        hosts = [f"{part}.hosts={{{cluster.host}}}" for part in ("gates", "notifications")]
        operator = stack.enter_context(installed(cluster, [name], more=hosts))
        found = ServedNamespace(cluster, operator, name)
        found.apply(pool, coins())
        found.wait_ready("coins")
        yield found


def shadowed(area: int, longest: str) -> Json:
    """Return a candidate that is asked copies for so long before its first step, if its masks do not stop it.

    Stable is not watched for long enough here to be known, which Shadow waits for.
    """
    shadow = {"percent": 100, "maxRequestsPerSecond": 5, "minRequests": 40, "maxDuration": longest}
    gates = [{"gate": "errorRate"}, {"gate": "maskAgreement", "minimum": 0.9, "onBreach": "Rollback"}]
    rollout = {**WITHOUT_SHADOW, "steps": [{"weight": 50, "pause": True}], "gates": gates, "shadow": shadow}
    return coins(area, rollout={**rollout, "tolerance": {"errorPercent": 20}})


@dataclass(frozen=True, slots=True)
class Ended:
    """How the rollout of a revision ended, and the callers that it had."""

    candidate: str
    phase: str
    load: RolloutLoad


def reached(rolling: ServedNamespace, revision: str, *phases: str) -> str:
    """Wait until the rollout of a revision is in one of these phases, and return which."""

    def look() -> str | None:
        said = rolling.status("coins").get("rollout") or {}
        assert said.get("revision") == revision, said
        assert said["phase"] in phases, said
        return str(said["phase"])

    return rolling.cluster.wait(f"the rollout of {revision} is {' or '.join(phases)}", look, 2 * HANG_S)


def rolled_out(rolling: ServedNamespace, candidate: Json) -> Ended:
    """Apply a candidate under load and wait for its rollout's end, and for some answers after that."""
    revision = revision_of(candidate)

    with RolloutLoad(rolling.url(), "coins", RATE) as load:
        rolling.apply(candidate)
        phase = reached(rolling, revision, *ENDED)
        load.answered(40)
    return Ended(revision, phase, load)


@pytest.mark.parametrize(
    "area",
    [
        pytest.param(152, id="it fails always"),
        pytest.param(151, id="it fails for one picture in twenty"),
        pytest.param(153, id="its server crashes again and again"),
    ],
)
def test_a_candidate_that_fails_is_rolled_back_and_stable_answers_all_the_while(
    rolling: ServedNamespace, area: int
) -> None:
    former = rolling.role("coins", "stable")
    ended = rolled_out(rolling, coins(area))

    assert ended.phase == "RolledBack"
    assert rolling.role("coins", "stable") == former
    assert [call for call in ended.load.calls if call.bad and call.revision != ended.candidate] == []
    assert len(ended.load.bad_of(ended.candidate)) <= POLICY["maxBadRequests"]


def test_a_network_with_wrong_masks_never_answers_a_caller(rolling: ServedNamespace, artifacts: ArtifactServer) -> None:
    network = with_other_weights(COINS / "coins-unet.onnx", artifacts.folder / "other.onnx")
    golden = recorded(coins(), network, [labelled_coins()], artifacts.folder / "golden")
    candidate = coins(
        artifact=artifact(network) | {"uri": f"{artifacts.url}/other.onnx"},
        golden=golden | {"uri": f"{artifacts.url}/golden/"},
    )
    ended = rolled_out(rolling, candidate)

    assert ended.phase == "RolledBack"
    assert ended.load.of(ended.candidate) == []
    assert [call for call in ended.load.calls if call.bad] == []


def test_copies_stop_a_candidate_with_wrong_masks_before_any_caller_and_let_a_good_one_go_on(
    rolling: ServedNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differed is there afterwards for who may forward ports; the pod's network leads nobody else there."""
    # The bad one waits for its masks: on a busy machine they are compared long after the first answers.
    bad, good = shadowed(156, longest="1h"), shadowed(157, longest="1m")
    ended = rolled_out(rolling, bad)
    said = rolling.status("coins")["rollout"]
    monkeypatch.setenv("PATH", f"{kind.KUBECTL.parent}:{os.environ['PATH']}")
    sheet, _ = fetch_sheet(rolling.platform(), "coins")
    address = (urlsplit(rolling.internal_urls()[0]).hostname, SHEETS_PORT)
    with pytest.raises(OSError, match="refused"), socket.create_connection(address, HANG_S):
        pass
    revision = revision_of(good)
    with RolloutLoad(rolling.url(), "coins", RATE) as load:
        rolling.apply(good)
        began = reached(rolling, revision, "Shadow", "Progressing", *ENDED)
        phase = reached(rolling, revision, "Progressing", *ENDED)
        rolling.cluster.wait("callers of the good one", lambda: load.of(revision))

    assert ended.phase == "RolledBack"
    assert (said["weight"], said["reason"]) == (0, "MasksDiffer")
    assert sheet.pairs
    assert sheet.ended_at_s is not None
    assert ended.load.of(ended.candidate) == []
    assert (began, phase) == ("Shadow", "Progressing")
    # On a busy machine some may have no answer in time, but none has a wrong one.
    assert [call for call in (*ended.load.calls, *load.calls) if call.bad and not call.error] == []


def test_services_of_tenants_are_called_from_a_container_that_has_no_token(
    rolling: ServedNamespace, cluster: Cluster, tenant: TenantService
) -> None:
    url = f"http://{cluster.host}:{tenant.server_port}/"
    gate = {"gate": "webhook", "name": "own", "url": url}
    rollout = {**WITHOUT_SHADOW, "steps": [{"weight": 50}], "gates": [*POLICY["gates"], gate]}
    candidate = coins(155, rollout=rollout)
    ended = rolled_out(rolling, candidate)
    asked = [each for each in tenant.received if each.get("gate") == "own" and each["candidate"] == ended.candidate]
    rolling.cluster.wait(
        "a notification", lambda: [each for each in tenant.received if each.get("revision") == ended.candidate]
    )

    def has_token(container: str) -> bool:
        look = f"import os; print(os.path.exists({TOKEN!r}))"
        target = ("-n", rolling.operator.namespace, "exec", "deployment/segserve", "-c", container)
        return cluster.kubectl(*target, "--", "python3", "-c", look).strip() == "True"

    assert ended.phase == "RolledBack"
    assert asked
    assert (has_token("operator"), has_token("worker")) == (True, False)
