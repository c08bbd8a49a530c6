"""Drift on the real Triton."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from bench.coins import variant, write
from bench.platform import Running
from fakes.callers import SteadyCaller
from fakes.waiting import meanwhile, until
from segserve import Client, Local

pytestmark = pytest.mark.platform

NAME = "watched"
DRIFT = {
    "window": "5s",
    "minAnswers": 10,
    "falseAlarmsPerMonth": 30,
    "reference": {"window": {"duration": "1m"}},
}
"""Windows of seconds are for a test alone."""
PATIENCE_S = 300.0


def drifting(client: Client) -> tuple[str, str, str]:
    """Return status, reason and message of the condition."""
    conditions = client.models.get(NAME).status.conditions
    return next(((each.status, each.reason, each.message) for each in conditions if each.type == "Drifting"), ("",) * 3)


def becomes(client: Client, status: str, words: str) -> None:
    def reached() -> bool:
        seen, _, message = drifting(client)
        return seen == status and words in message

    until(reached, f"Drifting is {status} with {words!r}, it was {drifting(client)}", within_s=PATIENCE_S)


def test_darker_images_are_found_by_the_first_minute_of_a_revision(
    serve: Callable[..., Running], tmp_path: Path, photo: bytes
) -> None:
    running = serve(write(tmp_path / "model.yaml", variant(name=NAME, drift=DRIFT)))
    written = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(photo)).convert("RGB")).enhance(0.3).save(written, "PNG")

    with Client(running.url, platform=Local(running.state)) as client:
        caller = SteadyCaller(running.url, (NAME,), photo, pause_s=0.05)
        with meanwhile(caller.call):
            becomes(client, "False", "as those of the reference")
            caller.image = written.getvalue()
            becomes(client, "True", "brightness: PSI")
