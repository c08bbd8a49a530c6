"""The replay gives the comparator golden images, where callers bring no requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.golden_pictures import Pictures, check_of, context_of
from fakes.internal_gateway import internal_listener
from segserve_builder.golden.judging import builtin_image, cached_images
from segserve_operator.adapters.checks import replay
from segserve_operator.adapters.traffic.envoy_mirror import REPLAY_GROUP
from segserve_operator.core.gates.checks import CheckError, CheckResult

CHECK = check_of("replay", "coins-1/replay")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PERIOD_S", 0.0)


async def replayed(
    replies: list[int], images: tuple[bytes, ...] = (), golden: str = ""
) -> tuple[CheckResult, list[bytes]]:
    """Return the result of a replay whose requests are replied to so, the last reply for ever, and what was sent."""
    reported: list[CheckResult] = []
    async with internal_listener() as listener:
        listener.answers[REPLAY_GROUP] = lambda _: replies.pop(0) if len(replies) > 1 else replies[0]
        context = replace(context_of(listener), golden_images=lambda _, most: images[:most])
        try:
            result = await replay.run(replace(CHECK, golden=golden), context, reported.append)
        finally:
            await context.gateway.close()
    assert [each.asked[1] for each in reported] == list(range(1, result.asked[1] + 1))
    return result, [asked.image for asked in listener.asked]


async def test_without_golden_images_the_built_in_one_is_asked_a_few_times() -> None:
    result, sent = await replayed([204])

    assert (result.asked, result.done) == ((replay.FEWEST, replay.FEWEST), True)
    assert sent == [builtin_image()] * replay.FEWEST


async def test_each_golden_image_is_asked_at_least_once_and_few_of_them_more_often() -> None:
    few, many = (tuple(b"image %d" % number for number in range(count)) for count in (3, 40))

    assert Counter((await replayed([204], few, "0f"))[1]) == {few[0]: 3, few[1]: 3, few[2]: 2}
    assert Counter((await replayed([204], many, "0f"))[1]) == dict.fromkeys(many[: replay.MOST], 1)


async def test_an_image_that_the_comparator_has_no_room_for_comes_again_but_not_for_ever() -> None:
    result, sent = await replayed([429, 429, 204])
    assert (result.asked[1], len(sent)) == (replay.FEWEST, replay.FEWEST + 2)

    result, sent = await replayed([429])
    assert (result.asked[1], len(sent), result.done) == (0, replay.ATTEMPTS, True)


async def test_a_gateway_that_takes_no_images_gives_no_result() -> None:
    for status in (404, 503):
        with pytest.raises(CheckError, match=f"takes no images: it answered {status}"):
            await replayed([status])


def test_only_a_set_that_is_in_the_cache_is_replayed(tmp_path: Path) -> None:
    folder = tmp_path / "folders" / "0f"
    folder.mkdir(parents=True)
    assert cached_images(tmp_path, "0f", 3) == ()

    pictures = Pictures(folder)
    pictures.write(4)

    assert cached_images(tmp_path, "0f", 3) == tuple(pictures.shown)[:3]
