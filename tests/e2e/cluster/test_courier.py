"""What a pod is told by ConfigMaps and what it reports into one: a real API server, slow, silent, or gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.agent_group import wait_for
from fakes.cluster import Cluster
from fakes.kube_connection import context_of_file, write_config_map
from fakes.tcp_relay import TcpRelay
from segserve_builder.cluster.agent import Shard, ShardInbox
from segserve_builder.cluster.config_map_watch import ConfigMapWatch
from segserve_builder.cluster.report_sender import ReportSender
from segserve_common.api_errors import GoneError
from segserve_common.kube.client import SILENCE_S, KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.requests import Selector
from segserve_common.kube.shards import CONTENT_KEY, pack, unpack, version_of

pytestmark = pytest.mark.cluster

NAMES = ("first", "second")


class World:
    """A namespace of a cluster, and links to its API that end with the test."""

    def __init__(self, cluster: Cluster, namespace: str, ends: ExitStack) -> None:
        self.client = cluster.client
        self.namespace = namespace
        self._context = context_of_file(cluster.kubeconfig)
        self._ends = ends

    def write(self, name: str, value: Any) -> None:
        self._apply(name, {CONTENT_KEY: value if isinstance(value, str) else pack(value)})

    def delete(self, name: str) -> None:
        self.client.delete(CONFIG_MAPS, name, namespace=self.namespace)

    def make_reports(self) -> None:
        self._apply("reports", None)

    def reports(self) -> dict[str, Any]:
        stored = self.client.get(CONFIG_MAPS, "reports", namespace=self.namespace).get("binaryData") or {}
        return {key: unpack(text) for key, text in stored.items()}

    def link(self, relay: TcpRelay | None = None, *, silence_s: float = SILENCE_S) -> KubeClient:
        configuration = self._context.configuration()
        if relay is not None:
            configuration.host = f"https://127.0.0.1:{relay.port}"
        return KubeClient(configuration, self.namespace, call_timeout_s=1.0, silence_s=silence_s)

    def relay(self) -> TcpRelay:
        parts = urlsplit(self._context.server)
        made = TcpRelay((str(parts.hostname), parts.port or 443))
        self._ends.callback(made.close)
        return made

    def follow(self, relay: TcpRelay | None = None, *, silence_s: float = SILENCE_S) -> Signals:
        heard = Signals()
        inbox = ShardInbox(NAMES, lambda value: value, heard.deliver)
        watch = ConfigMapWatch(self.link(relay, silence_s=silence_s), NAMES, inbox.take)
        watch.start()
        self._ends.callback(watch.stop)
        return heard

    def sender(self, key: str, relay: TcpRelay | None = None) -> ReportSender:
        link = self.link(relay)
        sender = ReportSender(link, "reports", key)
        sender.start()
        self._ends.callback(link.close)
        self._ends.callback(sender.stop)
        return sender

    def _apply(self, name: str, binary: dict[str, str] | None) -> None:
        write_config_map(self.client, self.namespace, name, binary)


class Signals:
    """What was delivered."""

    def __init__(self) -> None:
        self.values: list[tuple[Any, ...]] = []
        self.versions: tuple[str, ...] = ()

    def deliver(self, shards: tuple[Shard[Any], ...]) -> None:
        self.versions = tuple(shard.version for shard in shards)
        self.values.append(tuple(shard.value for shard in shards))

    def wait(self, *values: Any) -> None:
        wait_for(lambda: self.values and self.values[-1] == values, lambda: str(self.values))


@pytest.fixture
def world(cluster: Cluster, namespace: str) -> Iterator[World]:
    with ExitStack() as ends:
        yield World(cluster, namespace, ends)


def test_a_changed_shard_is_delivered_and_an_equal_one_is_not(world: World) -> None:
    world.write("first", ["a"])
    world.write("second", ["b"])
    heard = world.follow()
    heard.wait(["a"], ["b"])
    world.write("first", ["a", "c"])
    heard.wait(["a", "c"], ["b"])
    world.client.patch(CONFIG_MAPS, "first", {"metadata": {"labels": {"touched": "yes"}}}, namespace=world.namespace)
    world.write("second", ["d"])
    heard.wait(["a", "c"], ["d"])
    assert len(heard.values) == 3
    assert heard.versions == (version_of(pack(["a", "c"])), version_of(pack(["d"])))


def test_a_connection_that_is_silent_for_too_long_is_given_up(world: World) -> None:
    world.write("first", ["a"])
    world.write("second", ["b"])
    relay = world.relay()
    heard = world.follow(relay, silence_s=1.0)
    heard.wait(["a"], ["b"])
    relay.lose()
    world.write("first", ["meanwhile"])
    heard.wait(["meanwhile"], ["b"])


def test_a_version_that_the_api_has_forgotten_is_said_to_be_expired(world: World) -> None:
    world.write("first", ["a"])
    link = world.link()
    try:
        with pytest.raises(GoneError):
            list(link.watch(Selector(CONFIG_MAPS, fields="metadata.name=first"), "1"))
    finally:
        link.close()


def test_three_pods_write_their_own_keys_of_one_map(world: World) -> None:
    world.make_reports()
    senders = {pod: world.sender(pod) for pod in ("pod-1", "pod-2", "pod-3")}
    for number in range(20):
        for pod, sender in senders.items():
            sender.send({"uid": pod, "number": number})
    last = {pod: {"uid": pod, "number": 19} for pod in senders}
    wait_for(lambda: world.reports() == last, lambda: str(world.reports()))
