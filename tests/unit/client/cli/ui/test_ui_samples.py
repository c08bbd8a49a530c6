"""The page's gallery: samples that models of this machine keep."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fakes.captured_samples import keep_samples
from fakes.control import ClusterHarness, LocalHarness

from .conftest import COINS, Page, entered, serving_models


@pytest.fixture
async def gallery(local: LocalHarness, tmp_path: Path) -> AsyncIterator[Page]:
    """The page of a platform whose model coins has three samples, and whose model discs keeps none."""
    keep_samples(serving_local(local), COINS, tmp_path / "samples")
    async for each in entered(local, lambda _: nullcontext("http://127.0.0.1:9")):
        yield each


def serving_local(local: LocalHarness) -> LocalHarness:
    serving_models(local, "discs")
    return local


def requests(seen: Any) -> list[str]:
    """Return which samples are shown, by their second."""
    return [each["capturedAt"][-8:-6] for each in seen["samples"]]


async def test_the_samples_of_a_model_come_with_why_they_were_kept_and_what_is_in_them(gallery: Page) -> None:
    seen = await gallery.get("/api/samples")

    assert (seen["models"], seen["model"], seen["total"]) == (["coins"], "coins", 3)
    assert seen["reasons"] == {"uncertain": 1, "share": 2, "empty": 1}
    assert seen["classes"] == {"coin": 2, "ring": 1}
    newest = seen["samples"][0]
    assert (newest["classes"], newest["reasons"]) == ({"coin": 1, "ring": 2}, ["share"])
    assert (newest["height"], newest["width"]) == (30, 40)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, ["43", "42", "41"]),
        ({"reason": "share"}, ["43", "41"]),
        ({"class": "ring"}, ["43"]),
        ({"class": "coin", "reason": "uncertain"}, ["41"]),
        ({"class": "nope"}, []),
    ],
)
async def test_filters_are_held_together(gallery: Page, given: dict[str, str], shown: list[str]) -> None:
    assert requests(await gallery.get("/api/samples", **given)) == shown


async def test_an_image_is_shown_small_and_opened_as_it_was_kept(gallery: Page) -> None:
    newest = (await gallery.get("/api/samples"))["samples"][0]
    path = f"/api/samples/coins/{newest['key']}"

    whole = await gallery.client.get(path)
    small = await gallery.client.get(path, params={"size": "small"})

    assert (whole.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")
    for each in (whole, small):
        with Image.open(io.BytesIO(each.content)) as image:
            assert image.size == (40, 30)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/api/samples?reason=why", 400, "allowed: uncertain, disagree, error, empty, drift, share"),
        ("/api/samples?model=discs", 404, "'discs' keeps no samples; these models do: coins"),
        ("/api/samples/coins/..%2f..%2fetc", 404, "Not Found"),
        ("/api/samples/coins/nope", 404, "coins has no sample 'nope'"),
    ],
)
async def test_what_is_not_there_is_named(gallery: Page, path: str, status: int, text: str) -> None:
    answer = await gallery.client.get(path)

    assert answer.status_code == status
    assert text in answer.text


async def test_without_samples_the_page_says_why(local: LocalHarness) -> None:
    for harness in (serving_local(local), serving_models(ClusterHarness(), "discs")):
        async for page in entered(harness, lambda _: nullcontext("http://127.0.0.1:9")):
            seen = await page.get("/api/samples")
            assert seen["samples"] == []
            assert ("segserve samples list" in seen["example"]) is isinstance(harness, ClusterHarness)
            assert ("spec.capture" in seen["note"]) is isinstance(harness, LocalHarness)
