"""Bundles that are made while passes go on: bounded, tried again, and their servers kept until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fakes.kube import FakeKube
from segserve_common.api_errors import ApiError, ForbiddenError, UnavailableError
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_operator.adapters.bundles.background import ATTEMPTS, MAX_CONCURRENT, MAX_WAITING, BackgroundBundles
from segserve_operator.adapters.bundles.cluster import ClusterBundles
from segserve_operator.adapters.bundles.local import LocalBundles
from segserve_operator.adapters.kube.view import PoolKey
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.record import Record

RECORD = Record("coins-7f", "coins", "coins-r1", "coins-r2", RolloutPolicy(), Slo(), Progress.begun(1000.0))


@dataclass
class Writer:
    """Writes bundles once it may, and fails as often as it is told to."""

    errors: list[Callable[[], Exception]] = field(default_factory=list)
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    saved: list[str] = field(default_factory=list)
    attempts: int = 0
    busy: int = 0
    most: int = 0

    async def save(self, record: Record, group: str) -> str:
        self.attempts, self.busy = self.attempts + 1, self.busy + 1
        self.most = max(self.most, self.busy)
        try:
            await self.may_write.wait()
        finally:
            self.busy -= 1
        if self.errors:
            raise self.errors.pop(0)()
        self.saved.append(record.name)
        return "there"


class NoLogs:
    """Pods without a log."""

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> bytes:
        return b""


async def no_sleep(_: float) -> None:
    """Go on at once."""
    await asyncio.sleep(0)


def bundles_of(writer: Writer) -> BackgroundBundles:
    return BackgroundBundles(writer, sleep=no_sleep)


async def test_nobody_waits_for_a_bundle_and_its_groups_are_known_until_it_is_made() -> None:
    writer = Writer()
    bundles = bundles_of(writer)
    bundles.save(RECORD, "canary")
    bundles.save(RECORD, "canary")

    assert (writer.saved, bundles.reading()) == ([], {"canary"})

    writer.may_write.set()
    await bundles.finish()

    assert (writer.saved, bundles.reading()) == (["coins-7f"], frozenset())


@pytest.mark.parametrize(
    "error",
    [lambda: UnavailableError("no answer"), lambda: ForbiddenError("quota"), lambda: OSError("full")],
    ids=["no answer", "quota", "full disk"],
)
async def test_a_bundle_that_fails_is_tried_again(error: Callable[[], Exception]) -> None:
    writer = Writer(errors=[error] * (ATTEMPTS - 1))
    writer.may_write.set()
    bundles = bundles_of(writer)
    bundles.save(RECORD, "canary")
    await bundles.finish()

    assert (writer.saved, writer.attempts) == (["coins-7f"], ATTEMPTS)


async def test_a_bundle_that_fails_for_good_is_logged_and_gives_its_group_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = Writer(errors=[lambda: ForbiddenError("exceeded quota")] * ATTEMPTS)
    writer.may_write.set()
    bundles = bundles_of(writer)
    bundles.save(RECORD, "canary")
    await bundles.finish()

    assert (writer.saved, bundles.reading()) == ([], frozenset())
    assert "no bundle of rollout coins-7f: exceeded quota" in caplog.text


async def test_so_many_bundles_are_made_at_the_same_time_and_so_many_wait() -> None:
    writer = Writer()
    bundles = bundles_of(writer)
    for number in range(MAX_WAITING + 5):
        bundles.save(replace(RECORD, name=f"coins-{number}"), f"group-{number}")
    await asyncio.sleep(0)

    assert len(bundles.reading()) == MAX_WAITING

    writer.may_write.set()
    await bundles.finish()

    assert writer.most == MAX_CONCURRENT
    assert len(writer.saved) == MAX_WAITING


async def test_at_the_end_of_the_process_what_takes_too_long_is_given_up() -> None:
    writer = Writer()
    bundles = bundles_of(writer)
    bundles.save(RECORD, "canary")
    await bundles.finish(timeout_s=0)

    assert (writer.saved, bundles.reading()) == ([], frozenset())


async def test_where_a_bundle_cannot_be_written_its_writer_says_why(tmp_path: Path) -> None:
    kube = FakeKube()
    with pytest.raises(ApiError, match="coins-7f"):
        await ClusterBundles(kube, NoLogs(), PoolKey("lab", "default")).save(RECORD, "canary")
    assert kube.all(CONFIG_MAPS) == []
    (tmp_path / "bundles").write_text("in the way")
    with pytest.raises(OSError, match="bundles"):
        await LocalBundles(StateFolder(tmp_path)).save(RECORD, "canary")
