"""`segserve down` and `up` while a promoted revision is watched, on the real parts: no evidence, one truth after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.coins import variant, write
from bench.platform import Running
from fakes.waiting import meanwhile, until
from segserve import Client, SegserveError

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

POLICY = {"steps": [{"weight": 50, "pause": True}], "bakeTime": "10m", "shadow": {"enabled": False}}


def test_a_restart_in_the_bake_quarantines_nobody_and_a_rollback_after_it_is_told_alike(
    serve: Callable[..., Running], photo: bytes, tmp_path: Path
) -> None:
    first = variant(rollout=POLICY)
    second = variant(rollout=POLICY, postprocess=[*first["spec"]["postprocess"], {"fillHoles": {"max_area": 7}}])
    running = serve(write(tmp_path / "first.yaml", first))
    port = running.url.rpartition(":")[2]
    running.segserve("apply", "-f", str(write(tmp_path / "second.yaml", second)))

    def status() -> dict[str, Any]:
        return dict(json.loads(running.segserve("get", "coins", "-o", "json"))["status"])

    until(lambda: (status().get("rollout") or {}).get("phase") == "Progressing", "its step")
    running.segserve("rollout", "promote", "coins")
    stable, former = status()["roles"]["stable"]["revision"], status()["roles"]["previous"]["revision"]

    def call_on(ended: threading.Event) -> None:
        with Client(running.url) as client:
            while not ended.is_set():
                try:
                    client.segment(photo, model="coins", timeout_s=5)
                except SegserveError:
                    ended.wait(0.05)

    with meanwhile(call_on), meanwhile(call_on):
        running.segserve("down")
        up = subprocess.run(
            [sys.executable, "-m", "segserve_platform.cli", "up", "--detach", "--port", port, "--timeout", "120s"],
            env=os.environ | {"SEGSERVE_STATE": str(running.state)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert up.returncode == 0, up.stderr
        assert "; a rollout is in progress: coins-" in up.stdout
        until(lambda: status()["weight"] == 95, "the weight of the bake")

    assert status()["rollout"]["quarantines"] == 0
    assert "Quarantined" not in running.segserve("why", "coins")
    assert status()["phase"] == "Baking"

    answered = running.segserve("rollout", "rollback", "coins")
    until(lambda: status()["weight"] == 0, "the rollback")
    shown = [running.segserve("why", "coins"), answered, running.segserve("describe", "coins")]
    failed = subprocess.run(
        [sys.executable, "-m", "segserve_platform.cli", "rollout", "status", "coins"],
        env=os.environ | {"SEGSERVE_STATE": str(running.state), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    with Client(running.url) as client:
        revision = client.segment(photo, model="coins").revision

    assert revision == former
    assert f"{former} has all requests" in shown[0]
    assert f"{former} has all requests; {stable} was left" in shown[1]
    assert f"{former} has all requests" in failed.stdout
    assert failed.returncode == 1
    assert f"{stable} has all requests" not in "".join((*shown, failed.stdout))
