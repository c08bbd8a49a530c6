"""Costs by revision, caller and slice: what is divided adds up, and OpenCost's formats are as OpenCost has them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, timestamp_pb2

from segserve_platform.platforms.costs import (
    CostRow,
    allocations,
    caller_pixels,
    cost_rows,
    counted_callers,
    custom_costs,
    divided,
    logged_callers,
    slice_pixels,
)
from segserve_platform.platforms.history import read_requests
from segserve_platform.platforms.metrics import MetricsSnapshot, read_series

PRICES = "".join(
    f'segserve_cost_price{{pool="default",currency="EUR",resource="{name}"}} {amount}\n'
    for name, amount in (("cpuHour", 3.6), ("gpuHour", 36.0), ("memoryGiBHour", 0.5))
)


def used(model: str, requests: int, *, cpu_s: float = 100.0, pool: str = "default", pod: str = "") -> str:
    """Metrics of a model with one revision, whose requests have 400 kB each with their answers."""
    owner = f'pool="{pool}",group="main",model="{model}",revision="{model}-1"'
    cluster = f'envoy_cluster_name="{model}/main/infer/http",pool="{pool}",pod="{pod}"'
    return f"""\
segserve_cost_cpu_seconds_total{{{owner},part="steps"}} {cpu_s}
segserve_cost_gpu_seconds_total{{{owner}}} {cpu_s / 10}
segserve_cost_memory_byte_seconds_total{{{owner}}} {3600 * 2**30}
segserve_cost_requests_total{{{owner}}} {requests}
segserve_cost_counted_seconds_total{{pool="{pool}",group="main"}} 600
envoy_cluster_upstream_rq_completed{{{cluster}}} {requests}
envoy_cluster_upstream_cx_rx_bytes_total{{{cluster}}} {100_000 * requests}
envoy_cluster_upstream_cx_tx_bytes_total{{{cluster}}} {300_000 * requests}
"""


def called(
    name: str, requests: int, server_ms: float, by: str = "caller", model: str = "coins", of_pool: str = ""
) -> str:
    """What a gateway counts of the requests of a caller, each of 1000 bytes with its answer."""
    labels = f'{of_pool}model="{model}",revision="{model}-1",{by}="{name}"'
    amounts = {
        "requests": requests,
        "server_microseconds": 1000 * server_ms * requests,
        "received_bytes": 900 * requests,
        "sent_bytes": 100 * requests,
    }
    return "".join(f"envoy_segserve_{by}_{each}{{{labels}}} {amount}\n" for each, amount in amounts.items())


def images_of(seen: dict[str, tuple[int, float]]) -> str:
    """What steps count by slice: images and their mean pixels."""
    return "".join(
        f'segserve_image_pixels_{part}{{pool="default",model="coins",revision="coins-1",slice="{label}"}} {value}\n'
        for label, (images, mean) in seen.items()
        for part, value in (("count", images), ("sum", images * mean))
    )


def snapshot(*told: str) -> MetricsSnapshot:
    return MetricsSnapshot(1_800_000_000.0, tuple(read_series("".join(told))))


def by_caller(*told: str) -> list[CostRow]:
    shot = snapshot(*told)
    return list(divided(cost_rows(shot), counted_callers(shot, "caller")))


def logged(**fields: Any) -> str:
    line = {"start_time": "2026-11-22T10:00:00.000Z", "model": "coins", "revision": "coins-1", "response_code": 200}
    return json.dumps(line | {name: value for name, value in fields.items() if value is not None})


def test_callers_share_the_use_of_a_revision_by_the_servers_time_for_their_requests() -> None:
    """Ben's requests are as many as Ann's, and take three times as long: his images are larger."""
    rows = by_caller(used("coins", 100), called("key:ann", 50, 10), called("key:ben", 50, 30))

    assert [row.name for row in rows] == ["key:ben", "key:ann"]
    assert [row.use.cpu_s for row in rows] == pytest.approx([75, 25])
    assert [row.use.gpu_s for row in rows] == pytest.approx([7.5, 2.5])
    assert [row.use.requests for row in rows] == pytest.approx([50, 50])
    assert not any("perMegapixel" in row.to_json() for row in rows)


def test_the_shares_of_callers_add_up_to_their_revision_whether_the_gateway_knows_callers_or_not() -> None:
    told = (used("coins", 100), used("bolts", 30), PRICES, called("key:ann", 7, 3), called("", 2, 11))
    whole = {row.model: row for row in cost_rows(snapshot(*told))}
    rows = by_caller(*told)

    for model, row in whole.items():
        parts = [each for each in rows if each.model == model]
        for name in ("cpu_s", "gateway_cpu_s", "gpu_s", "memory_byte_s", "requests", "bytes"):
            total = sum(getattr(part.use, name) for part in parts)
            assert total == pytest.approx(getattr(row.use, name)), (model, name)
        assert sum(part.prices.money(part.use) for part in parts) == pytest.approx(row.prices.money(row.use))
    assert {row.name for row in rows if row.model == "coins"} == {"key:ann", "(none)"}
    assert {row.name for row in rows if row.model == "bolts"} == {"(none)"}


def test_agents_tests_are_nobodys_and_a_caller_has_his_own_requests() -> None:
    """Of 100 requests 60 are tests, which do not pass the gateway; Ann sent the others."""
    tests = 'segserve_cost_tests_total{pool="default",group="main",model="coins",revision="coins-1"} 60\n'
    gateway = 'segserve_process_cpu_seconds_total{process="envoy"} 7\n'
    told = (used("coins", 100), tests, gateway, called("key:ann", 40, 10))
    rows = {row.name: row.use for row in by_caller(*told) if row.model}

    assert rows.keys() == {"key:ann", "(none)"}
    assert (rows["key:ann"].requests, rows["key:ann"].calls) == pytest.approx((40, 40))
    assert (rows["key:ann"].cpu_s, rows["key:ann"].gateway_cpu_s) == pytest.approx((47, 7))
    assert (rows["(none)"].requests, rows["(none)"].calls) == pytest.approx((60, 0))
    assert (rows["(none)"].cpu_s, rows["(none)"].bytes) == pytest.approx((60, 0))


def test_slices_have_the_megapixels_that_steps_have_counted_and_share_all_of_them() -> None:
    """Images of the north are four times as large; the steps know undeclared slices, and none, as one."""
    tests = 'segserve_cost_tests_total{pool="default",group="main",model="coins",revision="coins-1"} 20\n'
    pixels = images_of({"north": (40, 4e6), "south": (20, 1e6), "other": (20, 2e6)})
    gateway = [called(name, count, 10, "slice") for name, count in (("north", 20), ("south", 10), ("west", 5), ("", 5))]
    shot = snapshot(used("coins", 100), tests, pixels, *gateway)

    (whole,) = cost_rows(shot)
    rows = list(divided([whole], counted_callers(shot, "slice"), slice_pixels(shot)))

    found = {row.name: row.use for row in rows}
    assert sum(use.megapixels for use in found.values()) == pytest.approx(whole.use.megapixels) == pytest.approx(220)
    per_call = {name: use.megapixels / use.calls for name, use in found.items()}
    assert per_call == pytest.approx({"north": 4, "south": 1, "west": 2, "(none)": 2})


def test_callers_whose_names_are_slices_have_the_megapixels_of_their_images() -> None:
    """Ann and Ben are declared; Carl and who calls without a name are counted as one."""
    pixels = images_of({"ann": (20, 4e6), "ben": (20, 1e6), "other": (10, 2e6)})
    counts = {"key:ann": 20, "token:ben": 20, "key:carl": 5, "": 5}
    shot = snapshot(used("coins", 50), pixels, *(called(name, count, 10) for name, count in counts.items()))

    uses = counted_callers(shot, "caller")
    rows = divided(cost_rows(shot), uses, caller_pixels(slice_pixels(shot), uses))

    per_request = {row.name: row.to_json()["megapixelsPerRequest"] for row in rows}
    assert per_request == pytest.approx({"key:ann": 4, "token:ben": 1, "key:carl": 2, "(none)": 2})


def test_the_megapixels_of_callers_are_unknown_where_slices_are_not_callers() -> None:
    shot = snapshot(used("coins", 20), images_of({"north": (20, 4e6)}), called("key:ann", 20, 10))

    uses = counted_callers(shot, "caller")
    (row,) = divided(cost_rows(shot), uses, caller_pixels(slice_pixels(shot), uses))

    assert "megapixelsPerRequest" not in row.to_json()


def test_on_a_cluster_the_callers_of_a_pool_share_the_use_of_that_pool_alone() -> None:
    """A model that moved to another pool has one revision in both, and Prometheus names the pool of each gateway."""
    told = (
        used("coins", 100, pool="default", pod="gateway-0"),
        used("coins", 100, pool="second", pod="gateway-1"),
        called("key:ann", 30, 10, of_pool='pool="default",pod="gateway-0",'),
        called("key:ann", 20, 10, of_pool='pool="default",pod="gateway-2",'),
        called("key:ben", 50, 10, of_pool='pool="default",pod="gateway-0",'),
        called("key:carl", 100, 10, of_pool='pool="second",pod="gateway-1",'),
    )

    found = {(row.pool, row.name): row.use.cpu_s for row in by_caller(*told)}

    assert found == pytest.approx({("default", "key:ann"): 50, ("default", "key:ben"): 50, ("second", "key:carl"): 100})


def test_the_dearest_callers_are_listed_by_name_and_all_others_as_one() -> None:
    told = [called(f"key:{number}", 1, number + 1) for number in range(80)]
    rows = by_caller(used("coins", 80), *told, called("other", 1, 5))
    names = [row.name for row in rows]

    assert len(names) == 51
    assert set(names) == {f"key:{number}" for number in range(30, 80)} | {"other"}
    assert sum(row.use.cpu_s for row in rows) == pytest.approx(100)


def test_without_counters_an_access_log_tells_the_shares_of_answered_requests() -> None:
    lines = [
        logged(caller="key:ann", server_duration_ms=20, bytes_received=100, bytes_sent=1),
        logged(caller="key:ben", server_duration_ms=50, bytes_received=100, bytes_sent=1),
        logged(caller=None, server_duration_ms=30, bytes_received=100, bytes_sent=1),
        logged(caller="key:ann", server_duration_ms=900, response_code=503),
        logged(caller="key:ann", server_duration_ms=900, grpc_status="INTERNAL"),
        logged(caller="key:ann", server_duration_ms=900, response_flags="DC"),
    ]
    rows = divided(cost_rows(snapshot(used("coins", 100))), logged_callers(read_requests(lines), "caller"))

    assert {row.name: row.use.cpu_s for row in rows} == pytest.approx({"key:ann": 20, "key:ben": 50, "(none)": 30})


def test_the_gateways_cpu_is_shared_by_requests_and_bytes_and_no_second_of_it_is_lost() -> None:
    """A request of 400 kB counts twice what one without a body does."""
    bodiless = (
        used("bolts", 200).replace("100000", "0").replace(f"{100_000 * 200}", "0").replace(f"{300_000 * 200}", "0")
    )
    processes = "".join(
        f'segserve_process_cpu_seconds_total{{process="{name}"}} {cpu_s}\n'
        for name, cpu_s in (("envoy", 40.0), ("comparator", 3.0), ("capture", 2.0), ("supervisor", 99.0))
    )
    rows = {row.model: row.use for row in cost_rows(snapshot(used("coins", 100), bodiless, processes))}

    assert rows["coins"].gateway_cpu_s == pytest.approx(20)
    assert rows["bolts"].gateway_cpu_s == pytest.approx(20)
    assert rows[""].gateway_cpu_s == pytest.approx(5)
    assert sum(use.cpu_s for use in rows.values()) == pytest.approx(200 + 45)


def test_on_a_cluster_the_gateways_cpu_is_that_of_their_pools_containers() -> None:
    """Containers of the same name in other pods are not ours, and a pool's models pay for its gateways alone, once."""
    told = used("coins", 200, pod="gateway-0") + used("roads", 100, pool="second", pod="gateway-1")
    amounts = (("gateway-0", "envoy", 40), ("gateway-0", "sync", 3), ("gateway-1", "envoy", 7), ("mesh", "envoy", 900))
    cpu = "".join(
        f'container_cpu_usage_seconds_total{{pod="{pod}",container="{container}",endpoint="{endpoint}"}} {amount}\n'
        for pod, container, amount in amounts
        for endpoint in ("cadvisor", "resource")
    )

    rows = cost_rows(snapshot(told, cpu))

    found = {(row.pool, row.model): row.use.gateway_cpu_s for row in rows}
    assert found == pytest.approx(
        {("default", "coins"): 40, ("second", "roads"): 7, ("default", ""): 3, ("second", ""): 0}
    )
    assert sum(row.use.cpu_s for row in rows) == pytest.approx(100 + 100 + 50)


ALLOCATION = {
    **dict.fromkeys(("name", "start", "end"), str),
    **dict.fromkeys(("properties", "window"), dict),
    **dict.fromkeys(("minutes", "cpuCores", "cpuCoreHours", "cpuCost", "gpuHours", "gpuCost"), float),
    **dict.fromkeys(("ramBytes", "ramByteHours", "ramCost", "totalCost"), float),
}
"""Fields that OpenCost's allocation has, and their types (`AllocationJSON` of opencost 1.1)."""


def test_allocations_have_the_fields_of_opencost_and_their_costs_add_up() -> None:
    shot = snapshot(used("coins", 100), PRICES)
    answer = allocations(cost_rows(shot), shot)
    ((name, found),) = answer["data"][0].items()

    assert (answer["code"], answer["status"]) == (200, "success")
    assert {key: type(value) for key, value in found.items()} == ALLOCATION
    assert name == found["name"] == "default/coins/coins-1"
    assert found["properties"] == {"labels": {"pool": "default", "model": "coins", "revision": "coins-1"}}
    assert found["window"] == {"start": "2027-01-15T07:50:00Z", "end": "2027-01-15T08:00:00Z"}
    assert (found["minutes"], found["cpuCores"]) == (10, pytest.approx(100 / 600))
    assert (found["cpuCost"], found["gpuCost"], found["ramCost"]) == pytest.approx((0.1, 0.1, 0.5))
    assert found["totalCost"] == pytest.approx(found["cpuCost"] + found["gpuCost"] + found["ramCost"])


def test_the_window_of_a_group_with_four_servers_is_as_long_as_that_of_one() -> None:
    servers = "".join(
        f'segserve_cost_cpu_seconds_total{{pod="{pod}",pool="default",model="coins",revision="coins-1"}} 3600\n'
        f'segserve_cost_counted_seconds_total{{pod="{pod}",pool="default",group="main"}} 3600\n'
        for pod in "abcd"
    )
    shot = snapshot(servers)
    (found,) = allocations(cost_rows(shot), shot)["data"][0].values()

    assert (found["minutes"], found["cpuCores"], found["start"]) == (60, 4, "2027-01-15T07:00:00Z")


RESPONSE = ("cost_source", "domain", "version", "currency", "start", "end", "costs")
COST = (
    *("zone", "account_name", "charge_category", "description", "resource_name", "resource_type", "id", "provider_id"),
    *("billed_cost", "list_cost", "list_unit_price", "usage_quantity", "usage_unit", "labels"),
)
"""Fields of the messages of OpenCost's `customcost/messages.proto`, numbered from 2."""
FLOATS = {"billed_cost", "list_cost", "list_unit_price", "usage_quantity"}
MESSAGES = {
    **dict.fromkeys(("start", "end"), ".google.protobuf.Timestamp"),
    "costs": ".customcost.messages.CustomCost",
    "labels": ".customcost.messages.CustomCost.LabelsEntry",
}


def custom_cost_response() -> Any:
    """Return the class of OpenCost's message `CustomCostResponse`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", package="customcost.messages", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    for name, fields in (("CustomCostResponse", RESPONSE), ("CustomCost", COST)):
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, 2):
            added = message.field.add(name=field, number=number, type=field_type.TYPE_STRING)
            added.label = field_type.LABEL_REPEATED if field in ("costs", "labels") else field_type.LABEL_OPTIONAL
            if field in FLOATS:
                added.type = field_type.TYPE_FLOAT
            if field in MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, MESSAGES[field]
    entry = file.message_type[1].nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    for number, field in enumerate(("key", "value"), 1):
        entry.field.add(name=field, number=number, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("customcost.messages.CustomCostResponse"))


def test_custom_costs_are_messages_of_an_opencost_plugin() -> None:
    shot = snapshot(used("coins", 100), PRICES, called("key:ann", 3, 1), called("key:ben", 1, 1))
    rows = list(divided(cost_rows(shot), counted_callers(shot, "caller")))
    (given,) = custom_costs(rows, shot)
    message = json_format.ParseDict(given, custom_cost_response()())

    assert (message.cost_source, message.domain, message.currency) == ("model serving", "segserve", "EUR")
    assert message.end.seconds - message.start.seconds == 600
    assert {cost.labels["name"]: round(cost.billed_cost, 4) for cost in message.costs} == {
        "key:ann": 0.525,
        "key:ben": 0.175,
    }
    assert Counter(cost.usage_unit for cost in message.costs) == {"requests": 2}
    assert len({cost.id for cost in message.costs}) == 2
    assert all(
        cost.list_unit_price * cost.usage_quantity == pytest.approx(cost.billed_cost, rel=1e-5)
        for cost in message.costs
    )


def test_the_same_model_in_two_pools_of_a_namespace_pays_for_the_gateway_and_the_bytes_of_each() -> None:
    told = used("coins", 100, pod="gateway-0") + used("coins", 300, pool="second", pod="gateway-1")
    cpu = "".join(
        f'container_cpu_usage_seconds_total{{pod="{pod}",container="envoy"}} {amount}\n'
        for pod, amount in (("gateway-0", 40), ("gateway-1", 7))
    )

    rows = cost_rows(snapshot(told, cpu))

    found = {row.pool: (row.use.gateway_cpu_s, row.use.bytes) for row in rows if row.model}
    assert found["default"] == pytest.approx((40, 100 * 400_000))
    assert found["second"] == pytest.approx((7, 300 * 400_000))


def test_a_container_that_was_restarted_has_used_what_both_its_runs_have() -> None:
    amounts = (('endpoint="cadvisor",id="/a"', 40), ('endpoint="cadvisor",id="/b"', 5), ('endpoint="resource"', 5))
    cpu = "".join(
        f'container_cpu_usage_seconds_total{{pod="gateway-0",container="envoy",{labels}}} {amount}\n'
        for labels, amount in amounts
    )

    rows = cost_rows(snapshot(used("coins", 200, pod="gateway-0"), cpu))

    assert sum(row.use.gateway_cpu_s for row in rows) == pytest.approx(45)
