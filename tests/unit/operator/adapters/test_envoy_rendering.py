"""Envoy's configuration for a traffic plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseError

from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError, active_by_model
from segserve_operator.adapters.traffic.envoy_clusters import Upstream, read_clusters
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles, render_bootstrap
from segserve_operator.adapters.traffic.envoy_files import discovery_response, read_plan
from segserve_operator.adapters.traffic.envoy_listener import NAME_FIELDS, EnvoySettings
from segserve_operator.adapters.traffic.envoy_messages import CLUSTER, ROUTE_CONFIGURATION, parse, parse_json, to_json
from segserve_operator.adapters.traffic.envoy_routes import encode_routes
from segserve_operator.adapters.traffic.envoy_updater import EnvoyConfiguration, render
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan
from segserve_operator.core.traffic import Endpoint, Route, RouteAffinity, RouteLimits, Share, TrafficPlan

OLD = Share("main", "coins-aaaaaaaaaa", 70, (Endpoint("127.0.0.1", 8000, 8001),))
NEW = Share("coins-bb", "coins-bbbbbbbbbb", 30, (Endpoint("127.0.0.1", 8010, 8011),))
STEP = "segserve--pre--3f9a"


def plan(new_weight: int = 30, *, exposed: tuple[str, ...] = ()) -> TrafficPlan:
    shares = (replace(OLD, weight=100 - new_weight), replace(NEW, weight=new_weight))
    return TrafficPlan((Route("coins", shares, steps=(STEP,), exposed=exposed),), OLD.endpoints)


def rendered(traffic_plan: TrafficPlan, before: EnvoyConfiguration | None = None) -> EnvoyConfiguration:
    return render(traffic_plan, before, timeout_s=60)


def table(traffic_plan: TrafficPlan) -> dict[str, Any]:
    """Return the action of every entry by key."""
    tables = (model.table for model in rendered(traffic_plan).models.values())
    routes = to_json(parse(ROUTE_CONFIGURATION, encode_routes(tables, timeout_s=60)))
    entries = routes["virtual_hosts"][0]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    return {key: entry["action"]["typed_config"]["route"] for key, entry in entries.items()}


def route_clusters(traffic_plan: TrafficPlan) -> dict[str, Any]:
    clusters = rendered(traffic_plan).clusters.items()
    return {name: to_json(parse(CLUSTER, cluster.content)) for name, cluster in clusters}


def weights(action: dict[str, Any]) -> dict[str, int]:
    return {part["name"]: part["weight"] for part in action["weighted_clusters"]["clusters"]}


def test_every_cluster_that_a_route_names_is_rendered() -> None:
    traffic_plan = plan(exposed=("coins.network",))

    named = {name for a in table(traffic_plan).values() for name in ([a["cluster"]] if "cluster" in a else weights(a))}

    assert named <= set(route_clusters(traffic_plan))


def test_a_plan_has_entries_for_exactly_these_requests() -> None:
    about = {f"{p}:about:{name}" for p in ("http", "grpc") for name in ("coins", STEP)}
    infer = {"http:infer:coins", "grpc:infer:coins"}
    server = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"}
    service = "/inference.GRPCInferenceService"
    methods = {f"{service}/{m}" for m in ("ServerLive", "ServerReady", "ServerMetadata", "ModelStatistics")}

    assert set(table(plan())) == about | infer | server | methods


def test_an_exposed_network_has_its_own_clusters() -> None:
    entries = table(plan(exposed=("coins.network",)))

    assert weights(entries["grpc:infer:coins.network"]) == {
        "coins/main/network/grpc": 70,
        "coins/coins-bb/network/grpc": 30,
    }
    assert entries["grpc:about:coins.network"]["cluster"] == "coins/main/aside/grpc"


@pytest.mark.parametrize(("new_weight", "group"), [(49, "main"), (51, "coins-bb")])
def test_metadata_requests_go_to_the_share_with_the_largest_weight(new_weight: int, group: str) -> None:
    entries = table(plan(new_weight))

    assert {entries[f"http:about:{name}"]["cluster"] for name in ("coins", STEP)} == {f"coins/{group}/aside/http"}


def test_an_idle_connection_is_not_pinged_until_grpcs_server_ends_it() -> None:
    options = route_clusters(plan())["coins/main/infer/grpc"]["typed_extension_protocol_options"]
    (protocol,) = options.values()
    keepalive = protocol["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
    assert keepalive == {"connection_idle_interval": "15s", "timeout": "15s"}


def test_clusters_that_were_written_are_read_back() -> None:
    clusters = rendered(plan(exposed=("coins.network",))).clusters

    assert read_clusters(cluster.content for cluster in clusters.values()) == clusters


def test_the_servers_of_a_hundred_models_are_the_same_in_all_their_clusters() -> None:
    servers = tuple(Endpoint(f"10.0.0.{number}", 8000, 8001) for number in range(20))
    models = [Route(f"m{number}", (replace(OLD, weight=100, endpoints=servers),)) for number in range(100)]

    clusters = route_clusters(TrafficPlan(tuple(models)))

    grpc = [each["load_assignment"]["endpoints"] for name, each in clusters.items() if name.endswith("grpc")]
    addresses = [{"socket_address": {"address": server.host, "port_value": 8001}} for server in servers]
    expected = [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}]
    assert grpc[1:] == [expected] * 200  # the first is of no model, and has no server


def test_a_field_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ParseError, match="lb_polcy"):
        parse_json(CLUSTER, {"lb_polcy": "LEAST_REQUEST"})


def test_a_share_without_servers_has_clusters_without_endpoints() -> None:
    traffic_plan = TrafficPlan((Route("coins", (Share("main", "coins-aa", 100),)),))

    assert not any(cluster.usable for cluster in rendered(traffic_plan).clusters.values())


def test_equal_plans_have_equal_content_and_another_plan_another_version() -> None:
    first, again, other = (
        discovery_response(ROUTE_CONFIGURATION, [rendered(plan(weight)).models["coins"].table])
        for weight in (30, 30, 31)
    )

    assert first == again
    assert first.version != other.version


def test_weights_that_return_to_those_of_the_table_are_not_overridden() -> None:
    assert rendered(plan(10), rendered(plan(30), rendered(plan(10)))).weights == {}


def test_metadata_requests_that_move_need_a_new_table_but_weights_do_not_wait_for_it() -> None:
    before = rendered(plan(30))

    after = rendered(plan(70), before)

    assert after.entries != before.entries
    assert after.weights == {}
    assert sorted(after.early_weights.values()) == [30, 30, 70, 70]


def test_weights_for_one_table_never_match_another() -> None:
    before = rendered(plan(60), rendered(plan(55)))
    third = replace(NEW, group="coins-cc", revision="coins-cccccccccc", weight=100)

    after = rendered(TrafficPlan((Route("coins", (replace(OLD, weight=0), third)),)), before)

    assert before.weights
    prefix = after.entries["http:infer:coins"]["action"]["typed_config"]["route"]["weighted_clusters"][
        "runtime_key_prefix"
    ]
    assert not [key for key in before.weights if key.startswith(prefix)]
    assert (after.weights, after.early_weights) == ({}, {})


def test_unchanged_models_are_not_rendered_again() -> None:
    cells = replace(plan().routes[0], model="cells")
    before = rendered(TrafficPlan((cells, *plan(10).routes)))

    after = rendered(TrafficPlan((cells, *plan(10, exposed=("coins.network",)).routes)), before)

    assert after.entries["http:infer:cells"] is before.entries["http:infer:cells"]
    assert after.clusters["cells/main/infer/grpc"] is before.clusters["cells/main/infer/grpc"]
    assert after.entries.keys() - before.entries.keys() >= {"http:infer:coins.network", "grpc:infer:coins.network"}


@pytest.mark.parametrize("upstream", [Upstream("infer", "grpc", "coins", "coins-3f9a"), Upstream("server", "http")])
def test_the_name_of_a_cluster_is_parsed_back(upstream: Upstream) -> None:
    assert Upstream.parse(upstream.name) == upstream


def test_callers_requests_in_flight_are_summed_up_by_model_and_group() -> None:
    active = {"coins/main/infer/http": 2, "coins/main/network/grpc": 1, "cells/main/aside/http": 1, "//server/http": 9}

    assert active_by_model(active) == {("coins", "main"): 3}


def test_the_route_key_script_handles_every_method_that_names_a_model() -> None:
    bootstrap = json.dumps(render_bootstrap(EnvoySettings(), EnvoyFiles(Path("/g")), timeout_s=60))

    assert all(f"{method} = " in bootstrap for method in NAME_FIELDS)


@pytest.mark.parametrize("size", [0, 1000, 2**31])
def test_a_size_limit_outside_the_windows_of_http2_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size}; allowed: 65535 to 2147483647"):
        EnvoySettings(max_request_bytes=size)


def test_a_folder_too_deep_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="107 bytes"):
        EnvoyTraffic(Path("/") / ("x" * 100))


async def test_a_gateway_that_does_not_run_follows_no_plan_and_accepts_none(tmp_path: Path) -> None:
    traffic = EnvoyTraffic(tmp_path)

    assert (await traffic.observe()).plan is None
    with pytest.raises(EnvoyUnreachableError, match=r"admin\.sock"):
        await traffic.apply(plan())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"versions": {}, "plan": {"routes": [{}]}}'])
def test_an_unreadable_plan_does_not_keep_envoy_from_starting(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)

    EnvoyTraffic(tmp_path).prepare()

    recorded = read_plan(tmp_path / "plan.json")
    assert recorded[1] == TrafficPlan()


def sticky(new_weight: int) -> TrafficPlan:
    (route,) = plan(new_weight).routes
    affinity = RouteAffinity(last=NEW.group, salt="coins-000001")
    return TrafficPlan((replace(route, affinity=affinity, limits=RouteLimits()),), OLD.endpoints)


def test_only_callers_inferences_choose_a_server_by_id_and_a_server_has_no_address_in_responses() -> None:
    policies = {name: cluster["lb_policy"] for name, cluster in route_clusters(sticky(30)).items()}

    assert {name for name, policy in policies.items() if policy == "MAGLEV"} == {
        f"coins/{group}/infer/{protocol}" for group in ("main", "coins-bb") for protocol in ("http", "grpc")
    }
    server = route_clusters(sticky(30))["coins/main/infer/grpc"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    (name,) = server["metadata"]["filter_metadata"]["envoy.lb"].values()
    assert "127.0.0.1" not in name


def test_limits_and_affinity_of_a_model_are_both_in_its_routes() -> None:
    (rendered_route,) = rendered(sticky(30)).models.values()
    entry = rendered_route.entries["http:infer:coins"]["action"]["typed_config"]

    assert set(entry["metadata"]["filter_metadata"]) == {
        "segserve.limits",
        "segserve.restart",
        "envoy.filters.http.lua",
    }


def test_a_plan_with_affinity_is_read_as_it_was_written() -> None:
    assert load_plan(dump_plan(sticky(30))) == sticky(30)
    assert "affinity" not in json.dumps(dump_plan(plan()))
