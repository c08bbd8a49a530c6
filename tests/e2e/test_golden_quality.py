"""Our own requests on the real Triton and Envoy: golden images scored against labels, probes, and what servers use."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bench.coins import variant
from bench.platform import MODELS, Running
from fakes.waiting import eventually
from segserve_builder import sources
from segserve_builder.golden.judging import load
from segserve_builder.sources.access import LOCAL
from segserve_builder.spec.model_spec import Golden
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import LocalResources
from segserve_operator.adapters.traffic.envoy_admin import UNIX_SCHEME
from segserve_operator.api.rollout_policy import GoldenQualityGate, ResourceGate, RolloutPolicy
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.core.gates import golden_quality, resource
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.gates.probe import probe_outcome

pytestmark = [pytest.mark.platform, pytest.mark.timeout(180)]

COINS = MODELS.parent


def labelled_set(folder: Path) -> Golden:
    """Write the example's golden set with the photograph's label map."""
    folder.mkdir()
    case = json.loads(load(COINS / "golden/semantic").cases[0].model_dump_json(by_alias=True, exclude_none=True))
    truth = np.asarray(Image.open(COINS / "truth.png")) > 0
    Image.fromarray(truth.astype(np.uint8)).save(folder / "truth.png")
    (folder / "coins.png").write_bytes((COINS / "coins.png").read_bytes())
    (folder / "golden.json").write_text(json.dumps({"cases": [case | {"labelMap": "truth.png"}]}))
    return Golden(uri=folder.as_uri(), sha256=sources.folder_digest(folder))


@pytest.fixture
async def check_runner(coins: Running, tmp_path: Path) -> AsyncIterator[BackgroundCheckRunner]:
    state = StateFolder(coins.state)

    async def socket() -> str:
        return f"{UNIX_SCHEME}{state.gateway / 'internal.sock'}"

    resources, cache = LocalResources(state), tmp_path / "cache"
    tools = CheckContext(InternalGateway(socket), cache, resources, time.time, local=True, access=lambda: LOCAL)
    found = BackgroundCheckRunner(tools)
    yield found
    await found.close()


@pytest.fixture
def order(coins: Running, tmp_path: Path) -> Check:
    """An order that compares the served revision with itself."""
    served = yaml.safe_load(coins.segserve("get", "coins", "-o", "yaml"))
    revision = served["status"]["roles"]["stable"]["revision"]
    assigned = SegmentationModel.model_validate(variant()).assigned
    with_labels = assigned.model_copy(update={"golden": labelled_set(tmp_path / "golden")})
    return Check("coins-1/golden/0", "coins", "golden", "main", revision, "main", revision, revision=with_labels)


async def found_out(check_runner: BackgroundCheckRunner, order: Check) -> CheckResult:
    check_runner.schedule([order])

    async def answered() -> CheckResult | None:
        finding = check_runner.check_results().get(order.key)
        return finding if finding is not None and finding.done else None

    finding = await eventually(answered, f"an answer to {order.key}")
    assert finding is not None
    assert not finding.problem
    return finding


async def test_the_served_revision_scores_as_well_as_itself(check_runner: BackgroundCheckRunner, order: Check) -> None:
    finding = await found_out(check_runner, order)

    assert finding.scores is not None
    assert finding.scores.labelled
    assert set(finding.scores.classes) == {"background", "coin"}
    candidate, stable = finding.scores.means["iou"]
    assert candidate == stable > 0.95
    verdict = golden_quality.judge(GoldenQualityGate(min_iou=0.95), finding, RolloutPolicy(), 0.0025)
    assert verdict.outcome is Outcome.PASS, verdict
    strict = golden_quality.judge(GoldenQualityGate(min_iou=0.999), finding, RolloutPolicy(), 0.0025)
    assert strict.outcome is Outcome.BREACH, strict


async def test_probes_of_a_healthy_revision_let_it_go_on(check_runner: BackgroundCheckRunner, order: Check) -> None:
    finding = await found_out(check_runner, replace(order, key="coins-1/probe/1", purpose="probe", seconds=6.0))

    assert finding.failed == (0, 0)
    assert probe_outcome(finding, 6.0) == 1


async def test_probes_of_a_revision_that_answers_otherwise_are_failures(
    check_runner: BackgroundCheckRunner, order: Check
) -> None:
    assert order.revision is not None
    assert order.revision.golden is not None
    folder = Path(order.revision.golden.uri.removeprefix("file://"))
    told = json.loads((folder / "golden.json").read_text())
    told["cases"][0]["expected"]["MASKS"].reverse()
    (folder / "golden.json").write_text(json.dumps(told))
    golden = Golden(uri=folder.as_uri(), sha256=sources.folder_digest(folder))
    wrong = replace(order, revision=order.revision.model_copy(update={"golden": golden}))

    finding = await found_out(check_runner, replace(wrong, key="coins-1/probe/2", purpose="probe", seconds=3.0))

    assert finding.failed == (0, finding.asked[1])
    assert probe_outcome(finding, 3.0) == -1


async def test_the_servers_memory_restarts_and_queue_are_seen(
    check_runner: BackgroundCheckRunner, order: Check
) -> None:
    check: dict[str, Any] = {"purpose": "check", "gate": "resource", "spec": ResourceGate(max_queue_seconds=5.0)}
    await found_out(check_runner, replace(order, key="coins-1/resource/0", **check))
    finding = await found_out(check_runner, replace(order, key="coins-1/resource/1", **check))

    last = finding.samples[-1]
    assert last.memory_bytes["main"] > 100 * 2**20
    assert last.restarts == {"main": 0}
    assert last.requests is not None
    assert last.requests > 0
    assert resource.judge(ResourceGate(), finding, RolloutPolicy(), 0.0025).outcome is Outcome.PASS
