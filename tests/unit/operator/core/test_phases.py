"""The legal moves of a rollout, as data."""

from __future__ import annotations

import numpy as np
import pytest

from segserve_operator.core.rollout.phases import ENDED, MOVES, Phase, Signal, legal

PROTECTIVE = (Signal.ABORT, Signal.BREACH)


@pytest.mark.parametrize("phase", sorted(ENDED))
def test_nothing_moves_a_rollout_that_has_ended(phase: Phase) -> None:
    assert not any(legal(np.array(phase), signal) for signal in Signal)


@pytest.mark.parametrize("phase", sorted(set(Phase) - ENDED))
@pytest.mark.parametrize("signal", PROTECTIVE)
def test_what_protects_callers_is_a_move_from_every_phase(phase: Phase, signal: Signal) -> None:
    assert MOVES[phase, signal] is Phase.ROLLED_BACK


def test_a_candidate_never_gets_requests_before_its_golden_images() -> None:
    ways = {phase for (phase, _), after in MOVES.items() if after is Phase.PROGRESSING}

    assert ways == {Phase.GOLDEN, Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED}
    assert {phase for (phase, _), after in MOVES.items() if after is Phase.SHADOW} == {Phase.GOLDEN}
    assert (Phase.PENDING, Signal.PROMOTE) not in MOVES


def test_numbers_of_phases_and_signals_stay_as_records_hold_them() -> None:
    assert [(phase.name, phase.value) for phase in Phase] == [
        ("PENDING", 0),
        ("GOLDEN", 1),
        ("PROGRESSING", 2),
        ("QUARANTINED", 3),
        ("BAKING", 4),
        ("SUCCEEDED", 5),
        ("ROLLED_BACK", 6),
        ("CANCELLED", 7),
        ("SHADOW", 8),
        ("JUDGED", 9),
    ]
    assert [signal.value for signal in Signal] == list(range(1, 20))
    assert Signal.NONE == 14


def test_labels_read_back() -> None:
    assert [Phase.labelled(phase.label) for phase in Phase] == list(Phase)
    assert Phase.ROLLED_BACK.label == "RolledBack"
