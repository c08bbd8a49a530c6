"""Who the caller is, told to whom it may be told, over TLS that checks both sides."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trustme

from fakes.kserve import Fault
from segserve import (
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    ConnectionLostError,
    DeadlineExceededError,
    GatewayUnreachableError,
    PlainHttpCredentialsError,
    Tls,
    TlsError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.kserve import Gateway

    from .conftest import Served

SECRET = "hunter2-hunter2"
ELSEWHERE = "http://gateway.example:8080"


def test_key_and_token_are_sent_with_every_request(served: Served, photo: bytes) -> None:
    options: Any = {"transport": served.transport, "api_key": SECRET, "bearer_token": "abc", "headers": {"X-Team": "a"}}
    with Client(served.url, **options) as client:
        client.segment(photo, model="coins")
        client.with_options(headers={"x-project": "b"}).segment(photo, model="coins")

    first, second = (asked.headers for asked in served.gateway.asked)
    assert (first["x-api-key"], first["authorization"], first["x-team"]) == (SECRET, "Bearer abc", "a")
    assert "x-project" not in first
    assert (second["x-api-key"], second["x-team"], second["x-project"]) == (SECRET, "a", "b")


def test_the_key_comes_from_the_environment(gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_API_KEY", SECRET)
    with gateway.http() as url, Client(url) as client:
        client.segment(photo, model="coins")

    assert gateway.asked[0].headers["x-api-key"] == SECRET


def test_a_token_that_is_a_function_is_asked_for_at_every_try(served: Served, photo: bytes) -> None:
    tokens = iter(f"token-{number}" for number in range(10))
    served.gateway.faults.append(Fault(http=503, grpc="UNAVAILABLE"))
    with Client(served.url, transport=served.transport, bearer_token=lambda: next(tokens)) as client:
        client.segment(photo, model="coins")

    assert served.gateway.asked[0].headers["authorization"] == "Bearer token-2"


async def test_a_token_may_come_from_a_coroutine(served: Served, photo: bytes) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "abc"

    async with AsyncClient(served.url, transport=served.transport, bearer_token=token) as client:
        await client.segment(photo, model="coins")

    assert served.gateway.asked[0].headers["authorization"] == "Bearer abc"


async def test_a_token_that_does_not_come_is_given_up_at_the_deadline(gateway: Gateway, photo: bytes) -> None:
    async def slow() -> str:
        await asyncio.sleep(60)
        return "abc"

    async def late() -> str:
        raise TimeoutError("the identity provider's")

    with gateway.http() as url:
        async with AsyncClient(url, bearer_token=slow, timeout_s=0.2) as client:
            with pytest.raises(DeadlineExceededError):
                await client.segment(photo, model="coins")
        async with AsyncClient(url, bearer_token=late) as client:
            with pytest.raises(TimeoutError, match="provider's"):
                await client.segment(photo, model="coins")


def test_what_a_tokens_function_raises_reaches_the_caller(gateway: Gateway, photo: bytes) -> None:
    def broken() -> str:
        raise LookupError("no identity here")

    with (
        gateway.http() as url,
        Client(url, bearer_token=broken) as client,
        pytest.raises(LookupError, match="no identity"),
    ):
        client.segment(photo, model="coins")


@pytest.mark.parametrize("host", ["127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_a_name_that_only_looks_like_this_machine_gets_no_secrets_as_plain_text(host: str) -> None:
    with pytest.raises(PlainHttpCredentialsError):
        Client(f"http://{host}:8080", api_key=SECRET)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.9", "localhost", "[::1]"])
def test_this_machine_gets_secrets_over_plain_http(host: str) -> None:
    Client(f"http://{host}:8080", api_key=SECRET).close()


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"api_key": SECRET}, id="key"),
        pytest.param({"bearer_token": SECRET}, id="token"),
        pytest.param({"headers": {"Authorization": SECRET}}, id="a header of the caller's"),
    ],
)
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_secrets_go_to_no_other_machine_as_plain_text_unless_the_caller_says_so(
    given: dict[str, Any], transport: Any
) -> None:
    with pytest.raises(PlainHttpCredentialsError, match="allow_plain_http_credentials") as caught:
        Client(ELSEWHERE, transport=transport, **given)
    assert SECRET not in str(caught.value)
    with pytest.raises(PlainHttpCredentialsError):
        Client(ELSEWHERE, transport=transport).with_options(headers={"cookie": SECRET})

    for client in (
        Client(ELSEWHERE, transport=transport, allow_plain_http_credentials=True, **given),
        Client(ELSEWHERE.replace("http", "https"), transport=transport, **given),
        Client("http://localhost:1", transport=transport, **given),
    ):
        client.close()


def test_secrets_are_never_shown(served: Served, photo: bytes) -> None:
    served.gateway.faults.append(Fault(http=401, grpc="UNAUTHENTICATED", message="who?"))
    with Client(
        served.url, transport=served.transport, api_key=SECRET, bearer_token=lambda: SECRET, headers={"cookie": SECRET}
    ) as client:
        with pytest.raises(AuthenticationError) as caught:
            client.segment(photo, model="coins")
        shown = f"{client!r} {client._connection!r} {client._transport!r} {caught.value!r} {vars(caught.value)!r}"

    assert SECRET not in shown


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"api_key": f"{SECRET}\r\nx: y"}, id="a key with a line break"),
        pytest.param({"bearer_token": f"{SECRET} "}, id="a token with a space"),
        pytest.param({"headers": {"cookie": f"{SECRET}\n"}}, id="a value with a line break"),
        pytest.param({"headers": {"x y": SECRET}}, id="a name with a space"),
        pytest.param({"headers": {"Content-Length": SECRET}}, id="a name of the client's own"),
        pytest.param({"headers": {"grpc-timeout": SECRET}}, id="a name of gRPC's own"),
    ],
)
def test_what_no_header_can_carry_is_refused_and_not_shown(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        Client(**given)
    assert SECRET not in str(caught.value)


def test_a_token_function_that_returns_no_token_is_refused(gateway: Gateway, photo: bytes) -> None:
    async def token() -> str:
        return SECRET

    with (
        gateway.http() as url,
        Client(url, bearer_token=token) as client,
        pytest.raises(BadRequestError, match="got coroutine"),
    ):
        client.segment(photo, model="coins")


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(BadRequestError, match="host") as caught:
        Client(f"https://me:{SECRET}@gateway.example")
    assert SECRET not in str(caught.value)


@dataclass
class Authority:
    """A private authority, a server of its own and a client that it knows; all in files."""

    folder: Path
    ca: trustme.CA
    trusted: Tls
    stranger: Tls

    def serve(self, gateway: Gateway, transport: str) -> AbstractContextManager[str]:
        """Serve the gateway so that only the authority's clients get an answer."""
        server = self.ca.issue_cert("127.0.0.1")
        if transport == "http":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.configure_cert(context)
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            return gateway.http(context)
        pair = (server.private_key_pem.bytes(), b"".join(pem.bytes() for pem in server.cert_chain_pems))
        root = self.ca.cert_pem.bytes()
        return gateway.grpc(grpc.ssl_server_credentials([pair], root, require_client_auth=True))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    client = ca.issue_cert("client.example")
    client.private_key_pem.write_to_path(folder / "key.pem")
    for pem in client.cert_chain_pems:
        pem.write_to_path(folder / "client.pem", append=True)
    trusted = Tls(folder / "ca.pem", folder / "client.pem", folder / "key.pem")
    return Authority(folder, ca, trusted, Tls(folder / "ca.pem"))


@pytest.mark.parametrize(
    ("transport", "known", "kind"),
    [
        pytest.param("http", False, TlsError, id="http, the gateway is not trusted"),
        pytest.param("grpc", False, TlsError, id="grpc, the gateway is not trusted"),
        # TLS 1.3 refuses a client after its handshake: one that writes before it reads may lose the alert.
        pytest.param("http", True, (TlsError, ConnectionLostError), id="http, the client has no certificate"),
        # grpcio says no more than that the connection was closed.
        pytest.param("grpc", True, GatewayUnreachableError, id="grpc, the client has no certificate"),
    ],
)
def test_who_does_not_trust_or_is_not_trusted_is_told_and_nothing_is_asked(
    gateway: Gateway, photo: bytes, authority: Authority, transport: Any, known: bool, kind: Any
) -> None:
    tls = authority.stranger if known else None

    async def in_tasks(url: str) -> None:
        async with AsyncClient(url, transport=transport, tls=tls) as client:
            await client.segment(photo, model="coins")

    with authority.serve(gateway, transport) as url:
        with Client(url, transport=transport, tls=tls) as client, pytest.raises(kind):
            client.segment(photo, model="coins")
        with pytest.raises(kind):
            asyncio.run(in_tasks(url))

    assert not gateway.asked


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda _: Tls("/nowhere.pem"), "no such file: '/nowhere.pem'", id="no file"),
        pytest.param(lambda tls: Tls(certificate_file=tls.certificate_file), "given together", id="no key"),
        pytest.param(lambda tls: Client("http://127.0.0.1:1", tls=tls), "https gateway", id="no https"),
        pytest.param(
            lambda tls: Client("https://127.0.0.1:1", tls=Tls(tls.ca_file, tls.ca_file, tls.key_file)),
            "cannot be used",
            id="a key of another certificate",
        ),
    ],
)
def test_files_that_cannot_work_are_refused(authority: Authority, make: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        make(authority.trusted)
