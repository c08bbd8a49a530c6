"""While a candidate is quarantined, both groups are asked over and over."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.golden_pictures import CANDIDATE, STABLE, Pictures, check_of, context_of, semantic, truth
from fakes.internal_gateway import InternalListener, internal_listener
from segserve_builder.golden.judging import builtin_image
from segserve_operator.adapters.checks import probe
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.core.advance.verdicts.probe import probe_outcome
from segserve_operator.core.gates.checks import CheckError, ProbeCounts

ROUNDS = 24


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PERIOD_S", 0.01)


async def probed(listener: InternalListener) -> tuple[ProbeCounts, list[ProbeCounts]]:
    told: list[ProbeCounts] = []
    context = context_of(listener)
    try:
        wanted = check_of("probe", seconds=ROUNDS * 0.01)
        return await probe.run(wanted, context, told.append), told
    finally:
        await context.gateway.close()


async def test_answers_are_counted_while_they_come(pictures: Pictures) -> None:
    async with internal_listener(main=pictures.answering(STABLE), own=pictures.answering(CANDIDATE)) as listener:
        found, told = await probed(listener)

    assert (found.asked, found.failed, found.done) == ((ROUNDS, ROUNDS), (0, 0), True)
    assert [sum(each.asked) for each in told] == list(range(1, 2 * ROUNDS + 1))
    assert probe_outcome(found, 6.0) == 1


async def test_a_candidate_that_fails_is_told_from_stable(pictures: Pictures) -> None:
    async with internal_listener(main=pictures.answering(STABLE), own=lambda _: 500) as listener:
        found, told = await probed(listener)

    assert found.failed == (0, ROUNDS)
    assert any(probe_outcome(each, 1.0) == -1 and not each.done for each in told)


async def test_a_group_that_hangs_has_failed_every_request(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = InternalGateway.infer

    async def impatient(own: InternalGateway, model: str, group: str, *request: Any) -> Any:
        *request, timeout_s = request
        return await infer(own, model, group, *request, 1.0 if group == "own" else timeout_s)

    monkeypatch.setattr(InternalGateway, "infer", impatient)
    async with internal_listener(main=pictures.answering(STABLE)) as listener:
        listener.hangs = {"own"}
        found, _ = await probed(listener)

    assert (found.asked, found.failed) == ((ROUNDS, ROUNDS), (0, ROUNDS))


async def test_the_builtin_image_is_asked_and_nothing_is_fetched() -> None:
    async with internal_listener(
        main=lambda _: semantic(truth(0), STABLE), own=lambda _: semantic(truth(0), CANDIDATE)
    ) as listener:
        found, _ = await probed(listener)

    assert {asked.image for asked in listener.asked} == {builtin_image()}
    assert found.failed == (0, 0)


async def test_a_group_that_the_gateway_does_not_know_is_no_verdict(pictures: Pictures) -> None:
    async with internal_listener(main=pictures.answering(STABLE)) as listener:
        with pytest.raises(CheckError, match="in a group 'own'"):
            await probed(listener)
