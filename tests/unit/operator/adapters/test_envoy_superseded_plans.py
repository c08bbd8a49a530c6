"""Plans that are given up for newer ones, in front of an Envoy that loads its files at once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.waiting import HANG_S
from segserve_operator.adapters.traffic.envoy_admin import EnvoyAdmin, Versions
from segserve_operator.adapters.traffic.envoy_clusters import EnvoyCluster, read_clusters
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError, DiscoveryResponse
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_messages import DISCOVERY_RESPONSE, ROUTE_CONFIGURATION, parse, to_json
from segserve_operator.adapters.traffic.envoy_routes import read_limits_version, read_weights
from segserve_operator.adapters.traffic.envoy_updater import EnvoyUpdater
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

MODELS = ("coins", "cells")
SERVERS = tuple(Endpoint(f"10.0.0.{number}", 8000, 8001) for number in range(1, 4))
Splits: TypeAlias = dict[str, dict[str, int]]


class Envoy:
    """Loads every file as soon as it is written, but for the next content of the file `rejects`."""

    def __init__(self, files: EnvoyFiles) -> None:
        self._paths = (files.clusters, files.routes, files.weights, files.limits)
        self.rejects: Path | None = None
        self.dangling: set[str] = set()
        self._loaded = {path: path.read_bytes() for path in self._paths}
        self._rejected: list[bytes] = []

    async def versions(self) -> Versions:
        self._look()
        *others, limits = self._loaded.values()
        return Versions(*(parse(DISCOVERY_RESPONSE, each).version_info for each in others), read_limits_version(limits))

    async def rejections(self) -> int:
        self._look()
        return len(self._rejected)

    async def weights(self) -> dict[str, int]:
        self._look()
        return self._weights()

    async def active(self, names: Collection[str] | None = None) -> dict[str, int]:
        return {}

    @property
    def clusters(self) -> dict[str, EnvoyCluster]:
        return read_clusters(self._resources(0))

    @property
    def splits(self) -> Splits:
        """The weights in force by key of the table and cluster."""
        (encoded,) = self._resources(1)
        table = to_json(parse(ROUTE_CONFIGURATION, encoded))["virtual_hosts"][0]["matcher"]["matcher_tree"]
        entries, weights = table["exact_match_map"]["map"].items(), self._weights()
        return {key: _split(entry["action"]["typed_config"]["route"], weights) for key, entry in entries}

    def _look(self) -> None:
        for path in self._paths:
            content = path.read_bytes()
            if content == self._loaded[path] or content in self._rejected:
                continue
            if path == self.rejects:
                self._rejected.append(content)
                self.rejects = None
                continue
            self._loaded[path] = content
            clusters = self.clusters
            used = {name for split in self.splits.values() for name, weight in split.items() if weight}
            self.dangling |= {name for name in used if name not in clusters or not clusters[name].usable}

    def _weights(self) -> dict[str, int]:
        return read_weights(self._resources(2))

    def _resources(self, number: int) -> list[bytes]:
        return DiscoveryResponse("", self._loaded[self._paths[number]]).resources()


def _split(action: dict[str, Any], overrides: dict[str, int]) -> dict[str, int]:
    if "cluster" in action:
        return {action["cluster"]: 100}
    weighted = action["weighted_clusters"]
    prefix = weighted["runtime_key_prefix"]
    return {
        part["name"]: overrides.get(f"{prefix}.{part['name']}", part.get("weight", 0)) for part in weighted["clusters"]
    }


@st.composite
def plans(draw: st.DrawFn) -> TrafficPlan:
    """Return a plan of one or two models in one or two groups each."""
    routes = []
    for model in draw(st.sets(st.sampled_from(MODELS), min_size=1)):
        weight = draw(st.sampled_from([0, 5, 60, 100]))
        group = draw(st.sampled_from(["", f"{model}-bb", f"{model}-cc"]))
        main = Share("main", f"{model}-aa", 100 - weight if group else 100, (draw(st.sampled_from(SERVERS)),))
        other = (Share(group, group, weight, (draw(st.sampled_from(SERVERS)),)),) if group else ()
        routes.append(Route(model, (main, *other)))
    return TrafficPlan(tuple(sorted(routes, key=lambda route: route.model)), SERVERS[:1])


@dataclass
class Gateway:
    """An Envoy that follows an empty plan."""

    updater: EnvoyUpdater
    envoy: Envoy
    files: EnvoyFiles

    @classmethod
    def begun(cls, folder: Path) -> Gateway:
        files = EnvoyFiles(folder)
        updater = EnvoyUpdater(
            files, EnvoySettings(), timeout_s=60, update_timeout_s=HANG_S, on_replace=_counts_nothing
        )
        updater.write(TrafficPlan())
        return cls(updater, Envoy(files), files)

    async def shift(self, plan: TrafficPlan, given_up: int = 0) -> bool:
        """Follow a plan, which is given up at a numbered moment; at 0 it is not."""
        asked = iter(range(1, 9))
        return await self.updater.shift(self._admin, plan, superseded=lambda: next(asked) == given_up)

    async def end(self, plan: TrafficPlan) -> tuple[Splits, dict[str, EnvoyCluster]]:
        """Follow a plan to the end, and return what Envoy then has."""
        assert await self.shift(plan)
        await self.updater.remove_unused(self._admin)
        return self.envoy.splits, self.envoy.clusters

    @property
    def _admin(self) -> EnvoyAdmin:
        return cast("EnvoyAdmin", self.envoy)


async def _counts_nothing(*_: object) -> None:
    pass


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_operator.adapters.traffic.envoy_updater._WORKERS_TURN_S", 0)


Folders: TypeAlias = Callable[[], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return new folders."""
    return lambda: tmp_path_factory.mktemp("envoy")


@given(told=st.lists(st.tuples(plans(), st.integers(0, 2)), max_size=6), last=plans())
@settings(max_examples=20)
async def test_after_plans_that_were_given_up_the_last_one_is_followed_as_if_it_had_come_alone(
    folders: Folders, told: list[tuple[TrafficPlan, int]], last: TrafficPlan
) -> None:
    gateway, other = Gateway.begun(folders()), Gateway.begun(folders())
    for plan, moment in told:
        await gateway.shift(plan, moment)

    assert await gateway.end(last) == await other.end(last)
    assert gateway.envoy.dangling == set()


@pytest.mark.parametrize("given_up", [1, 2])
async def test_a_plan_refused_after_one_that_was_given_up_leaves_the_last_that_was_followed(
    folders: Folders, given_up: int
) -> None:
    first = TrafficPlan((Route("coins", (Share("main", "coins-aa", 100, SERVERS[:1]),)),), SERVERS[:1])
    shares = (Share("main", "coins-aa", 40, SERVERS[:1]), Share("coins-bb", "coins-bb", 60, SERVERS[1:]))
    second = replace(first, routes=(Route("coins", shares),))
    third = replace(first, routes=(*second.routes, replace(first.routes[0], model="cells")))
    gateway = Gateway.begun(folders())
    await gateway.shift(first)
    before = gateway.envoy.splits
    assert not await gateway.shift(second, given_up)

    gateway.envoy.rejects = gateway.files.routes
    with pytest.raises(ConfigurationRejectedError):
        await gateway.shift(third)

    assert gateway.envoy.splits == before
    assert gateway.envoy.dangling == set()
    assert (await gateway.end(second))[0] == (await Gateway.begun(folders()).end(second))[0]
