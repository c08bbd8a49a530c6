"""The API key of this machine: who else reaches its gateway, and what of the key remains."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bench.ports import free_ports
from fakes.gateway_clients import served
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import STATE_VARIABLE, StateFolder
from segserve_operator.adapters.local.gateway import LocalGateway
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.api.triton_pool import Gateway
from segserve_platform.cli.lifecycle import require_api_key

pytestmark = [pytest.mark.platform, pytest.mark.core]

INFER = "/v2/models/coins/infer"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    return StateFolder(tmp_path / "state")


def new_key(capsys: pytest.CaptureFixture[str]) -> str:
    """Do what `segserve up --auth key` does, and return the key that it prints."""
    require_api_key("key")
    return capsys.readouterr().out.strip().rpartition("SEGSERVE_API_KEY=")[2]


def spec_of(state: StateFolder, port: int) -> Gateway:
    return LocalStore(state).pool().spec.gateway.model_copy(update={"port": port})


@pytest.fixture
async def gateway(state: StateFolder) -> AsyncIterator[LocalGateway]:
    state.create()
    state.gateway.mkdir()
    gateway = LocalGateway(state, Gateway(port=free_ports(1)[0]))
    yield gateway
    processes.end_marked_processes(state.root, grace_s=5)


async def status(gateway: LocalGateway, key: str | None) -> int:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=HANG_S, trust_env=False) as client:
        headers = {} if key is None else {"x-api-key": key}
        return (await client.post(INFER, headers=headers, content=b"image")).status_code


async def test_a_gateway_that_runs_asks_for_the_key_as_soon_as_the_pool_says_so(
    state: StateFolder, gateway: LocalGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(gateway.url.rpartition(":")[2])
    with StubTriton("old") as triton:
        plan = served(triton)

        async def becomes(wanted: int, key: str | None) -> None:
            async def reached() -> bool:
                gateway.follow(spec_of(state, port))
                if (await gateway.observe()).plan is None:
                    return False
                return await status(gateway, key) == wanted

            await eventually(reached, f"the response has the status {wanted}")

        await eventually(lambda: _follows(gateway), "the gateway follows a plan")
        await gateway.apply(plan)
        assert await status(gateway, None) == 200

        first = new_key(capsys)
        await becomes(401, None)
        assert await status(gateway, first) == 200
        second = new_key(capsys)
        await becomes(401, first)
        assert await status(gateway, second) == 200


async def _follows(gateway: LocalGateway) -> bool:
    return (await gateway.observe()).plan is not None


def test_the_key_is_long_and_only_its_hash_remains_for_this_user_alone(
    state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    key = new_key(capsys)

    name, _, secret = base64.b64decode(key).decode().partition(":")
    assert name == "local"
    assert len(base64.urlsafe_b64decode(secret + "==")) >= 32
    kept = [path for path in state.root.rglob("*") if path.is_file()]
    assert not [path for path in kept if key in path.read_text() or secret in path.read_text()]
    (hashed,) = (path for path in kept if path.name == "htpasswd")
    assert hashed.stat().st_mode & 0o777 == 0o600
    assert base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode() in hashed.read_text()
    assert state.root.stat().st_mode & 0o777 == 0o700


def test_the_key_of_this_machine_is_one_more_beside_the_callers_of_the_pool(
    state: StateFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(state)
    state.create()
    store.set_gateway_keys("callers", "htpasswd")

    new_key(capsys)
    new_key(capsys)

    auth = store.pool().spec.gateway.auth
    assert [each.secret_ref.name for each in auth.api_keys] == ["callers", "generated-keys"]
