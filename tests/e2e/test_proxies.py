"""A machine whose environment names proxies, which an office does: what is on this machine is reached without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.platform import MODELS, Running
from segserve import Client, Local

pytestmark = [pytest.mark.platform, pytest.mark.core]

NOBODY = "http://127.0.0.1:9"


def test_a_platform_serves_and_is_managed_without_the_environments_proxies(
    coins: Running, serve: Callable[..., Running], photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `coins` has installed what a platform runs in, for which proxies are used.
    for scheme in ("http", "https", "all", "grpc", "ftp", "ws"):
        monkeypatch.setenv(f"{scheme}_proxy", NOBODY)
        monkeypatch.setenv(f"{scheme}_proxy".upper(), NOBODY)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "photo.png").write_bytes(photo)

    running = serve(MODELS)
    answers: dict[str, Any] = {}
    for transport in ("http", "grpc"):
        with Client(running.url, transport=transport, platform=Local(running.state)) as client:
            answers[transport] = len(client.segment(photo, model="coins-instances"))
            assert {each.metadata.name for each in client.models.list()} >= {"coins", "coins-instances"}

    assert answers["http"] == answers["grpc"] > 20
    assert "photo.png" in running.segserve("predict", "coins-instances", str(tmp_path / "photo.png"), "--json")
    assert "True" in running.segserve("get")
    assert "has all requests" in running.segserve("why", "coins")
