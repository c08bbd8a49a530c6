"""What ended is kept within bounds of bytes, oldest first out."""

from __future__ import annotations

from typing import Any

from segserve_operator.adapters.kube.rollouts import (
    POOL_RECORDS_BYTES,
    RECORD_BYTES,
    expired_records,
    record_bytes,
    room_for_records,
)

MIB = 1024 * 1024


def rollout(number: int, size: int = 1000, **status: Any) -> dict[str, Any]:
    metadata = {"name": f"coins-{number:02}", "resourceVersion": str(number)}
    return {"metadata": metadata, "status": {"phase": "Succeeded", "evidence": "x" * size, **status}}


def test_ten_thousand_models_in_two_hundred_pools_take_at_most_300_mib_of_etcd() -> None:
    models = 50
    of_pool = models * (room_for_records(models) + RECORD_BYTES)

    assert of_pool <= POOL_RECORDS_BYTES
    assert 200 * of_pool <= 300 * MIB


def test_the_room_of_a_pool_is_shared_by_its_models_and_never_negative() -> None:
    assert room_for_records(1) == POOL_RECORDS_BYTES - RECORD_BYTES
    assert room_for_records(0) == room_for_records(1)
    assert room_for_records(10) * 10 + 10 * RECORD_BYTES <= POOL_RECORDS_BYTES
    assert room_for_records(1000) == 0


def test_of_records_without_room_the_oldest_go_first() -> None:
    items = [rollout(number) for number in (3, 1, 4, 2)]
    room = sum(map(record_bytes, (rollout(3), rollout(4))))

    assert expired_records(items, room, 10, ()) == ["coins-01", "coins-02"]
    assert expired_records(items, 10**9, 3, ()) == ["coins-01"]
    assert expired_records(items, 10**9, 10, ()) == []


def test_a_record_that_a_status_names_stays() -> None:
    items = [rollout(number) for number in range(4)]

    assert expired_records(items, 0, 10, {"coins-01"}) == ["coins-00", "coins-02", "coins-03"]


def test_rows_that_are_stored_apart_count() -> None:
    whole = rollout(1, rows=500, chunkedRows=0)
    apart = rollout(1, rows=1500, chunkedRows=1000)

    assert record_bytes(apart) - record_bytes(whole) >= 2000
