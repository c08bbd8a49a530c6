"""Samples in object stores, against real servers: written, listed, read and deleted with the pool's credentials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.captured_samples import DOCUMENT, IMAGE, sample
from fakes.object_servers import BUCKET, SERVERS, ObjectServer, needed
from segserve_builder.capture.store import SampleStore
from segserve_builder.errors import SinkError


@pytest.fixture(scope="module", params=[pytest.param(scheme, marks=needed(scheme)) for scheme in sorted(SERVERS)])
def server(request: pytest.FixtureRequest) -> Iterator[ObjectServer]:
    with SERVERS[request.param]() as found:
        yield found


@pytest.fixture
def store(server: ObjectServer, tmp_path: Path) -> SampleStore:
    return SampleStore(f"{server.source.scheme}://{BUCKET}/samples/of coins", server.access(tmp_path / "writer"))


def test_samples_are_written_listed_read_and_deleted(store: SampleStore) -> None:
    for request_id, at_s in (("old", 1000.0), ("kept", 2000.0), ("asked", 3000.0)):
        store.write(sample(request_id, at_s))
        store.write(sample(request_id, at_s))

    rows = list(store.rows("coins"))
    assert [row.request_id for row in rows] == ["old", "kept", "asked"]
    assert (store.image(rows[1]), store.coco(rows[1])) == (IMAGE, json.loads(DOCUMENT))
    assert store.delete("coins", before_s=1500.0) == 3
    assert store.delete("coins", request_id="asked") == 3
    assert [row.request_id for row in store.rows("coins")] == ["kept"]
    assert store.delete("coins", before_s=9e9) == 3
    assert list(store.rows("coins")) == []


def test_a_store_that_refuses_says_so_without_its_credentials(server: ObjectServer, tmp_path: Path) -> None:
    gone = SampleStore(f"{server.source.scheme}://no-such-{BUCKET}/x", server.access(tmp_path / "writer"))

    with pytest.raises(SinkError, match="cannot be reached") as raised:
        gone.write(sample("a", 1000.0))
    assert "Signature" not in str(raised.value)
