"""The workers of a Dask cluster ask as the caller's client does: as the same one, in the same way."""

from __future__ import annotations

import inspect
import pickle
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
import trustme

from segserve import BadRequestError, Client, Hooks, PlainHttpCredentialsError, Timeouts, Tls
from segserve.base_client import BaseClient
from segserve.tiled.segmenting import ClientFactory, check_hidden

from .conftest import World

if TYPE_CHECKING:
    import distributed

TILES = {"tile": 128, "overlap": 64, "progress": False, "in_flight": 4}


def token() -> str:
    return "a-token"


def ignore(_: object) -> None:
    """A hook that does nothing."""


@pytest.fixture(scope="module")
def workers() -> Iterator[distributed.Client]:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def image(scene: np.ndarray, tmp_path: Path) -> Path:
    np.save(tmp_path / "scene.npy", scene[:200, :200])
    return tmp_path / "scene.npy"


def segment(client: Client, image: Path, workers: object) -> int:
    found = client.segment_tiled(image, model="classes", out=image.parent / "out", scheduler=workers, **TILES)
    return int(found.sent)


def test_workers_send_the_callers_headers_and_credentials(
    world: World, image: Path, workers: distributed.Client
) -> None:
    with Client(world.url, headers={"x-team": "roads"}, api_key="a-key", bearer_token=token) as client:
        sent = segment(client.with_options(headers={"x-run": "7"}), image, workers)

    expected = {"x-team": "roads", "x-run": "7", "x-api-key": "a-key", "authorization": "Bearer a-token"}
    assert len(world.gateway.asked) == sent > 1
    assert all(expected.items() <= asked.headers.items() for asked in world.gateway.asked)


def test_workers_use_the_callers_transport(world: World, image: Path, workers: distributed.Client) -> None:
    with world.gateway.grpc() as url, Client(url, transport="grpc", headers={"x-team": "roads"}) as client:
        sent = segment(client, image, workers)

    assert len(world.gateway.asked) == sent > 1
    assert all("grpc" in asked.headers["user-agent"] for asked in world.gateway.asked)


def test_workers_trust_the_callers_authority(world: World, image: Path, workers: distributed.Client) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(image.parent / "ca.pem"))

    with (
        world.gateway.http(context) as url,
        Client(url, tls=Tls(ca_file=image.parent / "ca.pem")) as client,
    ):
        sent = segment(client, image, workers)

    assert len(world.gateway.asked) == sent > 1


def test_every_argument_of_a_client_reaches_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    given = {
        "url": "https://gateway.example:8443/prefix",
        "transport": "http",
        "timeout_s": Timeouts(7, read_s=3),
        "retries": 5,
        "api_key": "a-key",
        "bearer_token": token,
        "tls": Tls(ca_file=tmp_path / "ca.pem"),
        "headers": {"x-team": "roads"},
        "hooks": Hooks(on_error=ignore),
        "telemetry": False,
        "http2": True,
        "gzip": True,
        "max_answer_bytes": 2**20,
        "allow_plain_http_credentials": True,
    }
    assert {*given} == {*inspect.signature(BaseClient.__init__).parameters} - {"self", "platform"}
    monkeypatch.setattr(Client, "_open", staticmethod(lambda *_: None))

    arrived = cloudpickle.loads(
        cloudpickle.dumps(ClientFactory(Client, Client(**given)._arguments()).for_workers().arguments)
    )

    assert arrived == given
    assert Client(**arrived)._arguments() == given


def test_files_are_named_so_that_workers_find_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    monkeypatch.setattr(Client, "_open", staticmethod(lambda *_: None))

    tls = (
        ClientFactory(Client, Client("https://gateway.example", tls=Tls(ca_file="ca.pem"))._arguments())
        .for_workers()
        .arguments["tls"]
    )

    assert tls == Tls(ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize("name", ["bearer_token", "hooks"])
def test_what_cannot_travel_is_said_before_a_tile_is_sent(
    world: World, image: Path, workers: distributed.Client, name: str
) -> None:
    lock = threading.Lock()

    def locked(*_: object) -> str:
        with lock:
            return "a-token"

    options: dict[str, Any] = {"bearer_token": locked} if name == "bearer_token" else {"hooks": Hooks(on_error=locked)}
    with (
        Client(world.url, **options) as client,
        pytest.raises(BadRequestError, match=f"the client's {name} cannot be sent to worker processes"),
    ):
        segment(client, image, workers)

    assert world.sent == 0


def test_a_key_of_the_environment_stays_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read their own: a scheduler need not know it."""
    monkeypatch.setenv("SEGSERVE_API_KEY", "a-key")
    with Client(world.url) as client:
        assert b"a-key" not in pickle.dumps(ClientFactory(Client, client._arguments()).for_workers().arguments)


@pytest.mark.parametrize(
    "options",
    [{"api_key": "a-key"}, {"bearer_token": "a-token"}, {"bearer_token": token}, {"headers": {"cookie": "a"}}],
)
def test_secrets_are_not_sent_to_workers_over_a_network_in_plain_text(world: World, options: dict[str, Any]) -> None:
    with Client(world.url, **options) as client:
        arguments = ClientFactory(Client, client._arguments()).for_workers().arguments

    for hidden in (["tls://10.0.0.7:8786"], ["tcp://127.0.0.1:1", "inproc://10.0.0.7/1/1"]):
        check_hidden(hidden, arguments)
    with pytest.raises(PlainHttpCredentialsError, match=r"over tcp://10.0.0.7:1 as plain text.*tls://") as caught:
        check_hidden(["tcp://127.0.0.1:8786", "tcp://10.0.0.7:1"], arguments)
    assert "a-" not in str(caught.value)
    check_hidden(["tcp://10.0.0.7:1"], {**arguments, "allow_plain_http_credentials": True})


def test_a_client_without_secrets_may_use_any_cluster(world: World) -> None:
    with Client(world.url, headers={"x-team": "roads"}) as client:
        check_hidden(["tcp://10.0.0.7:1"], ClientFactory(Client, client._arguments()).for_workers().arguments)
