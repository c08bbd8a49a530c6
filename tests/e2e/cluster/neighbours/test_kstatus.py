"""kstatus, by which Flux waits, says of each state what docs/explanation/cluster.md does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from fakes.cluster import Json
from fakes.lives import judged
from segserve_common.kube.kinds import MODELS, POOLS, Kind

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(600)]


def test_a_model_is_current_once_its_newest_spec_serves_and_failed_while_it_cannot(
    lived: Mapping[Kind, Sequence[Json]], built: Callable[..., Path]
) -> None:
    program = built("kstatus")

    def status(found: Json) -> str:
        done = subprocess.run([program], input=json.dumps(found), capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout)["Status"])

    serves = "InProgress Current"
    assert judged(status, lived[MODELS]) == f"{serves} {serves} InProgress Failed {serves} Terminating"
    # It is in progress also while models move between its servers.
    said = judged(status, lived[POOLS])
    assert re.fullmatch(f"{serves}( {serves})* Terminating", said), said

    by_status = {name: [each for each in lived[MODELS] if status(each) == name] for name in ("Current", "Failed")}
    stable = {each["metadata"]["generation"]: each["status"]["roles"]["stable"] for each in by_status["Current"]}
    first, edited, mended = (stable[generation]["revision"] for generation in (1, 2, 4))
    assert first != edited == mended
    ready = [each for found in by_status["Failed"] for each in found["status"]["conditions"] if each["type"] == "Ready"]
    assert {each["status"] for each in ready} == {"True"}
