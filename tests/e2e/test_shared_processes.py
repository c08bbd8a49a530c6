"""Models that share the processes of their steps: what each answers, and what one does to the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.coins import write
from bench.density import models
from bench.platform import platform
from fakes.callers import COIN_PIXELS, PHOTO, Load
from fakes.waiting import HANG_S, until
from fakes.watching import Watched
from segserve import Client, SegserveError
from segserve_builder.agent.protocol import ModelReport, ModelState, Report
from segserve_builder.agent.server import Repository
from segserve_builder.spec.members import is_shared

pytestmark = pytest.mark.platform

ONE, OTHER = NAMES = ("coins-0", "coins-1")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two models that share their processes, with weights of their own."""
    return models(tmp_path_factory.mktemp("networks"), len(NAMES), "shared")


@pytest.fixture(scope="module")
def watched(manifests: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A platform with these models."""
    with platform(write(tmp_path_factory.mktemp("models") / "models.yaml", *manifests)) as running:
        yield Watched(running)


def report_of(watched: Watched, model: str) -> ModelReport:
    report = Report.model_validate_json((watched.state.groups / "main/report.json").read_text())
    return next(each for each in report.models if each.model == model)


def shared_steps(watched: Watched, model: str) -> list[str]:
    return [step for step in report_of(watched, model).steps if is_shared(step)]


def answers(watched: Watched) -> dict[str, str]:
    """Return the revision that answered for each model, once all give the right answer."""

    def asked() -> dict[str, str]:
        found = {}
        with Client(watched.running.url, retries=0, timeout_s=HANG_S) as client:
            for name in NAMES:
                try:
                    answer = client.segment(PHOTO, model=name)
                except SegserveError:
                    return {}
                assert answer.areas["coin"] in COIN_PIXELS
                found[name] = answer.revision
        return found

    return until(asked, "right answers of all models")


def settled(watched: Watched) -> bool:
    return all(report_of(watched, name).state is ModelState.READY for name in NAMES)


def test_models_share_one_process_of_each_kind_and_each_answers_as_its_own_revision(watched: Watched) -> None:
    found = answers(watched)

    assert found == {name: report_of(watched, name).revision for name in NAMES}
    assert shared_steps(watched, ONE) == shared_steps(watched, OTHER)
    assert [step.split("--")[1] for step in sorted(watched.steps())] == ["net-shared", "post-shared", "pre"]


def test_no_caller_chooses_whose_network_answers(watched: Watched) -> None:
    ask = {"inputs": [{"name": "PIXELS", "shape": [16, 16, 1], "datatype": "UINT8", "data": [0] * 256}]}
    chosen = ask | {"outputs": [{"name": "MEMBER_0_f"}]}
    given = ask | {"inputs": [*ask["inputs"], {"name": "MEMBER_0_f", "shape": [1], "datatype": "INT32", "data": [0]}]}
    with httpx.Client(base_url=f"{watched.running.url}/v2/models", timeout=HANG_S) as client:
        steps = [client.post(f"/{step}/infer", json=ask).status_code for step in shared_steps(watched, ONE)]
        public = [client.post(f"/{ONE}/infer", json=body).status_code for body in (chosen, given)]

    assert (steps, public) == ([404, 404], [400, 400])


def test_a_shared_process_that_is_killed_comes_back_for_all_its_models(watched: Watched) -> None:
    for step in shared_steps(watched, ONE):
        former = watched.steps()[step]
        former.kill()
        until(lambda step=step, former=former: watched.steps().get(step, former) != former, "another process")
        until(lambda: settled(watched), "all models are proved again")

    assert answers(watched).keys() == set(NAMES)


def test_a_change_of_processes_moves_no_revision_and_fails_no_request(
    watched: Watched, manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    revision = report_of(watched, ONE).revision
    with Load(watched.running.url, model=ONE, pause_s=0.1) as load:
        for processes in ("own", "shared"):
            model = manifests[0] | {"spec": manifests[0]["spec"] | {"processes": processes}}
            watched.running.segserve("apply", "-f", str(write(tmp_path / "model.yaml", model)))
            until(
                lambda processes=processes: (
                    bool(shared_steps(watched, ONE)) == (processes == "shared") and settled(watched)
                ),
                f"{processes} processes",
            )
            load.wait_for(revision)

    assert load.failures == []
    assert set(load.answers) == {revision}


def test_a_network_that_ended_the_shared_process_gets_one_of_its_own(watched: Watched) -> None:
    """The record of what runs is written as it is while the network runs, so that the process dies at that moment."""
    (step,) = (step for step in shared_steps(watched, ONE) if "net-shared" in step)
    repository = watched.state.groups / "main/repository"
    members = Repository(repository).ensembles()[ONE].members
    (member,) = (name for name in members if "net-member" in name)
    former = watched.steps()[step]
    with (repository.parent / ".repository-running" / step).open("r+b") as record:
        record.seek(64)
        record.write(member.encode())

    former.kill()

    until(lambda: not shared_steps(watched, ONE) and settled(watched), "processes of its own")
    assert shared_steps(watched, OTHER)
    assert answers(watched) == {name: report_of(watched, name).revision for name in NAMES}
