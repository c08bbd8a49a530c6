"""What is sent and what is delivered, over ConfigMaps in memory that fail when they are told to."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from fakes.waiting import until
from segserve_builder.cluster import report_sender
from segserve_builder.cluster.agent import Shard, ShardInbox
from segserve_builder.cluster.config_map_watch import ConfigMapWatch
from segserve_builder.cluster.report_sender import ReportSender
from segserve_common.api_errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    UnavailableError,
)
from segserve_common.backoff import RetryDelays
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import Kind
from segserve_common.kube.requests import Selector, WatchEvent
from segserve_common.kube.shards import CONTENT_KEY, pack, unpack


class Stored:
    """The API in memory: `script` is what the next calls do instead of answering; an event None ends a watch."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[str, Any]] = {}
        self.script: list[Exception] = []
        self.calls: list[str] = []
        self.events: list[WatchEvent | Exception | None] = []
        self.closed = False

    def as_client(self) -> KubeClient:
        return cast(KubeClient, self)

    def list(
        self, kind: Kind, *, labels: dict[str, str], fields: str, everywhere: bool
    ) -> tuple[list[dict[str, Any]], str]:
        self._call("list")
        name = fields.removeprefix("metadata.name=")
        return [self.maps[name]] if name in self.maps else [], str(len(self.calls))

    def get(self, kind: Kind, name: str) -> dict[str, Any]:
        self._call("get")
        if name not in self.maps:
            raise NotFoundError("not there")
        return self.maps[name]

    def watch(self, selector: Selector, version: str) -> Iterator[WatchEvent]:
        self._call(f"watch {version}")
        while not self.closed:
            if self.events:
                event = self.events.pop(0)
                if event is None:
                    return
                if isinstance(event, Exception):
                    raise event
                yield event
            time.sleep(0.005)

    def patch(self, kind: Kind, name: str, patch: dict[str, Any]) -> None:
        self._call("patch")
        if name not in self.maps:
            raise NotFoundError("not there")
        self.maps[name].setdefault("binaryData", {}).update(patch["binaryData"])

    def close(self) -> None:
        self.closed = True

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.script:
            raise self.script.pop(0)


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def sender(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportSender]:
    monkeypatch.setattr(report_sender, "MIN_INTERVAL_S", 0.05)
    made = ReportSender(stored.as_client(), "reports", "pod")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def told(stored: Stored) -> Iterator[list[Any]]:
    """What a watch of one name tells."""
    heard: list[Any] = []
    watch = ConfigMapWatch(stored.as_client(), ["name"], lambda _, found: heard.append(found))
    watch.start()
    yield heard
    watch.stop()


def eventually(claim: Callable[[], bool]) -> None:
    until(claim, "what was stored, heard or called")


def config_map(value: Any) -> dict[str, Any]:
    return {"binaryData": {CONTENT_KEY: pack(value)}}


def report_of(stored: Stored) -> object:
    return (stored.maps["reports"].get("binaryData") or {}).get("pod")


def test_a_version_that_has_expired_is_listed_anew(stored: Stored, told: list[Any]) -> None:
    eventually(lambda: told == [None])
    stored.maps["name"] = {"made": "meanwhile"}
    stored.events.append(GoneError("too old"))
    eventually(lambda: told == [None, {"made": "meanwhile"}])


def test_a_watch_goes_on_from_the_last_bookmark(stored: Stored, told: list[Any]) -> None:
    stored.events += [WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "77"}}), None]
    eventually(lambda: "watch 77" in stored.calls)
    assert stored.calls.count("list") == 1


def test_a_watch_that_breaks_off_is_listed_anew(stored: Stored, told: list[Any]) -> None:
    stored.events.append(UnavailableError("reset"))
    eventually(lambda: told == [None, None])


def test_a_listener_that_fails_is_told_again(stored: Stored) -> None:
    stored.maps["name"] = {"value": 1}
    heard: list[Any] = []

    def fail_once(_: str, found: Any) -> None:
        heard.append(found)
        if len(heard) == 1:
            raise OSError("the disk is full")

    watch = ConfigMapWatch(stored.as_client(), ["name"], fail_once)
    watch.start()
    eventually(lambda: heard == [{"value": 1}, {"value": 1}])
    watch.stop()


def test_an_api_that_cannot_be_reached_tells_nothing(stored: Stored) -> None:
    stored.script = [UnavailableError("refused")] * 3
    heard: list[Any] = []
    watch = ConfigMapWatch(stored.as_client(), ["name"], lambda _, found: heard.append(found))
    watch.start()
    eventually(lambda: heard == [None])
    assert stored.calls[:4] == ["list"] * 4
    watch.stop()


def test_a_report_is_sent_until_it_is_taken(stored: Stored, sender: ReportSender) -> None:
    stored.maps["reports"] = {}
    stored.script = [UnavailableError("refused"), UnavailableError("etcd"), ConflictError("conflict")]
    sender.send({"ready": True})
    eventually(lambda: report_of(stored) == pack({"ready": True}))
    assert stored.calls == ["patch"] * 4


def test_a_report_that_failed_is_tried_at_once_when_somebody_asks(
    stored: Stored, sender: ReportSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RetryDelays, "next_s", lambda _: 3600.0)
    sender.send({"ready": True})
    eventually(lambda: stored.calls == ["patch"])
    stored.maps["reports"] = {}
    sender.check()
    eventually(lambda: report_of(stored) == pack({"ready": True}))


def test_only_the_newest_of_many_reports_is_sent_after_a_failure(stored: Stored, sender: ReportSender) -> None:
    stored.maps["reports"] = {}
    stored.script = [UnavailableError("refused")]
    for number in range(50):
        sender.send({"number": number})
    eventually(lambda: report_of(stored) == pack({"number": 49}))
    assert stored.calls.count("patch") <= 3


def test_a_report_that_somebody_deleted_comes_back(stored: Stored, sender: ReportSender) -> None:
    stored.maps["reports"] = {}
    sender.send({"ready": True})
    eventually(lambda: report_of(stored) is not None)
    stored.maps["reports"] = {}
    sender.check()
    eventually(lambda: report_of(stored) == pack({"ready": True}))


def test_equal_reports_are_one_write(stored: Stored, sender: ReportSender) -> None:
    stored.maps["reports"] = {}
    for _ in range(5):
        sender.send({"ready": True})
        eventually(lambda: report_of(stored) is not None)
    sender.check()
    eventually(lambda: "get" in stored.calls)
    assert stored.calls.count("patch") == 1


@pytest.fixture
def apart(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportSender]:
    monkeypatch.setattr(report_sender, "MIN_INTERVAL_S", 0.05)
    made = ReportSender(stored.as_client(), "reports", "pod", "pod-report")
    yield made
    made.stop()


def report_in(stored: Stored, name: str, key: str) -> str | None:
    return stored.maps[name].get("binaryData", {}).get(key)


def test_a_pod_whose_own_map_is_there_at_the_start_writes_nothing_to_the_shared_one(
    stored: Stored, apart: ReportSender
) -> None:
    stored.maps |= {"reports": {}, "pod-report": {}}
    apart.start()
    apart.send({"value": 1})

    eventually(lambda: report_in(stored, "pod-report", "report") == pack({"value": 1}))
    assert stored.maps["reports"] == {}


@pytest.mark.parametrize("refusal", [NotFoundError, ForbiddenError])
def test_a_report_is_shared_until_the_own_map_is_there_and_never_waits_for_it(
    stored: Stored, apart: ReportSender, refusal: type[ApiError]
) -> None:
    stored.maps["reports"] = {}
    stored.script = [refusal("no such map")]
    apart.start()
    apart.send({"value": 1})
    eventually(lambda: report_in(stored, "reports", "pod") == pack({"value": 1}))

    stored.maps["pod-report"] = {}
    apart.use_own()

    eventually(lambda: report_in(stored, "pod-report", "report") == pack({"value": 1}))


def test_an_own_map_that_somebody_deleted_is_replaced_by_the_shared_one_until_it_is_back(
    stored: Stored, apart: ReportSender
) -> None:
    stored.maps |= {"reports": {}, "pod-report": {}}
    apart.start()
    apart.use_own()
    apart.send({"value": 1})
    eventually(lambda: bool(stored.maps["pod-report"]))
    del stored.maps["pod-report"]
    apart.send({"value": 2})
    eventually(lambda: report_in(stored, "reports", "pod") == pack({"value": 2}))

    stored.maps["pod-report"] = {}
    apart.check()

    eventually(lambda: report_in(stored, "pod-report", "report") == pack({"value": 2}))


def test_a_report_that_no_map_holds_loses_its_counts_of_answers_before_its_messages(
    stored: Stored, sender: ReportSender
) -> None:
    stored.maps["reports"] = {}
    numbers = random.Random(1)
    models = [{"model": f"model-{n}", "state": "Failed", "message": "LoadFailed"} for n in range(1000)]
    counts = [{"histograms": {"area": [numbers.getrandbits(30) for _ in range(150)]}} for _ in models]
    sender.send(
        {"uid": "a", "models": [{**model, "answers": each} for model, each in zip(models, counts, strict=True)]}
    )

    eventually(lambda: bool(stored.maps["reports"]))
    report = unpack(report_in(stored, "reports", "pod") or "")
    assert report == {"uid": "a", "models": models}


def test_a_report_that_no_map_holds_loses_its_messages_and_is_sent(stored: Stored, sender: ReportSender) -> None:
    stored.maps["reports"] = {}
    words = random.Random(1)
    models = [{"model": f"model-{n}", "state": "Failed", "message": words.randbytes(500).hex()} for n in range(1000)]
    sender.send({"uid": "a", "models": models})

    eventually(lambda: bool(stored.maps["reports"]))
    report = unpack(report_in(stored, "reports", "pod") or "")
    assert report["models"] == [{"model": f"model-{n}", "state": "Failed"} for n in range(1000)]


class Inbox:
    """An inbox of two shards whose values are lists."""

    def __init__(self) -> None:
        self.delivered: list[tuple[Any, ...]] = []
        self.full_disk = False
        self.inbox: ShardInbox[list[Any]] = ShardInbox(("a", "b"), self._read, self._deliver)

    def _read(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        return value

    def _deliver(self, shards: tuple[Shard[list[Any]], ...]) -> None:
        if self.full_disk:
            raise OSError("the disk is full")
        self.delivered.append(tuple(shard.value for shard in shards))


def test_shards_are_delivered_together_in_order_once_all_were_read() -> None:
    world = Inbox()
    world.inbox.take("b", config_map([2]))
    world.inbox.take("a", None)
    world.inbox.take("a", {"data": {}})
    assert world.delivered == []
    world.inbox.take("a", config_map([1]))
    world.inbox.take("a", config_map([1]))
    assert world.delivered == [([1], [2])]


@pytest.mark.parametrize("bad", [None, {}, config_map("text"), {"binaryData": {CONTENT_KEY: "!"}}])
def test_what_is_gone_or_unreadable_leaves_the_last_good_content(bad: dict[str, Any] | None) -> None:
    world = Inbox()
    world.inbox.take("a", config_map([1]))
    world.inbox.take("b", config_map([2]))
    world.inbox.take("a", bad)
    world.inbox.take("b", config_map([3]))
    assert world.delivered == [([1], [2]), ([1], [3])]


def test_what_could_not_be_delivered_is_delivered_when_it_is_told_again() -> None:
    world = Inbox()
    world.inbox.take("a", config_map([1]))
    world.full_disk = True
    with pytest.raises(OSError, match="full"):
        world.inbox.take("b", config_map([2]))
    world.full_disk = False
    world.inbox.take("b", config_map([2]))
    assert world.delivered == [([1], [2])]
