"""A Dask cluster on a machine with other users: who runs code in it, and who reads the caller's credentials."""

from __future__ import annotations

import os
import pickle
import stat
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from segserve import BadRequestError, Client
from segserve.tiled import segmenting
from segserve.tiled.segmenting import ClientFactory

KEY, TOKEN, COOKIE = "a-secret-key", "a-secret-token", "a-secret-cookie"


class Recorder:
    """Notes the arguments that it is made with; stands for a client."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def close(self) -> None:
        """Close nothing."""


def factory() -> ClientFactory:
    with Client(api_key=KEY, bearer_token=TOKEN, headers={"cookie": COOKIE, "x-team": "roads"}) as client:
        return ClientFactory(Recorder, client._arguments())


def test_another_user_runs_no_code_in_a_local_cluster() -> None:
    with segmenting._cluster("local", 2) as cluster:
        address = cluster.scheduler.address
        addresses = [address, *cluster.nthreads()]
        assert cluster.submit(os.getuid).result() == os.getuid()

        for stranger in (address, address.replace("tls://", "tcp://")):
            with pytest.raises(BadRequestError, match="no Dask scheduler answers at"):
                segmenting.connected(stranger, timeout_s=1)

    assert all(each.startswith("tls://") for each in addresses)


def test_a_client_that_found_no_scheduler_is_closed_before_another_one_starts() -> None:
    before = set(threading.enumerate())

    with pytest.raises(BadRequestError, match="no Dask scheduler answers at"):
        segmenting.connected("tcp://127.0.0.1:1", timeout_s=0.2)

    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "IO loop"]


def test_the_task_graph_has_no_credentials_and_workers_have_them(tmp_path: Path) -> None:
    given = factory()

    sent = cloudpickle.dumps(given.for_workers().with_secrets_in(tmp_path / "credentials.json"))

    assert not [secret for secret in (KEY, TOKEN, COOKIE) if secret.encode() in sent]
    opened: Any = pickle.loads(sent).open()
    assert opened.arguments == given.arguments
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600
