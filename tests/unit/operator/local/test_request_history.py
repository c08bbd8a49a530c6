"""The counts of requests by minute that the supervisor keeps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from segserve_operator.adapters.local import request_history
from segserve_operator.adapters.local.request_history import CountedRequests, RequestHistory, bin_edge_ms, read_history
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts


def sample(requests: int, failed: int = 0, epoch: str = "1", latencies: tuple[tuple[float, int], ...] = ()) -> Sample:
    counts = SeriesCounts(requests, failed, latencies=latencies)
    return {"gateway": Counters(epoch, 0.0, {Series("g", "http"): counts})}


def kept(path: Path, since_s: float = 0.0) -> list[tuple[float, dict[str, CountedRequests]]]:
    return list(read_history(path, since_s))


def test_a_minute_has_what_was_counted_since_the_last_one(tmp_path: Path) -> None:
    history = RequestHistory(path := tmp_path / "requests.jsonl")

    history.observe({"coins": sample(100, 1)}, 60)  # of before: how long ago is unknown
    history.observe({"coins": sample(130, 4, latencies=((10.0, 20), (11.0, 3), (1000.0, 7))), "new": sample(2)}, 120)
    history.observe({"coins": sample(130, 4, latencies=((10.0, 20), (11.0, 3), (1000.0, 7)))}, 180)
    history.observe({"coins": sample(5, 0, epoch="2")}, 240)  # the gateway began anew
    history.observe({"coins": {}}, 300)  # it does not answer

    (first_s, first), (second_s, second) = kept(path)
    assert (first_s, first["new"].requests, first["coins"].requests, first["coins"].failed) == (120, 2, 30, 3)
    assert sorted(first["coins"].latencies.values()) == [7, 23]
    assert all(
        bin_edge_ms(each) <= edge for each, edge in zip(sorted(first["coins"].latencies), (10, 1000), strict=True)
    )
    assert (second_s, second) == (240, {"coins": CountedRequests(5, 0, {})})
    assert kept(path, 120) == [(second_s, second)]
    assert path.stat().st_mode & 0o077 == 0


def test_a_supervisor_goes_on_with_the_file_of_the_former_one(tmp_path: Path) -> None:
    for start in (0, 1000):
        history = RequestHistory(path := tmp_path / "requests.jsonl")
        history.check()
        for number in range(3):
            history.observe({"coins": sample(10 * number)}, start + 60 * number)

    assert [at_s for at_s, _ in kept(path)] == [60, 120, 1060, 1120]


@pytest.mark.parametrize(
    "damage", [b"{", b"nonsense\n", b"[1]\n", b'[1,{"a":[1,2]}]\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"null\n"]
)
def test_a_damaged_file_is_discarded_with_a_message_but_a_line_cut_short_costs_only_itself(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    history = RequestHistory(path := tmp_path / "requests.jsonl")
    for number in range(3):
        history.observe({"coins": sample(10 * number)}, 60 * number)
    with path.open("ab") as file:
        file.write(damage)
    assert len(kept(path)) == 2, "what reads it meanwhile leaves the line out"

    with caplog.at_level(logging.WARNING, "segserve"):
        RequestHistory(path).check()

    cut_short = not damage.endswith(b"\n")
    assert len(kept(path)) == (2 if cut_short else 0)
    assert ("is damaged and was discarded" in caplog.text) is not cut_short


def test_the_file_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_history, "LIMIT_BYTES", 20_000)
    monkeypatch.setattr(request_history, "KEPT_BYTES", 10_000)
    history = RequestHistory(path := tmp_path / "requests.jsonl")

    for number in range(2000):
        history.observe({"coins": sample(number)}, 60 * number)
        assert not path.exists() or path.stat().st_size <= 20_000

    times = [at_s for at_s, _ in kept(path)]
    assert times == [60.0 * number for number in range(2000 - len(times), 2000)]
    assert len(times) > 200
