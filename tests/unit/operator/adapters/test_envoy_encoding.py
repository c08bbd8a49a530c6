"""Files for Envoy that are joined from encoded parts."""

from __future__ import annotations

import pytest

from segserve_operator.adapters.traffic.envoy_files import discovery_response
from segserve_operator.adapters.traffic.envoy_messages import (
    CLUSTER,
    DISCOVERY_RESPONSE,
    ROUTE_CONFIGURATION,
    ROUTE_MAP,
    TYPE_PREFIX,
    encode,
    encode_with,
    new_message,
    parse,
    parse_json,
)


@pytest.mark.parametrize("sizes", [(), (0,), (1, 127, 128, 20_000), (300,) * 50])
def test_a_file_that_is_joined_equals_one_that_is_encoded_as_a_whole(sizes: tuple[int, ...]) -> None:
    resources = [bytes([size % 251]) * size for size in sizes]
    whole = new_message(DISCOVERY_RESPONSE)
    for resource in resources:
        whole.resources.add(type_url=TYPE_PREFIX + CLUSTER, value=resource)

    response = discovery_response(CLUSTER, resources)

    whole.version_info = response.version
    assert response.content == encode(whole)
    assert response.resources() == resources


@pytest.mark.parametrize("count", [0, 1, 40])
def test_entries_that_are_joined_to_a_table_are_entries_of_it(count: int) -> None:
    def entries(*names: str) -> dict[str, object]:
        return {name: {"action": {"name": name}} for name in names}

    def configuration(table: dict[str, object]) -> dict[str, object]:
        matcher = {"matcher_tree": {"exact_match_map": {"map": table}}, "on_no_match": entries("none")["none"]}
        return {"name": "models", "virtual_hosts": [{"name": "models", "domains": ["*"], "matcher": matcher}]}

    more = entries(*(f"http:infer:model-{number}" for number in range(count)))
    path = ("virtual_hosts", "matcher", "matcher_tree", "exact_match_map")

    encoded = encode_with(
        parse_json(ROUTE_CONFIGURATION, configuration(entries("/v2"))),
        path,
        encode(parse_json(ROUTE_MAP, {"map": more})),
    )

    whole = parse_json(ROUTE_CONFIGURATION, configuration({**entries("/v2"), **more}))
    assert parse(ROUTE_CONFIGURATION, encoded) == whole
