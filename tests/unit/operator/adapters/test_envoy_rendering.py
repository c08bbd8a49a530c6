"""A traffic plan as Envoy's resources."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_admin import GatewayUnreachableError, active_by_model
from segserve_operator.adapters.traffic.envoy_clusters import Upstream, has_endpoints, render_clusters
from segserve_operator.adapters.traffic.envoy_config import Sources, render_bootstrap
from segserve_operator.adapters.traffic.envoy_files import discovery_response
from segserve_operator.adapters.traffic.envoy_listener import NAME_FIELDS, Gateway
from segserve_operator.adapters.traffic.envoy_routes import plan_of, render_routes
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

OLD = Share("main", "coins-aaaaaaaaaa", 70, (Endpoint("127.0.0.1", 8000, 8001),))
NEW = Share("coins-bb", "coins-bbbbbbbbbb", 30, (Endpoint("127.0.0.1", 8010, 8011),))
STEP = "segserve--pre--3f9a"


def plan(new_weight: int = 30, *, exposed: tuple[str, ...] = ()) -> TrafficPlan:
    shares = (replace(OLD, weight=100 - new_weight), replace(NEW, weight=new_weight))
    return TrafficPlan((Route("coins", shares, steps=(STEP,), exposed=exposed),), OLD.endpoints)


def table(told: TrafficPlan) -> dict[str, Any]:
    """Return by key the action of every entry."""
    routes = render_routes(told, timeout_s=60)
    entries = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    return {key: entry["action"]["typed_config"]["route"] for key, entry in entries.items()}


def weights(action: dict[str, Any]) -> dict[str, int]:
    return {part["name"]: part["weight"] for part in action["weighted_clusters"]["clusters"]}


@pytest.mark.parametrize(
    ("new_weight", "expected"),
    [
        (0, {"coins/main/infer/http": 100}),
        (30, {"coins/main/infer/http": 70, "coins/coins-bb/infer/http": 30}),
        (100, {"coins/coins-bb/infer/http": 100}),
    ],
)
def test_only_shares_with_weight_answer(new_weight: int, expected: dict[str, int]) -> None:
    assert weights(table(plan(new_weight))["http:infer:coins"]) == expected


@pytest.mark.parametrize("new_weight", [0, 30, 100])
def test_every_share_has_its_clusters_whatever_its_weight(new_weight: int) -> None:
    clusters = render_clusters(plan(new_weight))

    assert {f"coins/{group}/infer/{p}" for group in ("main", "coins-bb") for p in ("http", "grpc")} <= set(clusters)


def test_every_cluster_that_a_route_names_is_rendered() -> None:
    told = plan(exposed=("coins.network",))

    named = {name for a in table(told).values() for name in ([a["cluster"]] if "cluster" in a else weights(a))}

    assert named <= set(render_clusters(told))


def test_a_plan_opens_exactly_these_questions() -> None:
    about = {f"{p}:about:{name}" for p in ("http", "grpc") for name in ("coins", STEP)}
    infer = {"http:infer:coins", "grpc:infer:coins"}
    server = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"}
    service = "/inference.GRPCInferenceService"
    methods = {f"{service}/{m}" for m in ("ServerLive", "ServerReady", "ServerMetadata", "ModelStatistics")}

    assert set(table(plan())) == about | infer | server | methods


def test_an_exposed_network_can_be_asked_and_is_counted_apart() -> None:
    entries = table(plan(exposed=("coins.network",)))

    assert weights(entries["grpc:infer:coins.network"]) == {
        "coins/main/network/grpc": 70,
        "coins/coins-bb/network/grpc": 30,
    }
    assert entries["grpc:about:coins.network"]["cluster"] == "coins/main/about/grpc"


@pytest.mark.parametrize(("new_weight", "group"), [(49, "main"), (51, "coins-bb")])
def test_what_is_asked_about_a_model_goes_to_its_heaviest_share(new_weight: int, group: str) -> None:
    entries = table(plan(new_weight))

    assert {entries[f"http:about:{name}"]["cluster"] for name in ("coins", STEP)} == {f"coins/{group}/about/http"}


def test_each_share_tells_its_revision_and_group() -> None:
    part = table(plan(100))["grpc:infer:coins"]["weighted_clusters"]["clusters"][0]

    told = {entry["header"]["key"]: entry["header"]["value"] for entry in part["response_headers_to_add"]}
    assert told == {"x-segserve-revision": "coins-bbbbbbbbbb", "x-segserve-group": "coins-bb"}


def test_a_cluster_speaks_its_protocol_to_its_port() -> None:
    clusters = render_clusters(plan())

    def port(name: str) -> int:
        found = clusters[name]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        number: int = found["socket_address"]["port_value"]
        return number

    assert [port(f"coins/coins-bb/infer/{protocol}") for protocol in ("http", "grpc")] == [8010, 8011]
    assert "http2_protocol_options" in json.dumps(clusters["coins/main/infer/grpc"])
    assert "http2_protocol_options" not in json.dumps(clusters["coins/main/infer/http"])


def test_a_share_without_servers_has_clusters_without_endpoints() -> None:
    told = TrafficPlan((Route("coins", (Share("main", "coins-aa", 100),)),))

    assert not any(has_endpoints(cluster) for cluster in render_clusters(told).values())


@pytest.mark.parametrize("told", [TrafficPlan(), plan(0), plan(100, exposed=("coins.network",))])
def test_a_plan_is_read_back_from_its_routes(told: TrafficPlan) -> None:
    _, text = discovery_response([render_routes(told, timeout_s=60)])

    assert plan_of(json.loads(text)["resources"][0]) == told


def test_equal_plans_give_equal_text_and_another_plan_another_version() -> None:
    first, again, other = (discovery_response([render_routes(plan(w), timeout_s=60)]) for w in (30, 30, 31))

    assert first == again
    assert first[0] != other[0]


@pytest.mark.parametrize("upstream", [Upstream("infer", "grpc", "coins", "coins-3f9a"), Upstream("server", "http")])
def test_a_clusters_name_says_what_it_is_for(upstream: Upstream) -> None:
    assert Upstream.parse(upstream.name) == upstream


def test_requests_in_flight_are_summed_up_by_model_and_group() -> None:
    active = {"coins/main/infer/http": 2, "coins/main/network/grpc": 1, "cells/main/about/http": 1, "//server/http": 9}

    assert active_by_model(active) == {("coins", "main"): 3, ("cells", "main"): 1}


def test_the_script_knows_every_method_that_names_a_model() -> None:
    bootstrap = json.dumps(
        render_bootstrap(Gateway(), Sources("/g/admin.sock", "/g/clusters/c.json", "/g/routes/r.json"))
    )

    assert all(f"{method} = " in bootstrap for method in NAME_FIELDS)


@pytest.mark.parametrize("size", [0, 1000, 2**31])
def test_a_limit_that_http2_has_no_window_for_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size}; allowed are 65535 to 2147483647"):
        Gateway(max_request_bytes=size)


def test_a_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="107 bytes"):
        EnvoyTraffic(Path("/") / ("x" * 100))


async def test_a_gateway_that_does_not_run_follows_no_plan_and_takes_none(tmp_path: Path) -> None:
    traffic = EnvoyTraffic(tmp_path)

    assert (await traffic.observe()).plan is None
    with pytest.raises(GatewayUnreachableError, match=r"admin\.sock"):
        await traffic.apply(plan())


def test_starting_again_leaves_the_last_plan_in_its_file(tmp_path: Path) -> None:
    traffic = EnvoyTraffic(tmp_path)
    traffic.command()
    routes = tmp_path / "routes/routes.json"
    routes.write_text(discovery_response([render_routes(plan(), timeout_s=60)])[1])

    traffic.command()

    assert plan_of(json.loads(routes.read_text())["resources"][0]) == plan()


@pytest.mark.parametrize("text", ["", "{}", '{"resources": []}', '{"resources": [{"name": "models"}]}'])
def test_a_plan_that_cannot_be_read_does_not_keep_envoy_from_starting(tmp_path: Path, text: str) -> None:
    routes = tmp_path / "routes/routes.json"
    routes.parent.mkdir()
    routes.write_text(text)

    EnvoyTraffic(tmp_path).command()

    assert plan_of(json.loads(routes.read_text())["resources"][0]) == TrafficPlan()
