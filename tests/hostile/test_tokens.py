"""Credentials on the real Envoy: who comes in, and what does not let anybody in."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import trustme
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.credentials import AUDIENCE, ISSUER, Issuer, api_key, b64, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import served
from fakes.mounted_secret import MountedSecret
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve import AsyncClient, AuthenticationError
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.api.access import Auth

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/coins/infer"
GOOD, OTHER, NEXT = Issuer(), Issuer(), Issuer(kid="2")
BY_SECRET = Issuer(kid="s", name="https://second.example")
BY_URL = Issuer(kid="u", name="https://third.example")
KEY = api_key("team-a", "open sesame")
CASES_OF_NONE = ("none", "None", "NONE", "nOnE")


@dataclass
class Entrance:
    """A gateway that takes tokens of three issuers and API keys; its one model is `coins`."""

    running: RunningGateway
    triton: StubTriton
    keys: MountedSecret
    issuer: MountedSecret
    client: httpx.AsyncClient

    async def ask(self, *headers: tuple[str, str], path: str = INFER) -> httpx.Response:
        return await self.client.post(path, headers=list(headers), content=b"image")

    async def status(self, *headers: tuple[str, str], path: str = INFER) -> int:
        return (await self.ask(*headers, path=path)).status_code

    async def becomes(self, status: int, *headers: tuple[str, str]) -> None:
        async def reached() -> bool:
            return await self.status(*headers) == status

        await eventually(reached, f"the response has the status {status}")

    async def by_grpc(self, *metadata: tuple[str, str]) -> str:
        async with grpc.aio.insecure_channel(self.running.authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                code: str = error.code().name
                return code
        version: str = answer.model_version
        return version


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


@pytest.fixture(scope="module")
def key_server() -> Iterator[tuple[str, bytes, list[str]]]:
    """A server of key sets behind TLS: its URL, its authority, and the paths that it was asked for."""
    authority, asked = trustme.CA(), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = BY_URL.jwks.encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}/keys", authority.cert_pem.bytes(), asked
    server.shutdown()
    server.server_close()
    thread.join(HANG_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(
    tmp_path_factory: pytest.TempPathFactory, key_server: tuple[str, bytes, list[str]]
) -> AsyncIterator[Entrance]:
    folder = tmp_path_factory.mktemp("gateway")
    secrets = folder / "secrets"
    secrets.mkdir()
    url, authority, _ = key_server
    keys = MountedSecret(secrets / "callers", {"htpasswd": key_line("team-a", "open sesame").encode()})
    issuer = MountedSecret(secrets / "issuer", {"jwks": BY_SECRET.jwks.encode()})
    MountedSecret(secrets / "authority", {"ca.crt": authority})
    spec = {
        "jwt": [
            {"issuer": ISSUER, "audiences": [AUDIENCE, "other"], "jwks": {"inline": GOOD.jwks}},
            {
                "issuer": BY_SECRET.name,
                "audiences": [AUDIENCE],
                "jwks": {"secretRef": {"name": "issuer", "key": "jwks"}},
            },
            {
                "issuer": BY_URL.name,
                "audiences": [AUDIENCE],
                "jwks": {"url": url, "caSecretRef": {"name": "authority", "key": "ca.crt"}},
            },
        ],
        "apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}],
    }
    auth = AuthSettings(Auth.model_validate(spec), (secrets,), folder / "auth")
    with StubTriton("old") as triton:
        async with running_gateway(folder, auth=auth) as running:
            await running.traffic.apply(served(triton))
            async with httpx.AsyncClient(base_url=running.traffic.url, timeout=HANG_S, trust_env=False) as client:
                yield Entrance(running, triton, keys, issuer, client)


@pytest.mark.parametrize("issuer", [GOOD, BY_SECRET, BY_URL], ids=["inline", "of a Secret", "of a URL"])
async def test_a_token_of_a_known_issuer_lets_its_caller_in(entrance: Entrance, issuer: Issuer) -> None:
    await entrance.becomes(200, bearer(issuer.token()))

    assert await entrance.by_grpc(bearer(issuer.token())) == "old"


async def test_an_api_key_lets_its_caller_in(entrance: Entrance) -> None:
    assert await entrance.status(("x-api-key", KEY)) == 200
    assert await entrance.by_grpc(("x-api-key", KEY)) == "old"


async def test_no_credential_reaches_a_server(entrance: Entrance) -> None:
    assert await entrance.status(bearer(GOOD.token()), ("x-api-key", KEY)) == 200

    arrived = entrance.triton.asked[-1].headers
    assert [name for name in arrived if name.startswith("x-segserve")] == ["x-segserve-caller"]
    assert KEY.lower() not in str(arrived)
    assert GOOD.token().lower() not in str(arrived)
    assert not {"authorization", "x-api-key"} & arrived.keys()


async def test_a_stranger_is_told_how_to_say_who_calls(entrance: Entrance) -> None:
    response = await entrance.ask()

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="segserve", ApiKey realm="segserve"'
    assert "x-api-key" in response.json()["error"]
    assert await entrance.by_grpc() == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "path",
    [
        INFER,
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/models/coins",
        "/v2/models/coins/config",
        "/v2/models/coins/ready",
        "/v2/models/coins/stats",
        "/v2/repository/index",
        "/metrics",
        "/anything",
    ],
)
async def test_a_stranger_learns_nothing_from_any_path(entrance: Entrance, path: str) -> None:
    assert await entrance.status(path=path) == 401


def attacks() -> Iterator[Any]:
    """Yield what an attacker tries with a token, as headers."""
    modulus = {key: OTHER.jwk[key] for key in ("kty", "n", "e")}
    tampered = GOOD.token().split(".")
    tampered[1] = b64(json.dumps({"iss": ISSUER, "aud": AUDIENCE, "sub": "root", "exp": 2**40}).encode())
    tokens = {
        **{f"algorithm {name}": GOOD.token(header={"alg": name}) for name in CASES_OF_NONE},
        "HMAC with the public key as PEM": GOOD.token(header={"alg": "HS256"}, secret=GOOD.pem()),
        "HMAC with the public key's modulus": GOOD.token(header={"alg": "HS256"}, secret=GOOD.jwk["n"].encode()),
        "HMAC with no secret": GOOD.token(header={"alg": "HS256"}, secret=b""),
        "a key of his own": OTHER.token(),
        "a key of his own in the header": OTHER.token(header={"jwk": modulus}),
        "a key of his own at a URL": OTHER.token(header={"jku": "https://evil.example/jwks"}),
        "an unknown key id": OTHER.token(header={"kid": "9"}),
        "a key id that is a path": OTHER.token(header={"kid": "../../../../dev/null"}),
        "a key id that is a query": OTHER.token(header={"kid": "1' UNION SELECT 'x"}),
        "a key id that is a list": OTHER.token(header={"kid": ["1"]}),
        "other claims under a good signature": ".".join(tampered),
        "no signature": GOOD.token().rpartition(".")[0] + ".",
        "two parts": GOOD.token().rpartition(".")[0],
        "four parts": GOOD.token() + ".x",
        "an expired token": GOOD.token(exp=1),
        "a token without an end": GOOD.token(exp=None),
        "a token that ends at a text": GOOD.token(exp="never"),
        "a token of tomorrow": GOOD.token(nbf=2**33),
        "another audience": GOOD.token(aud="billing"),
        "other audiences": GOOD.token(aud=["billing", "segserve2"]),
        "no audience": GOOD.token(aud=None),
        "an audience that begins so": GOOD.token(aud="segserve.evil.example"),
        "another issuer": GOOD.token(iss="https://evil.example"),
        "no issuer": GOOD.token(iss=None),
        "the issuer in capitals": GOOD.token(iss=ISSUER.upper()),
        "the name of another issuer": GOOD.token(iss=BY_SECRET.name),
        "a critical extension": GOOD.token(header={"crit": ["exp"], "alg": "none"}),
        "no token": "x",
        "a long text": "a" * 8000,
    }
    for name, token in tokens.items():
        yield pytest.param([bearer(token)], id=name)
    yield pytest.param([bearer(GOOD.token()), bearer(GOOD.token())], id="two headers")
    yield pytest.param([bearer(GOOD.token()), bearer(OTHER.token())], id="a good header and a bad one")
    yield pytest.param([("authorization", GOOD.token())], id="a token without its scheme")
    yield pytest.param([("x-forwarded-authorization", f"Bearer {GOOD.token()}")], id="another header")
    yield pytest.param([bearer(OTHER.token()), ("x-api-key", KEY)], id="a bad token beside a good key")
    yield pytest.param([bearer(GOOD.token()), ("x-api-key", "eA==")], id="a bad key beside a good token")


@pytest.mark.parametrize("headers", list(attacks()))
async def test_a_forged_token_does_not_let_anybody_in(entrance: Entrance, headers: list[tuple[str, str]]) -> None:
    before = len(entrance.triton.asked)

    response = await entrance.ask(*headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert len(entrance.triton.asked) == before


async def test_a_token_for_several_audiences_is_for_each_of_them(entrance: Entrance) -> None:
    assert await entrance.status(bearer(GOOD.token(aud=["billing", AUDIENCE]))) == 200
    assert await entrance.status(bearer(GOOD.token(aud="other"))) == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("x-api-key", api_key("team-a", "guess"))], id="a wrong secret"),
        pytest.param([("x-api-key", api_key("team-b", "open sesame"))], id="the name of another"),
        pytest.param([("x-api-key", api_key("TEAM-A", "open sesame"))], id="the name in capitals"),
        pytest.param([("x-api-key", api_key("team-a", ""))], id="no secret"),
        pytest.param([("x-api-key", api_key("team-a", "open sesame "))], id="a blank more"),
        pytest.param([("x-api-key", api_key("team-a", "open sesame\0x"))], id="a zero more"),
        pytest.param([("x-api-key", base64.b64encode(b"team-a").decode())], id="no colon"),
        pytest.param([("x-api-key", "team-a:open sesame")], id="not encoded"),
        pytest.param([("x-api-key", key_line("team-a", "open sesame").strip())], id="the hash"),
        pytest.param(
            [("x-api-key", api_key("team-a", key_line("", "open sesame").strip()[1:]))], id="the hash as the secret"
        ),
        pytest.param([("x-api-key", api_key("nobody", ""))], id="the caller that nobody is"),
        pytest.param([("x-api-key", "")], id="nothing"),
        pytest.param([("x-api-key", f"Basic {KEY}")], id="a scheme"),
        pytest.param([("x-api-key", f"{KEY}, {KEY}")], id="two in one"),
        pytest.param([("x-api-key", KEY), ("x-api-key", "x")], id="a good one and a bad one"),
        pytest.param([("x-api-key", "x"), ("x-api-key", KEY)], id="a bad one and a good one"),
        pytest.param([("x-api-key", KEY), ("X-API-Key", KEY)], id="twice"),
        pytest.param([("authorization", f"Basic {KEY}")], id="in another header"),
        pytest.param([("x-segserve-key", f"Basic {KEY}")], id="in the header of the filter"),
        pytest.param([("x-segserve-key-user", "team-a")], id="the name that the filter gives"),
        pytest.param([("x-segserve-token-name", "ann")], id="the name that the other filter gives"),
        pytest.param([("X-Segserve-Key-User", "team-a")], id="that name in capitals"),
    ],
)
async def test_a_guessed_or_hidden_key_does_not_let_anybody_in(
    entrance: Entrance, headers: list[tuple[str, str]]
) -> None:
    before = len(entrance.triton.asked)

    assert await entrance.status(*headers) == 401
    assert len(entrance.triton.asked) == before


@pytest.mark.parametrize("query", ["access_token={token}", "x-api-key={key}", "api_key={key}", "token={token}"])
async def test_a_credential_in_the_query_which_logs_show_lets_nobody_in(entrance: Entrance, query: str) -> None:
    asked = f"{INFER}?{query.format(token=GOOD.token(), key=KEY)}"

    assert await entrance.status(path=asked) == 401


async def test_a_key_in_capitals_of_its_header_is_the_same_header(entrance: Entrance) -> None:
    assert await entrance.status(("X-API-KEY", KEY)) == 200


async def test_a_gateway_holds_no_key_that_could_be_used(entrance: Entrance) -> None:
    written = [path for path in entrance.running.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    of_auth = [path for path in written if "auth" in path.relative_to(entrance.running.folder).parts]

    assert of_auth
    assert all(path.stat().st_mode & 0o077 == 0 for path in of_auth)
    assert not [path for path in written if b"open sesame" in path.read_bytes() or KEY.encode() in path.read_bytes()]


async def test_keys_and_issuers_are_exchanged_while_callers_call(entrance: Entrance) -> None:
    """The new key works before the old one ends, and no request of a caller fails in between."""
    refresh: Callable[[], None] = entrance.running.traffic.refresh_credentials
    old, new = ("x-api-key", KEY), ("x-api-key", api_key("team-a+2", "another"))
    lines = key_line("team-a", "open sesame"), key_line("team-a+2", "another")

    entrance.keys.write({"htpasswd": "".join(lines).encode()})
    refresh()
    await entrance.becomes(200, new)
    assert await entrance.status(old) == 200
    entrance.keys.write({"htpasswd": lines[1].encode()})
    refresh()
    await entrance.becomes(401, old)
    assert await entrance.status(new) == 200
    both = json.dumps({"keys": [json.loads(BY_SECRET.jwks)["keys"][0], NEXT.jwk]})
    signed = Issuer.token(NEXT, iss=BY_SECRET.name)
    assert await entrance.status(bearer(signed)) == 401
    entrance.issuer.write({"jwks": both.encode()})
    refresh()
    await entrance.becomes(200, bearer(signed))
    entrance.keys.write({"htpasswd": lines[0].encode()})
    entrance.issuer.write({"jwks": BY_SECRET.jwks.encode()})
    refresh()
    await entrance.becomes(200, old)
    await entrance.becomes(401, bearer(signed))


@pytest.mark.parametrize(
    "content",
    [b"", b"team-a:open sesame", b"team-a:{PLAIN}open sesame", b":{SHA}", b"\xff\xfe\0", b"team-a:$apr1$x$y\n" * 99],
)
async def test_a_broken_secret_lets_nobody_in_and_breaks_nothing_else(entrance: Entrance, content: bytes) -> None:
    entrance.keys.write({"htpasswd": content})
    entrance.running.traffic.refresh_credentials()
    await entrance.becomes(401, ("x-api-key", KEY))
    assert await entrance.status(bearer(GOOD.token())) == 200

    entrance.keys.write({"htpasswd": key_line("team-a", "open sesame").encode()})
    entrance.running.traffic.refresh_credentials()
    await entrance.becomes(200, ("x-api-key", KEY))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"keys": []}', b'{"keys": [1]}', b"[" * 10_000, b"\xff"])
async def test_a_broken_key_set_lets_nobody_in_and_breaks_nothing_else(entrance: Entrance, content: bytes) -> None:
    entrance.issuer.write({"jwks": content})
    entrance.running.traffic.refresh_credentials()
    await entrance.becomes(401, bearer(BY_SECRET.token()))
    assert await entrance.status(bearer(GOOD.token())) == 200

    entrance.issuer.write({"jwks": BY_SECRET.jwks.encode()})
    entrance.running.traffic.refresh_credentials()
    await entrance.becomes(200, bearer(BY_SECRET.token()))


async def test_a_gateway_that_starts_without_its_secrets_lets_nobody_in(tmp_path: Path) -> None:
    spec = {
        "jwt": [{"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": {"secretRef": {"name": "issuer", "key": "jwks"}}}],
        "apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}],
    }
    auth = AuthSettings(Auth.model_validate(spec), (tmp_path / "secrets",), tmp_path / "auth")
    with StubTriton("old") as triton:
        async with running_gateway(tmp_path, auth=auth) as running:
            await running.traffic.apply(served(triton))
            async with httpx.AsyncClient(base_url=running.traffic.url, timeout=HANG_S, trust_env=False) as client:
                for headers in ({}, {"x-api-key": KEY}, dict([bearer(GOOD.token())])):
                    assert (await client.post(INFER, headers=headers)).status_code == 401
        assert not triton.asked


@pytest.mark.parametrize("key", [None, "x"])
async def test_the_client_says_that_a_key_is_missing_or_wrong(entrance: Entrance, key: str | None) -> None:
    async with AsyncClient(entrance.running.traffic.url, api_key=key) as client:
        with pytest.raises(AuthenticationError, match="credentials are"):
            await client.segment(b"image", model="coins")


async def test_segserves_own_requests_need_no_credentials(entrance: Entrance) -> None:
    """The internal listener is not public: probes, golden sets and checks go on."""
    headers = {"x-segserve-group": "main"}
    async with httpx.AsyncClient(base_url=f"http://{entrance.running.internal}", timeout=HANG_S) as client:
        response = await client.post(INFER, headers=headers, content=b"image")

    assert response.status_code == 200


async def test_many_callers_at_once_are_told_apart(entrance: Entrance) -> None:
    good, bad = bearer(GOOD.token()), bearer(OTHER.token())

    answers = await asyncio.gather(*(entrance.status(good if at % 2 else bad) for at in range(40)))

    assert answers == [200 if at % 2 else 401 for at in range(40)]
