"""Records that former releases wrote are read, and each of their decisions is repeated byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.replay import replay
from segserve_operator.mapping.rollouts import record_of

RECORDS = Path(__file__).parents[3] / "golden" / "records"


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_decisions_of_a_former_release_are_repeated_byte_for_byte(path: Path) -> None:
    for manifest in json.loads(path.read_text()):
        record = record_of(manifest, ())

        assert Phase(int(record.progress.phase)) in ENDED
        assert [each.sequence for each in replay(record)] == [each.sequence for each in record.decisions]
        assert [each.sequence for each in replay(record) if not each.same] == []
