"""What every view says of a model is what its gateway does, after whatever has happened: one truth, and history."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fakes import rollout_records
from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout, answers
from segserve_operator.api.rollout_policy import Slo
from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.mapping.statuses import to_api
from segserve_platform.cli.models_view import model_text, models_table
from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.rollouts.documents import document, forecast_of
from segserve_platform.platforms.rollouts.rollout_view import read_rollout
from segserve_ui.models import ModelsOverview, StoredModels
from segserve_ui.rollouts import RolloutsOverview

QUICK = POLICY.model_copy(update={"bake_time": timedelta(minutes=30)})
STORY = (
    "promote",
    "abort",
    "rollback",
    "retry",
    "pause",
    "first",
    "second",
    "fail",
    "quiet",
    "down",
    "up",
    "wait",
    "bake",
)


class OneModel:
    """A platform that has the model of a world in memory, and its latest record."""

    def __init__(self, rollout: Rollout) -> None:
        known = rollout.world.store.objects["coins"]
        status = to_api(known.status, SegmentationModelStatus(), datetime.now(UTC)).to_dict()
        self.manifest: dict[str, Any] = rollout_records.coins(None) | {"status": status}
        self.records = dict(rollout.world.store.rollout_records)

    def runs(self) -> bool:
        return True

    def models(self) -> list[Any]:
        return [self.manifest]

    def rollouts(self) -> list[Any]:
        return [rollout_records.manifest(each) for each in self.records.values()]

    def rollout(self, name: str) -> Any:
        return rollout_records.manifest(self.records[name]) if name in self.records else None


def truth(rollout: Rollout) -> dict[str, int]:
    """Return who gets how many of the requests, by the routes of the gateway."""
    (route,) = rollout.world.traffic.plan.routes
    return {share.revision: share.weight for share in route.shares if share.weight}


def text_of(drawn: Any) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(drawn)
    return console.export_text()


def check(rollout: Rollout) -> None:
    """Compare all views of one state of the world with the routes of the gateway, and with each other."""
    platform, serving = OneModel(rollout), truth(rollout)
    model, roles = platform.manifest, platform.manifest["status"]["roles"]
    present = Present.of(model)
    shares = {revision: present.shares[role] for role, revision in present.revisions.items() if present.shares[role]}
    assert shares == serving

    stable = roles["stable"]["revision"]
    (row,) = models_table([model], wide=True).rows
    newest = roles["candidate"]["revision"] if "candidate" in roles else stable
    assert (row["STABLE"].plain, row["WEIGHT"].plain) == (stable, str(serving.get(newest, 0)))
    succeeded = row["PHASE"].plain == Phase.SUCCEEDED.label
    assert not succeeded or model["status"]["rollout"]["revision"] == stable
    assert row["PHASE"].plain != Phase.ROLLED_BACK.label or roles["candidate"]["state"] == "Failed"

    overview = ModelsOverview(None, 10.0).describe(StoredModels(True, [model]))["models"][0]
    assert {each["revision"]: each["weight"] for each in overview["revisions"] if each["weight"]} == serving

    view = read_rollout(platform, model)
    shown = RolloutsOverview(platform).describe(StoredModels(True, [model]))["rollouts"]
    if view is None:
        assert not shown
        return
    (card,) = shown
    tree = text_of(RolloutTree(view, forecast_of(view)))
    described = model_text(model, None)
    for text in (tree, described, card["headline"]):
        for revision in re.findall(r"([\w-]+) has all requests", text):
            assert serving == {revision: 100}, text
        for revision, weight in re.findall(r"([\w-]+) has (\d+) % of requests", text):
            assert serving[revision] == int(weight), text
    listed = {side["revision"]: side["weight"] for side in card["sides"]}
    assert {revision: weight for revision, weight in listed.items() if weight} == serving
    assert {each["revision"]: each["weight"] for each in document(view)["revisions"] if each["weight"]}.items() <= (
        serving.items()
    )
    assert card["history"] == view.is_history == ("past rollout" in tree) == ("past rollout" in described)
    if "rollback" in card["actions"]:
        assert (card["stable"], card["previous"]) == (stable, roles["previous"]["revision"])
    if view.standing.phase is Phase.SUCCEEDED and not view.is_history:
        assert view.standing.revision == stable


async def step(rollout: Rollout, word: str) -> None:
    world = rollout.world
    known = world.store.objects["coins"]
    state, roles = known.status.rollout, known.status.roles
    match word:
        case "rollback" if roles.stable is not None:
            rollout.ask("rollback", f"{roles.stable.revision}@{world.now_s}")
        case "retry" if roles.candidate is not None:
            rollout.ask("retry", f"{roles.candidate.revision}@{world.now_s}")
        case "promote" | "abort" | "pause" if state is not None:
            rollout.ask(word, f"{state.revision}@{world.now_s}")
        case "first" | "second":
            world.store.apply(FIRST if word == "first" else SECOND, policy=QUICK, slo=Slo())
        case "fail":
            rollout.errors = {} if rollout.errors else {SECOND.revision: 0.5}
        case "quiet":
            rollout.requests_per_s = 0.0 if rollout.requests_per_s else 50.0
        case "down":
            world.fleet.nodeless = {"main", SECOND.revision}
        case "up":
            world.fleet.nodeless = set()
            world.restart()
        case "bake":
            world.now_s += 1900.0
        case _:
            pass
    for _ in range(3):
        await rollout.second()
        check(rollout)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(STORY), min_size=1, max_size=8))
@example(["second", "wait", "promote", "bake", "rollback", "first"])
@example(["second", "wait", "abort", "first", "second", "retry"])
@example(["second", "wait", "promote", "down", "wait", "up", "wait"])
@example(["second", "fail", "wait", "wait", "first"])
async def test_every_view_says_what_the_gateway_does(story: list[str]) -> None:
    rollout = Rollout()
    rollout.world.found.answers["probe"] = answers
    await rollout.begin(QUICK, FIRST)
    check(rollout)
    for word in story:
        await step(rollout, word)


async def test_a_rollback_after_the_end_is_in_the_record_and_in_the_status() -> None:
    rollout = Rollout()
    await rollout.begin(QUICK, FIRST)
    for word in ("second", "wait", "promote", "bake"):
        await step(rollout, word)
    assert rollout.state.phase is Phase.SUCCEEDED
    await step(rollout, "rollback")
    record = rollout.world.store.rollout_records[rollout.state.rollout]

    assert truth(rollout) == {FIRST.revision: 100}
    assert (rollout.state.phase, rollout.state.weight) == (Phase.ROLLED_BACK, 0)
    assert (record.decisions[-1].phase, record.decisions[-1].actor.partition("=")[0]) == (Phase.ROLLED_BACK, "rollback")
