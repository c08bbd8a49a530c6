"""Traffic plans in the ConfigMaps that gateways follow."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_common.kube.shards import unpack
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan, pack_plan
from segserve_operator.core.traffic import AccessRule, Endpoint, Mirror, Route, Share, TrafficPlan

CONFIG_MAP_BYTES = 2**20
SERVERS = tuple(
    Endpoint(f"10.{number * 7919 % 251}.{number // 251}.{number % 251}", 8000, 8001) for number in range(1000)
)


def plan(models: int, servers: tuple[Endpoint, ...], *, unproved: bool = False) -> TrafficPlan:
    """Return a plan in which each model is on all servers; or on all but one, and each on another set."""

    def route(number: int) -> Route:
        held = tuple(server for at, server in enumerate(servers) if not unproved or at != number)
        main = Share("main-0a1b2c3d", f"m{number:04}-aaaaaaaaaa", 90, held)
        candidate = Share(f"m{number:04}-bbbbbbbbbb", f"m{number:04}-bbbbbbbbbb", 10, servers[:2])
        return Route(f"m{number:04}", (main, candidate), steps=(f"segserve--pre--{number}",))

    return TrafficPlan(tuple(map(route, range(models))), servers[:3])


@st.composite
def plans(draw: st.DrawFn) -> TrafficPlan:
    some = st.lists(st.sampled_from(SERVERS[:5]), max_size=5).map(tuple)
    classes = st.none() | st.lists(st.tuples(st.integers(0, 9), st.text(max_size=3)), max_size=2).map(tuple)
    share = st.builds(
        Share, st.sampled_from(["main", "new"]), st.just("r"), st.just(100), some, st.integers(1, 9), classes=classes
    )
    shares = st.lists(share, min_size=1, max_size=2).map(
        lambda held: tuple(replace(each, weight=100 if at == 0 else 0) for at, each in enumerate(held))
    )
    routes = [Route(f"m{number}", draw(shares)) for number in range(draw(st.integers(0, 3)))]
    return TrafficPlan(tuple(routes), draw(some))


@given(plans())
def test_a_plan_is_read_back(told: TrafficPlan) -> None:
    assert load_plan(unpack(pack_plan(told))) == told


@pytest.mark.parametrize("unproved", [False, True])
def test_a_quarter_of_a_thousand_models_on_a_thousand_servers_fits_a_config_map(unproved: bool) -> None:
    told = plan(250, SERVERS, unproved=unproved)

    packed = pack_plan(told)

    assert len(base64.b64decode(packed)) < CONFIG_MAP_BYTES / 4
    assert load_plan(unpack(packed)) == told


def test_long_addresses_do_not_overflow_a_config_map() -> None:
    long = tuple(
        Endpoint(f"fd00:{at * 7919 % 65521:x}:{at * 104729 % 65521:x}::{at:x}", 8000, 8001) for at in range(600)
    )

    packed = pack_plan(plan(250, long))

    assert len(base64.b64decode(packed)) < CONFIG_MAP_BYTES


def test_models_on_the_same_servers_share_one_list_when_they_are_read() -> None:
    routes = load_plan(dump_plan(plan(3, SERVERS[:9]))).routes

    assert routes[0].shares[0].endpoints is routes[2].shares[0].endpoints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 5}, "format is 5; allowed is 1"),
        ({"lists": [[0, 99]]}, "does not list"),
        ({"lists": [[-1]]}, "greater than or equal to 0"),
        ({"lists": []}, "does not list"),
        ({"endpoints": [{"host": "a"}]}, "http_port"),
        ({"routes": [{"model": "m"}]}, "does not list"),
        ({"routes": None}, "does not list"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_plan({**dump_plan(plan(2, SERVERS[:3])), **change})


def test_rules_of_access_are_read_back() -> None:
    rules = (AccessRule(keys=("team-a",)), AccessRule(claim="groups", values=("x",), issuer="https://idp.example"))
    told = plan(2, SERVERS[:3])
    restricted = replace(told, routes=(told.routes[0], replace(told.routes[1], access=rules)))

    assert load_plan(dump_plan(restricted)) == restricted


def test_a_plan_that_admits_nobody_to_a_model_is_not_one_that_admits_everybody() -> None:
    told = plan(1, SERVERS[:1])
    closed = replace(told, routes=(replace(told.routes[0], access=()),))

    assert load_plan(unpack(pack_plan(closed))) == closed != told


def test_a_plan_without_rules_of_access_names_none() -> None:
    assert "access" not in json.dumps(dump_plan(plan(2, SERVERS[:3])))


def test_a_mirror_is_read_back_and_nothing_else_of_a_plan_tells_of_it() -> None:
    told = plan(2, SERVERS[:3])
    mirrored = replace(told.routes[1], mirror=Mirror("main", "m0001-bbbbbbbbbb", percent=10, requests_per_s=5.0))
    copied = replace(told, routes=(told.routes[0], mirrored))

    for write in (dump_plan, lambda each: unpack(pack_plan(each))):
        with_mirror, without = write(copied), write(told)
        assert load_plan(with_mirror) == copied
        del with_mirror["routes"][1]["mirror"]
        assert with_mirror == without
        assert "mirror" not in json.dumps(without)
