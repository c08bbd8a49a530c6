"""The page over platforms in memory, and a gateway in memory behind it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from fakes.control import ClusterHarness, Harness, LocalHarness, status
from fakes.kserve import Gateway
from segserve import Client, Local
from segserve.platform import Cluster
from segserve_platform.platforms.metrics import MetricsSource
from segserve_platform.platforms.selection import open_platform
from segserve_ui.app import create_app
from segserve_ui.backend import UiPlatform
from segserve_ui.guard import Guard, PageAccess

from ...conftest import HEIGHT, WIDTH

EXAMPLE = Path(__file__).parents[5] / "examples/coins/model.yaml"
COINS: dict[str, Any] = next(yaml.safe_load_all(EXAMPLE.read_text()))
PORT = 4711


@dataclass
class Page:
    """The page as its own scripts ask it, and the platform behind it."""

    app: Guard
    access: PageAccess
    client: httpx.AsyncClient
    harness: Harness
    place: UiPlatform
    opened: list[str] = field(default_factory=list)
    """The models whose gateway was made reachable, in order."""

    async def get(self, path: str, **given: str) -> Any:
        return (await self.client.get(path, params=given)).json()

    async def segment(self, image: bytes, model: str = "discs", /, **given: str) -> Any:
        answer = await self.client.post("/api/segment", params={"model": model, **given}, content=image)
        return answer.json() | {"status": answer.status_code}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_platform.platforms.local.POLL_S", 0.02)
    monkeypatch.setattr("segserve_ui.app.REFRESH_S", 0.0)
    for name in ("SEGSERVE_API_KEY", "SEGSERVE_CA_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["this machine", "a cluster"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """A platform with the models coins and discs, which serve."""
    found = LocalHarness(tmp_path / "state") if request.param == "this machine" else ClusterHarness()
    return serving_models(found, "coins", "discs")


def serving_models(found: Harness, *names: str) -> Harness:
    """Apply models and say that they serve."""
    with Client(platform=found.place()) as client:
        for name in names:
            model = deepcopy(COINS)
            model["metadata"]["name"] = name
            for part in ("artifact", "golden"):
                model["spec"][part]["uri"] = (EXAMPLE.parent / model["spec"][part]["uri"]).as_uri()
            client.models.apply(model)
            found.tell(name, status())
    return found


@pytest.fixture
def local(tmp_path: Path) -> LocalHarness:
    """This machine's platform without models."""
    return LocalHarness(tmp_path / "state")


@pytest.fixture
async def page(harness: Harness, gateway: Gateway) -> AsyncIterator[Page]:
    """The page, with its token."""
    with gateway.http() as url:
        async for each in entered(harness, lambda _: nullcontext(url)):
            yield each


async def entered(harness: Harness, open_gateway: Callable[[str], AbstractContextManager[str]]) -> AsyncIterator[Page]:
    opened: list[str] = []

    def opening(model: str) -> AbstractContextManager[str]:
        opened.append(model)
        return open_gateway(model)

    found = harness.place()
    is_local = isinstance(found, Local)
    place = UiPlatform(
        found if isinstance(found, Local) else Cluster("lab-context", "lab"),
        open_platform(found) if isinstance(found, Local) else found,
        opening,
        MetricsSource(harness.state) if is_local and isinstance(harness, LocalHarness) else None,
    )
    access = PageAccess(PORT)
    app, backend = create_app(place, access)
    transport = httpx.ASGITransport(app=app)
    headers = {"origin": access.origins[0], "authorization": access.authorization}
    async with httpx.AsyncClient(transport=transport, base_url=access.origins[0], headers=headers) as client:
        yield Page(app, access, client, harness, place, opened)
    backend.close()


@pytest.fixture
def tiff() -> bytes:
    """An image that browsers do not decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 199)).save(buffer, "TIFF")
    return buffer.getvalue()
