"""Notifications arrive at real receivers, in order, and a bad receiver harms nobody else."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from fakes.kube import FakeKube
from fakes.waiting import HANG_S
from fakes.webhook import webhook
from segserve_common.http.urls import AddressCheck, own_service, service_check
from segserve_common.kube.kinds import SECRETS, Json
from segserve_operator.adapters.notify.messages import Message, Secret, Target, direct_post
from segserve_operator.adapters.notify.notifier import MAX_QUEUED, Notifier, PoolAnnouncer, targets
from segserve_operator.api.triton_pool import TritonPoolSpec
from segserve_operator.core.drift.watch import DriftedHistogram
from segserve_operator.core.models.actions import Announce, AnnounceDrift
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.event import Event
from segserve_operator.main import Secrets

MESSAGE = Message(
    model="coins",
    namespace="lab",
    rollout="coins-7f",
    sequence=4,
    revision="coins-r2",
    phase="RolledBack",
    weight=0,
    reason="RolledBack",
    message="coins-r2 was rolled back after 40 s: errors <5 %>",
    at_s=1_700_000_000.0,
    url="http://gateway:8080",
)


def quick(*, check_address: AddressCheck = own_service, timeout_s: float = HANG_S) -> Notifier:
    return Notifier(post=direct_post(check_address), timeout_s=timeout_s, delays_s=(0.01, 0.01))


def failing(*statuses: int) -> object:
    return lambda number: web.Response(status=statuses[min(number, len(statuses)) - 1])


async def test_a_message_arrives_as_json_that_says_all_of_it() -> None:
    async with webhook() as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert receiver.received == [
        {
            "id": "lab/coins-7f/4/RolledBack/1700000000",
            "model": "coins",
            "namespace": "lab",
            "rollout": "coins-7f",
            "revision": "coins-r2",
            "phase": "RolledBack",
            "weight": 0,
            "reason": "RolledBack",
            "message": "coins-r2 was rolled back after 40 s: errors <5 %>",
            "at": "2023-11-14T22:13:20Z",
            "url": "http://gateway:8080",
        }
    ]
    assert notifier.counts == {"sent": 1}


async def test_a_receiver_that_fails_twice_gets_the_same_message_a_third_time() -> None:
    async with webhook(answer=failing(500, 429, 200)) as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert [each["id"] for each in receiver.received] == ["lab/coins-7f/4/RolledBack/1700000000"] * 3
    assert notifier.counts == {"sent": 1}


async def test_after_three_tries_a_message_is_given_up_and_the_next_one_sent() -> None:
    async with webhook(answer=failing(503, 503, 503, 200)) as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        notifier.send([Target(receiver.url)], replace(MESSAGE, sequence=5))
        await notifier.idle()
    assert [each["id"] for each in receiver.received][2:] == [
        "lab/coins-7f/4/RolledBack/1700000000",
        "lab/coins-7f/5/RolledBack/1700000000",
    ]
    assert notifier.counts == {"failed": 1, "sent": 1}


@pytest.mark.parametrize("status", [400, 404, 410])
async def test_what_a_receiver_does_not_want_is_not_sent_again(status: int) -> None:
    async with webhook(answer=failing(status)) as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert len(receiver.received) == 1
    assert notifier.counts == {"failed": 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with webhook() as elsewhere, quick() as notifier:
        location = {"Location": elsewhere.url}
        async with webhook(answer=lambda _: web.Response(status=status, headers=location)) as receiver:
            notifier.send([Target(receiver.url)], MESSAGE)
            await notifier.idle()
    assert (len(receiver.received), elsewhere.received) == (1, [])
    assert notifier.counts == {"failed": 1}


async def test_a_receiver_that_is_slow_is_given_up_and_holds_no_other_up() -> None:
    attempts: Counter[str] = Counter()
    post = direct_post(own_service)

    async def impatient(url: str, payload: Mapping[str, Any], timeout_s: float) -> int:
        attempts[url] += 1
        return await post(url, payload, 0.2 if url == slow.url else timeout_s)

    async with webhook(delay_s=HANG_S) as slow, webhook() as receiver:
        notifier = Notifier(post=impatient, timeout_s=HANG_S, delays_s=(0.01, 0.01))
        notifier.send([Target(slow.url), Target(receiver.url)], MESSAGE)
        await notifier.idle()
        assert attempts == {slow.url: 3, receiver.url: 1}
        assert len(receiver.received) == 1
        assert notifier.counts == {"failed": 1, "sent": 1}


async def test_what_a_receiver_says_is_not_read() -> None:
    def endless(_: int) -> web.Response:
        return web.Response(body=b"x" * 50_000_000)

    async with webhook(answer=endless) as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert notifier.counts == {"sent": 1}


async def test_nobody_listens_and_nothing_is_raised() -> None:
    async with quick() as notifier:
        notifier.send([Target("http://127.0.0.1:9/"), Target("http://"), Target("ftp://127.0.0.1/")], MESSAGE)
        await notifier.idle()
    assert notifier.counts == {"failed": 3}


async def test_of_too_many_messages_the_oldest_are_dropped_and_the_others_come_in_order() -> None:
    async with webhook() as receiver, quick() as notifier:
        for sequence in range(MAX_QUEUED + 10):
            notifier.send([Target(receiver.url)], replace(MESSAGE, sequence=sequence))
        await notifier.idle()
    told = [int(each["id"].split("/")[2]) for each in receiver.received]
    assert told == list(range(10, MAX_QUEUED + 10))
    assert notifier.counts == {"dropped": 10, "sent": MAX_QUEUED}


async def test_a_pass_goes_on_before_anything_was_sent() -> None:
    async with webhook() as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        assert receiver.received == []
        await notifier.idle()


async def test_on_a_cluster_the_operator_itself_is_no_receiver() -> None:
    async with webhook() as receiver, quick(check_address=service_check((), "notifications.hosts")) as notifier:
        local = receiver.url.replace("127.0.0.1", "localhost")
        notifier.send([Target(receiver.url), Target(local)], MESSAGE)
        await notifier.idle()
    assert receiver.received == []
    assert notifier.counts == {"refused": 2}


async def test_a_receiver_is_called_by_its_name_though_reached_by_its_address() -> None:
    async with webhook() as receiver, quick() as notifier:
        notifier.send([Target(receiver.url.replace("127.0.0.1", "localhost"))], MESSAGE)
        await notifier.idle()
    assert [host.partition(":")[0] for host in receiver.hosts] == ["localhost"]


async def test_secrets_of_urls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with webhook(answer=failing(500)) as receiver, quick() as notifier:
        notifier.send([Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert "127.0.0.1: answered 500" in caplog.text
    assert "secret" not in caplog.text


async def test_the_end_does_not_wait_for_a_dead_receiver() -> None:
    async with webhook(delay_s=30) as slow:
        notifier = Notifier(post=direct_post(own_service))
        notifier.send([Target(slow.url)], MESSAGE)
        await asyncio.sleep(0.05)
        await notifier.aclose(grace_s=0.05)
        await notifier.idle()
        assert notifier.counts == {}


async def test_what_became_of_messages_is_told_to_who_counts() -> None:
    told: list[str] = []
    async with webhook() as receiver, Notifier(post=direct_post(own_service), on_outcome=told.append) as notifier:
        notifier.send([Target(receiver.url), Target("http://169.254.169.254/"), Target("file:///etc")], MESSAGE)
        await notifier.idle()
    assert sorted(told) == ["failed", "refused", "sent"]


SECRET = Target(secret=Secret("lab", "hooks", "chat"))


async def test_a_url_that_is_secret_is_read_when_it_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    async with webhook() as receiver:
        kube = FakeKube()
        kube.put(SECRETS, secret(chat=f"{receiver.url}\n"))
        async with Notifier(post=direct_post(own_service), read=Secrets(kube).read) as notifier:
            notifier.send([SECRET], MESSAGE)
            await notifier.idle()
    assert notifier.counts == {"sent": 1}
    assert "hook" not in caplog.text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "has no key 'chat'"),
        ({"other": "x"}, "has no key 'chat'"),
        ({"chat": "not a url"}, "secret hooks: scheme ''"),
    ],
)
async def test_a_secret_that_holds_no_url_is_told_and_nothing_of_it_shown(
    values: dict[str, str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    kube = FakeKube()
    kube.put(SECRETS, secret(**values))
    async with Notifier(post=direct_post(own_service), delays_s=(0.01,), read=Secrets(kube).read) as notifier:
        notifier.send([SECRET], MESSAGE)
        await notifier.idle()
    assert notifier.counts == {"failed": 1}
    assert text in caplog.text
    assert "other" not in caplog.text
    assert "not a url" not in caplog.text


@pytest.mark.parametrize("reader", [{}, {"read": Secrets(FakeKube()).read}], ids=["here", "not there"])
async def test_a_secret_that_cannot_be_read_fails_its_own_messages_alone(reader: Any) -> None:
    async with webhook() as receiver, Notifier(post=direct_post(own_service), delays_s=(0.01,), **reader) as notifier:
        notifier.send([SECRET, Target(receiver.url)], MESSAGE)
        await notifier.idle()
    assert notifier.counts == {"failed": 1, "sent": 1}


def secret(**values: str) -> Json:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"metadata": {"name": "hooks", "namespace": "lab"}, "data": data}


def test_targets_are_those_of_the_pool_in_its_namespace() -> None:
    spec = TritonPoolSpec.model_validate(
        {
            "notifications": [
                {"url": "https://example.org/hook"},
                {"secretRef": {"name": "hooks", "key": "chat"}},
            ]
        }
    )
    assert targets(spec, "lab") == (
        Target("https://example.org/hook"),
        Target(secret=Secret("lab", "hooks", "chat")),
    )


async def test_a_hold_that_comes_again_is_another_message() -> None:
    async with webhook() as receiver, quick() as notifier:
        times = iter((1000.0, 1060.0))
        announcer = PoolAnnouncer(notifier, "lab", lambda: [Target(receiver.url)], lambda: next(times))
        state = RolloutState("coins-7f", "coins-r2", Phase.PROGRESSING, step=0, sequence=3, weight=5)
        for _ in range(2):
            held = Event("Warning", "Held", "stable fails as well")
            announcer.announce(Announce("coins", state, (held,), "http://g"))
        await notifier.idle()
    first, second = receiver.received
    assert first["id"] != second["id"]
    assert (first["reason"], first["weight"], first["url"]) == ("Held", 5, "http://g")


async def test_a_message_about_drift_has_the_numbers_of_each_histogram() -> None:
    darker = DriftedHistogram("brightness", 4.2, 1.5, (0.0, 1.0), (0.9, 0.1))
    async with webhook() as receiver, quick() as notifier:
        announcer = PoolAnnouncer(notifier, "lab", lambda: [Target(receiver.url)], lambda: 1000.0)
        event = Event("Warning", "ImagesChanged", "since noon: brightness")
        announcer.announce(AnnounceDrift("coins", "coins-r2", event, (darker,), "http://g"))
        announcer.announce(AnnounceDrift("coins", "coins-r2", Event("Normal", "DriftOver", "as before"), (), ""))
        await notifier.idle()
    found, over = receiver.received
    assert (found["model"], found["revision"], found["reason"]) == ("coins", "coins-r2", "ImagesChanged")
    assert found["histograms"] == [
        {"name": "brightness", "psi": 4.2, "kl": 1.5, "reference": [0.0, 1.0], "recent": [0.9, 0.1]}
    ]
    assert over["reason"] == "DriftOver"
    assert "histograms" not in over
    assert found["id"] != over["id"]
