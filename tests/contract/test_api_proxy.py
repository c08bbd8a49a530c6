"""The proxy that tests put before a real API server does what they are to believe it does."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.api_proxy import ApiProxy
from fakes.api_proxy_rules import Kill, Rule
from fakes.kube_connection import client_of_file
from fakes.waiting import HANG_S, eventually
from segserve_common.api_errors import (
    ApiError,
    NotFoundError,
    UnavailableError,
)
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import CONFIG_MAPS, LEASES, NAMESPACES, Json
from segserve_common.kube.requests import Selector

pytestmark = pytest.mark.cluster


@dataclass
class Proxied:
    """A proxy, an API through it and one beside it."""

    proxy: ApiProxy
    through: AsyncKubeClient
    beside: AsyncKubeClient
    namespace: str
    kubeconfig: Path
    told: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def watch(self, prefix: str) -> None:
        """Tell of each event that a watch through the proxy brings of objects named so, and of its end."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(self.told.put_nowait, text)

        def follow() -> None:
            try:
                items, version = client.list(CONFIG_MAPS)
                for item in items:
                    if item["metadata"]["name"].startswith(prefix):
                        tell(f"ADDED {item['metadata']['name']}")
                for event in client.watch(Selector(CONFIG_MAPS), version):
                    if event.object["metadata"]["name"].startswith(prefix):
                        tell(f"{event.type} {event.object['metadata']['name']}")
            except ApiError as error:  # whatever ends it is what the test looks at
                if not ended.is_set():
                    tell(type(error).__name__)

        with client_of_file(self.kubeconfig, self.namespace) as client:
            try:
                await asyncio.to_thread(follow)
            finally:
                ended.set()

    async def exists(self, name: str) -> bool:
        try:
            await self.beside.get(CONFIG_MAPS, self.namespace, name)
        except NotFoundError:
            return False
        return True


@pytest.fixture(scope="module")
def namespace(kubeconfig: Path) -> Iterator[str]:
    name = f"proxy-{uuid.uuid4().hex[:8]}"
    with client_of_file(kubeconfig, name) as client:
        client.create(NAMESPACES, {"metadata": {"name": name}})
        yield name
        client.delete(NAMESPACES, name)


@pytest.fixture
async def proxied(kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Proxied]:
    async with ApiProxy(kubeconfig).running() as proxy, AsyncKubeClient.connect(kubeconfig) as beside:
        proxys = proxy.write_kubeconfig(tmp_path / "kubeconfig")
        async with AsyncKubeClient.connect(proxys) as through:
            yield Proxied(proxy, through, beside, namespace, proxys)


def config(name: str, **data: str) -> Json:
    return {"metadata": {"name": name}, "data": data}


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


async def test_all_calls_pass_and_only_writes_are_counted(proxied: Proxied, name: str) -> None:
    api, namespace = proxied.through, proxied.namespace
    await api.create(CONFIG_MAPS, namespace, config(name, key="1"))
    await api.apply(CONFIG_MAPS, namespace, config(name, more="2"))
    await api.patch(CONFIG_MAPS, namespace, name, {"data": {"key": None}})
    assert (await api.get(CONFIG_MAPS, namespace, name))["data"] == {"more": "2"}
    assert len(await api.versions(CONFIG_MAPS, namespace, {})) >= 1
    await api.create(LEASES, namespace, {"metadata": {"name": name}, "spec": {}})
    await api.delete(CONFIG_MAPS, namespace, name)

    seen = [(call.method, call.resource, call.name) for call in proxied.proxy.writes]
    assert seen == [
        ("POST", "configmaps", ""),
        ("PATCH", "configmaps", name),
        ("PATCH", "configmaps", name),
        ("DELETE", "configmaps", name),
    ]
    assert len(proxied.proxy.calls) == 7


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_process_dies_before_or_after_its_write(
    proxied: Proxied, name: str, after: bool, victim: subprocess.Popen[bytes]
) -> None:
    proxied.proxy.add(Rule(Kill(victim.kill, after=after)))

    with pytest.raises(UnavailableError):
        await proxied.through.apply(CONFIG_MAPS, proxied.namespace, config(name))

    assert victim.wait(HANG_S) == -signal.SIGKILL
    assert await proxied.exists(name) == after


async def test_watches_bring_events_late_never_again_or_end(proxied: Proxied, name: str) -> None:
    async def told(seconds: float = HANG_S) -> str:
        async with asyncio.timeout(seconds):
            return await proxied.told.get()

    async def make(name: str) -> str:
        await proxied.beside.apply(CONFIG_MAPS, proxied.namespace, config(name))
        return f"ADDED {name}"

    async def watching(prefix: str) -> asyncio.Task[None]:
        task = asyncio.create_task(proxied.watch(prefix))
        assert await make(f"{prefix}-first") == await told()
        # The first may have been listed; what is made after the list comes by the watch, which is open then.
        assert await make(f"{prefix}-second") == await told()
        return task

    await watching(f"{name}-a")
    proxied.proxy.watch_delay_s = 0.5
    began = asyncio.get_running_loop().time()
    assert await make(f"{name}-a-late") == await told()
    assert asyncio.get_running_loop().time() - began >= 0.5
    proxied.proxy.heal()
    proxied.proxy.expire_watches()
    assert await told() == "GoneError"

    await watching(f"{name}-b")
    proxied.proxy.reset_watches()
    assert await told() == "UnavailableError"

    lost = await watching(f"{name}-c")
    proxied.proxy.watch_silent = True
    await make(f"{name}-c-in-silence")

    async def has_lost_it() -> bool:
        return proxied.proxy.lost_watches > 0

    await eventually(has_lost_it, "a watch has lost an event")
    proxied.proxy.watch_silent = False
    await watching(f"{name}-d")
    await make(f"{name}-c-after-it")
    assert await make(f"{name}-d-after-it") == await told()
    assert proxied.told.empty()
    lost.cancel()
