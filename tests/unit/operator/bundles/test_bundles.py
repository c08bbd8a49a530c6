"""What a bundle holds, that equal content is equal bytes, and where platforms keep it."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from fakes.kube import FakeKube
from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, ROLLOUTS
from segserve_common.kube.names import BUNDLE_KEY, GROUP_LABEL, MANAGED_LABELS, POOL_LABEL
from segserve_operator.adapters.bundles.archive import packed, tail, unpacked
from segserve_operator.adapters.bundles.cluster import LIMIT_BYTES, MAX_PODS, ClusterBundles
from segserve_operator.adapters.bundles.contents import LOG_BYTES, ServerDiagnostics, bundle
from segserve_operator.adapters.bundles.local import MAX_BUNDLES, LocalBundles, bundle_file
from segserve_operator.adapters.kube.history import POOL_BUNDLES_BYTES
from segserve_operator.adapters.kube.view import PoolKey, selector
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Decision, Record, Row

VERDICT = Verdict("errorRate", Outcome.BREACH, "Worse", "9 of 60 failed", 1.0, {"candidate": 0.15})
RECORD = Record(
    "coins-7f",
    "coins",
    "coins-r1",
    "coins-r2",
    RolloutPolicy(),
    Slo(),
    Progress.begun(1000.0),
    decisions=(Decision(1, 1000.0, "BREACH", Phase.ROLLED_BACK, 0, "segserve", "Worse", "", (VERDICT,), inputs="{}"),),
    rows=(Row(1000.0, 1.0, 5, (95, 5), (0, 1)),),
    verdicts=(VERDICT,),
)
GATHERED = ServerDiagnostics({"canary/triton": b"loaded\nfailed\n"}, {"canary": b"{}"}, ("canary's log of agent",))


def test_a_bundle_has_the_record_what_was_decided_and_what_the_servers_said() -> None:
    files = unpacked(bundle(RECORD, GATHERED))
    assert files.keys() == {
        f"coins-7f/{name}"
        for name in (
            "README.txt",
            "record.json",
            "decisions.json",
            "verdicts.json",
            "rows.json",
            "logs/canary/triton.log",
            "statistics/canary.json",
        )
    }
    assert json.loads(files["coins-7f/record.json"])["metadata"] == {"name": "coins-7f"}
    assert json.loads(files["coins-7f/rows.json"])[0]["requests"] == [95, 5]
    assert json.loads(files["coins-7f/verdicts.json"])[0]["numbers"] == {"candidate": 0.15}
    (decision,) = json.loads(files["coins-7f/decisions.json"])
    assert decision["signal"] == "BREACH"
    assert "inputs" not in decision


def test_a_bundle_says_what_it_has_not() -> None:
    readme = unpacked(bundle(RECORD, GATHERED))["coins-7f/README.txt"].decode()
    assert "Failing requests are not in here" in readme
    assert "Missing: canary's log of agent" in readme


def test_equal_content_is_equal_bytes_in_whatever_order_and_whenever_it_comes() -> None:
    files = {"b": b"2", "a": b"1"}
    assert packed(files) == packed(dict(reversed(files.items())))
    turned = replace(GATHERED, missing=("b", "a"))
    assert bundle(RECORD, turned) == bundle(RECORD, replace(turned, missing=("a", "b")))
    assert packed(files)[4:8] == b"\0\0\0\0"


def test_of_a_long_log_the_last_whole_lines_are_kept() -> None:
    assert tail(b"first\nsecond\nthird\n", 10) == b"third\n"
    assert tail(b"one\n", 10) == b"one\n"
    assert tail(b"one\n", 0) == b""


@asynccontextmanager
async def triton() -> AsyncIterator[int]:
    async def statistics(_: web.Request) -> web.Response:
        return web.json_response({"model_stats": [{"name": "coins"}]})

    app = web.Application()
    app.add_routes([web.get("/v2/models/stats", statistics)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def kept(state: StateFolder) -> dict[str, bytes]:
    return unpacked(bundle_file(state, "coins-7f").read_bytes())


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = tmp_path / "groups/canary"
    folder.mkdir(parents=True)
    (folder / "triton.log").write_text("loaded\nfailed\n")
    (folder / "agent.log").write_text("told\n")
    (folder / "ports.json").write_text(json.dumps({"http": 9, "grpc": 9, "metrics": 9}))
    return StateFolder(tmp_path)


async def test_here_a_bundle_is_a_file_with_the_ends_of_the_groups_logs(state: StateFolder) -> None:
    log = state.groups / "canary/triton.log"
    log.write_text("".join(f"line {number}\n" for number in range(200_000)))
    await LocalBundles(state).save(RECORD, "canary")
    files = kept(state)
    assert files["coins-7f/logs/canary/agent.log"] == b"told\n"
    end = files["coins-7f/logs/canary/triton.log"]
    assert LOG_BYTES - 20 < len(end) <= LOG_BYTES
    assert end.startswith(b"line ")
    assert log.read_bytes().endswith(end)


async def test_what_a_server_counted_is_there_where_it_answers(state: StateFolder) -> None:
    async with triton() as port:
        (state.groups / "canary/ports.json").write_text(json.dumps({"http": port, "grpc": 9, "metrics": 9}))
        await LocalBundles(state).save(RECORD, "canary")
    assert b"model_stats" in kept(state)["coins-7f/statistics/canary.json"]


async def test_a_group_of_which_nothing_is_left_makes_a_bundle_that_says_so(tmp_path: Path) -> None:
    await LocalBundles(StateFolder(tmp_path)).save(RECORD, "gone")
    readme = kept(StateFolder(tmp_path))["coins-7f/README.txt"].decode()
    assert readme.count("Missing: gone's ") == 3
    assert str(tmp_path) not in readme


async def test_the_same_rollout_saved_again_is_the_same_bytes(state: StateFolder) -> None:
    await LocalBundles(state).save(RECORD, "canary")
    path = bundle_file(state, "coins-7f")
    first = path.read_bytes()
    await LocalBundles(state).save(RECORD, "canary")
    assert path.read_bytes() == first


async def test_the_newest_bundles_are_kept(state: StateFolder) -> None:
    for number in range(MAX_BUNDLES + 3):
        await LocalBundles(state).save(replace(RECORD, name=f"coins-{number}"), "canary")
        os.utime(bundle_file(state, f"coins-{number}"), (number, number))
    await LocalBundles(state).save(RECORD, "canary")
    left = {path.name for path in (state.root / "bundles").iterdir()}
    assert len(left) == MAX_BUNDLES
    assert "coins-7f.tar.gz" in left
    assert "coins-3.tar.gz" not in left


KEY_OF_POOL = PoolKey("lab", "default")


class Logs:
    """Logs by (pod, container, whether before)."""

    def __init__(self, **texts: bytes) -> None:
        self.texts = texts

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> bytes:
        name = f"{pod}_{container}" + ("_previous" if previous else "")
        if name not in self.texts:
            raise NotFoundError("previous terminated container not found")
        return self.texts[name]


def add_pod(kube: FakeKube, name: str, group: str = "canary", *, restarts: int = 0) -> None:
    labels = {**MANAGED_LABELS, POOL_LABEL: "default", GROUP_LABEL: group}
    kube.put(PODS, {"metadata": {"name": name, "namespace": "lab", "labels": labels}})
    statuses = [{"name": container, "restartCount": restarts} for container in ("triton", "agent", "other")]
    kube.edit_status(PODS, "lab", name, {"status": {"containerStatuses": statuses}})


@pytest.fixture
def kube() -> FakeKube:
    kube = FakeKube()
    kube.put(ROLLOUTS, {"metadata": {"name": "coins-7f", "namespace": "lab"}, "spec": {}})
    return kube


async def saved(kube: FakeKube, logs: Logs) -> dict[str, bytes]:
    await ClusterBundles(kube, logs, KEY_OF_POOL).save(RECORD, "canary")
    found = await kube.get(CONFIG_MAPS, "lab", "coins-7f-bundle")
    content = base64.b64decode(found["binaryData"][BUNDLE_KEY])
    assert len(content) <= LIMIT_BYTES
    return unpacked(content)


async def test_on_a_cluster_a_bundle_is_a_config_map_that_goes_with_its_rollout(kube: FakeKube) -> None:
    add_pod(kube, "a")
    add_pod(kube, "b", "main")
    files = await saved(kube, Logs(a_triton=b"failed\n", a_agent=b"told\n", b_triton=b"of another group\n"))
    assert {name: text for name, text in files.items() if "/logs/" in name} == {
        "coins-7f/logs/a/triton.log": b"failed\n",
        "coins-7f/logs/a/agent.log": b"told\n",
    }
    found = await kube.get(CONFIG_MAPS, "lab", "coins-7f-bundle")
    owner = await kube.get(ROLLOUTS, "lab", "coins-7f")
    assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == [owner["metadata"]["uid"]]


async def test_the_operator_does_not_watch_bundles(kube: FakeKube) -> None:
    await saved(kube, Logs())
    assert kube.all(CONFIG_MAPS, "lab", selector(CONFIG_MAPS)) == []


async def test_of_a_pools_bundles_the_oldest_go_when_there_is_no_room(kube: FakeKube) -> None:
    await saved(kube, Logs())
    former = await kube.get(CONFIG_MAPS, "lab", "coins-7f-bundle")
    labels = former["metadata"]["labels"]
    noise = base64.b64encode(b"x" * (POOL_BUNDLES_BYTES - 1000)).decode()
    for name, pool in (("old", KEY_OF_POOL.pool), ("of-another-pool", "other")):
        metadata = {"name": name, "namespace": "lab", "labels": {**labels, POOL_LABEL: pool}}
        kube.put(CONFIG_MAPS, {"metadata": metadata, "binaryData": {BUNDLE_KEY: noise}})
    await saved(kube, Logs())

    names = {found["metadata"]["name"] for found in kube.all(CONFIG_MAPS, "lab")}
    assert names == {"coins-7f-bundle", "of-another-pool"}


async def test_a_container_that_crashed_said_why_before_it_started_again(kube: FakeKube) -> None:
    add_pod(kube, "a", restarts=2)
    files = await saved(kube, Logs(a_triton=b"", a_agent=b"told\n", a_triton_previous=b"signal 11\n"))
    assert files["coins-7f/logs/a/triton-previous.log"] == b"signal 11\n"
    assert "Missing: the log a/agent-previous" in files["coins-7f/README.txt"].decode()


async def test_of_logs_that_are_too_large_the_ends_are_kept_and_the_readme_says_how_much(kube: FakeKube) -> None:
    noise = random.Random(1)
    text = b"".join(noise.randbytes(60).hex().encode() + b"\n" for _ in range(20_000))
    logs = {}
    for number in range(MAX_PODS + 1):
        add_pod(kube, f"p{number}")
        logs |= {f"p{number}_triton": text, f"p{number}_agent": b""}
    files = await saved(kube, Logs(**logs))
    kept = files["coins-7f/logs/p0/triton.log"]
    assert 0 < len(kept) < LOG_BYTES
    assert text.endswith(kept)
    readme = files["coins-7f/README.txt"].decode()
    assert f"{LOG_BYTES:,} bytes" not in readme
    assert "Missing: 1 more servers of group canary" in readme
