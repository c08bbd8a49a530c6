"""Who may use which model, on the real Envoy: to a caller without access, a model does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.credentials import AUDIENCE, ISSUER, Issuer, api_key, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import STEP
from fakes.mounted_secret import MountedSecret
from fakes.triton import StubTriton
from fakes.waiting import HANG_S
from segserve_builder.spec.names import CALLER_HEADER
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.api.access import Auth
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.core.traffic import AccessRule, Callers, Route, RouteAffinity, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

FIRST, SECOND = Issuer(), Issuer(name="https://second.example")
MODELS = ("coins", "streets", "wards")
UNKNOWN = "nosuch"
OF_EACH_ANSWER = ("date", "x-request-id")
"""Headers that no two answers have in common."""
CALLERS_RULE = {kind.value: AccessRule(callers=kind) for kind in Callers}


@dataclass(frozen=True, eq=False)
class Principal:
    """A caller: what he sends, and who he is by that."""

    name: str
    headers: tuple[tuple[str, str], ...] = ()
    key: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, rule: AccessRule) -> bool:
        """Tell by the words of the API's documentation whether a rule admits this caller."""
        if rule.callers is Callers.ANONYMOUS or (rule.callers is Callers.AUTHENTICATED and self.headers):
            return True
        if self.key and self.key in rule.keys:
            return True
        if not rule.claim or (rule.issuer and self.claims.get("iss") != rule.issuer):
            return False
        claim: Any = self.claims
        for part in [rule.claim] if "://" in rule.claim else rule.claim.split("."):
            claim = claim.get(part) if isinstance(claim, Mapping) else None
        held = claim if isinstance(claim, list) else claim.split() if rule.claim == "scope" and claim else [claim]
        return bool(set(rule.values) & {each for each in held if isinstance(each, str)})

    def may(self, rules: Iterable[AccessRule] | None) -> bool:
        return rules is None or any(map(self.fits, rules))


def with_token(name: str, issuer: Issuer, **claims: Any) -> Principal:
    held = {"iss": issuer.name, "aud": AUDIENCE, "sub": name, **claims}
    return Principal(name, (("authorization", f"Bearer {issuer.token(**held)}"),), claims=held)


KEY_A, KEY_B = (("x-api-key", api_key(name, "s")) for name in ("team-a", "team-b"))
TOKEN_AND_KEY = with_token("eve", FIRST, groups=["night"])
PRINCIPALS = (
    Principal("nobody"),
    Principal("team-a", (KEY_A,), key="team-a"),
    Principal("team-b", (KEY_B,), key="team-b"),
    Principal("team-a's second key", (("x-api-key", api_key("team-a+2", "t")),), key="team-a"),
    with_token("ann", FIRST, groups=["radiology", "night"], realm_access={"roles": ["reader"]}),
    with_token("bob", FIRST, groups="radiology", scope="segment read"),
    with_token("ann", SECOND, groups=["radiology"], **{"https://claims.example/team": "radiology"}),
    with_token("team-a", SECOND, groups=[["radiology"]], roles={"radiology": True}),
    with_token("with numbers", FIRST, groups=[1, True, None], level=5),
    replace(TOKEN_AND_KEY, name="token and key", headers=(*TOKEN_AND_KEY.headers, KEY_B), key="team-b"),
)
RULES = st.one_of(
    st.sampled_from([*CALLERS_RULE.values(), AccessRule(keys=("team-a",)), AccessRule(keys=("team-b", "ann"))]),
    st.builds(
        AccessRule,
        claim=st.sampled_from(
            ["groups", "sub", "scope", "level", "realm_access.roles", "https://claims.example/team", "roles", "aud"]
        ),
        values=st.lists(
            st.sampled_from(["radiology", "night", "ann", "team-a", "segment", "5", "reader", AUDIENCE, "true"]),
            min_size=1,
            max_size=3,
            unique=True,
        ).map(tuple),
        issuer=st.sampled_from(["", ISSUER, SECOND.name]),
    ),
)
TABLE = st.tuples(*(st.none() | st.lists(RULES, max_size=3).map(tuple) for _ in MODELS))
PATHS = (
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/{}/versions/1/infer"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/config"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}/stats"),
    ("GET", "/v2/models/{}/versions/1/ready"),
    ("GET", "/v2//models/{}"),
    ("POST", "/v2/models/{}.network/infer"),
    ("GET", "/v2/models/{}.network/config"),
)
METHODS = ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")


@dataclass
class Entrance:
    """A gateway whose pool takes tokens, keys and callers without any; every model is on the same server."""

    running: RunningGateway
    triton: StubTriton
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    answers: dict[Any, tuple[Any, str, Any]] = field(default_factory=dict)

    async def admit(self, *tables: tuple[AccessRule, ...] | None) -> None:
        share = Share("main", "r1", 100, (self.triton.endpoint,))
        routes = (
            Route(model, (share,), (STEP,), (f"{model}.network",), access=rules, affinity=RouteAffinity())
            for model, rules in zip(MODELS, tables, strict=False)
        )
        await self.running.traffic.apply(TrafficPlan(tuple(routes), (self.triton.endpoint,)))

    async def ask(self, caller: Principal, model: str, route: str | tuple[str, str]) -> tuple[Any, str, Any]:
        """Return status, text and headers of the response; those about a model that is not there are kept."""
        key = (caller, model, route)
        if key in self.answers:
            return self.answers[key]
        if isinstance(route, str):
            answer: tuple[Any, str, Any] = await self.by_grpc(caller, route, model)
        else:
            answer = await self.by_http(caller, route[0], route[1].format(model))
        if model == UNKNOWN:
            self.answers[key] = answer
        return answer

    async def by_http(self, caller: Principal, method: str, path: str) -> tuple[int, str, dict[str, str]]:
        """Return status, body and headers of the response."""
        content = b"image" if method == "POST" else None
        response = await self.http.request(method, path, headers=list(caller.headers), content=content)
        kept = response.headers.keys() - {"content-length", *OF_EACH_ANSWER}
        headers = {name: response.headers[name] for name in kept}
        return response.status_code, response.text, headers

    async def by_grpc(self, caller: Principal, method: str, model: str) -> tuple[str, str, tuple[Any, ...]]:
        """Return status, details and metadata of the response."""
        named = "model_name" if method == "ModelInfer" else "name"
        request = getattr(pb, f"{method}Request")(**{named: model})
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        call = getattr(stub, method)(request, metadata=caller.headers)
        code, details = await call.code(), await call.details()
        parts = (await call.initial_metadata(), await call.trailing_metadata())
        return (
            code.name,
            details or "",
            tuple(sorted(pair for pair in part if pair[0] not in OF_EACH_ANSWER) for part in parts),
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Entrance]:
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "secrets").mkdir()
    lines = key_line("team-a", "s"), key_line("team-b", "s"), key_line("team-a+2", "t")
    MountedSecret(folder / "secrets/callers", {"htpasswd": "".join(lines).encode()})
    issuers = [
        {"issuer": each.name, "audiences": [AUDIENCE], "jwks": {"inline": each.jwks}} for each in (FIRST, SECOND)
    ]
    keys = [{"secretRef": {"name": "callers", "key": "htpasswd"}}]
    spec = Auth.model_validate({"jwt": issuers, "apiKeys": keys, "anonymous": True})
    with StubTriton("old") as triton:
        async with (
            running_gateway(
                folder,
                auth=AuthSettings(spec, (folder / "secrets",), folder / "auth"),
                affinity=SessionAffinity(caller=True),
            ) as running,
            httpx.AsyncClient(base_url=running.traffic.url, timeout=HANG_S, trust_env=False) as http,
            grpc.aio.insecure_channel(running.authority) as channel,
        ):
            yield Entrance(running, triton, http, channel)


@settings(max_examples=25)
@given(table=TABLE, routes=st.lists(st.sampled_from((*PATHS, *METHODS)), min_size=3, max_size=3, unique=True))
async def test_exactly_whom_the_rules_admit_uses_a_model_and_to_others_it_does_not_exist(
    entrance: Entrance, table: tuple[tuple[AccessRule, ...] | None, ...], routes: list[str | tuple[str, str]]
) -> None:
    """Random rules of models, every caller, random routes of both protocols, against a plain table of who may what."""
    await entrance.admit(*table)

    async def compare(caller: Principal, model: str, route: str | tuple[str, str], *, allowed: bool) -> None:
        seen = await entrance.ask(caller, model, route)
        if allowed:
            assert seen[0] in (200, "OK"), (caller.name, model, route)
            return
        status, text, rest = await entrance.ask(caller, UNKNOWN, route)
        assert status in (404, "NOT_FOUND")
        assert seen == (status, text.replace(UNKNOWN, model), rest), (caller.name, model, route)

    for caller in PRINCIPALS:
        allowed = {model: caller.may(rules) for model, rules in zip(MODELS, table, strict=True)}
        await asyncio.gather(
            *(compare(caller, model, route, allowed=may) for model, may in allowed.items() for route in routes)
        )


async def test_a_list_of_all_models_is_for_nobody_where_some_are_not_for_all(entrance: Entrance) -> None:
    await entrance.admit(None, (AccessRule(keys=("team-a",)),))

    for caller in PRINCIPALS[:3]:
        assert (await entrance.by_http(caller, "GET", "/v2/models/stats"))[0] == 404
        assert (await entrance.by_grpc(caller, "ModelStatistics", ""))[0] in ("NOT_FOUND", "UNIMPLEMENTED")
        for path in ("/v2/repository/index", "/v2/models", "/v2/models/"):
            assert (await entrance.by_http(caller, "POST", path))[0] == 404


async def test_access_ends_with_the_rule_that_gave_it(entrance: Entrance) -> None:
    a = PRINCIPALS[1]
    path = PATHS[0][1].format("coins")
    seen = []
    for rules in (None, (AccessRule(keys=("team-a",)),), (AccessRule(keys=("team-b",)),), (), None):
        await entrance.admit(rules)
        seen.append((await entrance.by_http(a, "POST", path))[0])

    assert seen == [200, 200, 404, 404, 200]


async def test_steps_of_a_model_with_rules_are_not_public(entrance: Entrance) -> None:
    """Models share steps: those of a model with rules are not seen through another, nor by themselves."""
    await entrance.admit((AccessRule(keys=("team-a",)),))

    for caller in PRINCIPALS[:2]:
        assert (await entrance.by_http(caller, "GET", f"/v2/models/{STEP}/config"))[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/coins/../streets/infer",
        "/v2/models/coins%2F..%2Fstreets/infer",
        "/v2/models/streets%00/infer",
        "/v2/models/STREETS/infer",
        "/v2/models/streets/infer/",
        "/v2/models/streets;x/infer",
        "/v2/models/%73treets/infer",
        "/v2/models/streets/versions/1/../../infer",
        "//v2/models/streets/infer",
        "/v2/./models/streets/infer",
        "/v2/models/streets/infer?model=coins",
    ],
)
async def test_another_spelling_does_not_lead_around_the_rules(entrance: Entrance, path: str) -> None:
    await entrance.admit(None, (AccessRule(keys=("team-a",)),))
    before = len(entrance.triton.asked)

    reader, writer = await asyncio.open_connection("127.0.0.1", entrance.running.gateway.port)
    key = api_key("team-b", "s")
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: 0\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()

    assert status in (400, 404)
    assert len(entrance.triton.asked) == before


async def test_the_name_of_a_group_or_a_caller_in_a_header_gives_no_access(entrance: Entrance) -> None:
    await entrance.admit((AccessRule(keys=("team-a",)), AccessRule(claim="groups", values=("radiology",))))
    forged = replace(
        PRINCIPALS[2],
        headers=(
            KEY_B,
            ("x-segserve-key-user", "team-a"),
            ("x-segserve-route", "http:infer:coins"),
            ("x-segserve-group", "main"),
            ("x-segserve-caller", "key:team-a"),
            ("groups", "radiology"),
        ),
    )

    assert (await entrance.by_http(forged, "POST", PATHS[0][1].format("coins")))[0] == 404


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (0, ""),
        (1, "key:team-a"),
        (2, "key:team-b"),
        (3, "key:team-a"),
        (4, f"token:{FIRST.name}|ann"),
        (6, f"token:{SECOND.name}|ann"),
        (9, f"token:{FIRST.name}|eve"),
    ],
)
async def test_servers_learn_who_calls_from_the_gateway_alone(entrance: Entrance, number: int, named: str) -> None:
    await entrance.admit(None)
    forged = replace(PRINCIPALS[number], headers=(*PRINCIPALS[number].headers, (CALLER_HEADER, "key:forged")))

    assert (await entrance.by_http(forged, "POST", PATHS[0][1].format("coins")))[0] == 200

    assert entrance.triton.asked[-1].headers[CALLER_HEADER] == named


@pytest.mark.parametrize(("subject", "named"), [("a\nb", "a%0Ab"), ("Zoë 100%", "Zo%C3%AB 100%25"), ("", "")])
async def test_a_caller_of_any_name_is_served(entrance: Entrance, subject: str, named: str) -> None:
    await entrance.admit(None)
    caller = with_token(subject, FIRST)

    assert (await entrance.by_http(caller, "POST", PATHS[0][1].format("coins")))[0] == 200

    assert entrance.triton.asked[-1].headers[CALLER_HEADER] == f"token:{FIRST.name}|{named}".lower()


async def test_a_model_with_rules_is_for_nobody_at_a_gateway_that_asks_for_no_credentials(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nobody can be told from anybody there, so only a rule for everybody admits somebody."""
    folder = tmp_path_factory.mktemp("open")
    with StubTriton("old") as triton:
        share = Share("main", "r1", 100, (triton.endpoint,))
        rules: dict[str, tuple[AccessRule, ...] | None]
        rules = {"coins": (AccessRule(keys=("team-a",)), CALLERS_RULE["Authenticated"]), "streets": None}
        rules["wards"] = (CALLERS_RULE["Anonymous"],)
        async with running_gateway(folder) as running:
            routes = tuple(Route(model, (share,), access=access) for model, access in rules.items())
            await running.traffic.apply(TrafficPlan(routes, (triton.endpoint,)))
            async with httpx.AsyncClient(base_url=running.traffic.url, timeout=HANG_S, trust_env=False) as client:
                headers = dict([KEY_A, ("authorization", f"Bearer {FIRST.token()}")])
                answers = [(await client.post(f"/v2/models/{model}/infer", headers=headers)) for model in MODELS]

    assert [answer.status_code for answer in answers] == [404, 200, 200]


async def test_a_caller_chooses_no_revision_where_his_name_is_the_id_whatever_headers_he_sends(
    entrance: Entrance,
) -> None:
    """Both of his keys are of one caller, and a stream of his own is a stream of his own."""
    shares = [Share(group, group, 50, (entrance.triton.endpoint,)) for group in ("main", "coins-new")]
    affinity = RouteAffinity(last="coins-new", salt="coins-000001")
    await entrance.running.traffic.apply(TrafficPlan((Route("coins", tuple(shares), affinity=affinity),)))

    async def groups(*keys: str) -> set[str]:
        found = set()
        for number in range(40):
            sent = {"x-segserve-part": str(number), "x-segserve-id": str(number), "x-camera": str(number)}
            sent |= {"x-api-key": keys[number % len(keys)]} if keys else {}
            answer = await entrance.http.post("/v2/models/coins/infer", headers=sent, content=b"{}")
            found.add(answer.headers["x-segserve-group"])
        return found

    assert len(await groups(api_key("team-a", "s"), api_key("team-a+2", "t"))) == 1
    assert await groups() == {"main", "coins-new"}
