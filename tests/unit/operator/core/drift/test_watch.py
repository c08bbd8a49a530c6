"""The watch of one revision: which counts it takes, and what it stores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import pytest

from segserve_builder.agent.protocol import MAX_BUCKETS, MAX_HISTOGRAMS, AnswersReport, ModelReport, ModelState
from segserve_common.kube.shards import pack, unpack
from segserve_operator.api.drift import MIN_REFERENCE_WINDOWS, MOST_WATCHED, Drift, DriftReference, DriftWindow
from segserve_operator.core.drift.detector import Histograms
from segserve_operator.core.drift.watch import DriftedHistogram, DriftWatch, basis_of, restored, with_slices

WINDOW_S = 60.0
DRIFT = Drift(
    window=timedelta(seconds=WINDOW_S), reference=DriftReference(window=DriftWindow(duration=timedelta(hours=1)))
)
MAX_STATUS_LENGTH = 196_608


class Counted:
    """A watch and the totals of its servers."""

    def __init__(self) -> None:
        self.watch = DriftWatch.start("coins-1", 0.0, DRIFT)
        self._totals: dict[str, dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
        self._windows = 0

    @property
    def now_s(self) -> float:
        """When the last window ended."""
        return (self._windows - 1) * WINDOW_S

    def add(self, added: Mapping[str, Histograms], windows: int = 1) -> None:
        """Let windows pass in which each server counts so much."""
        for _ in range(windows):
            for server, histograms in added.items():
                totals = self._totals.setdefault(server, {})
                for name, counts in histograms.items():
                    totals[name] = totals.get(name, np.zeros(len(counts))) + counts
            servers = {
                server: {name: tuple(each.tolist()) for name, each in totals.items()}
                for server, totals in self._totals.items()
                if server in added
            }
            self.watch = self.watch.measured(servers, DRIFT, self._windows * WINDOW_S)
            self._windows += 1


def referred() -> Counted:
    """Return a watch whose reference is complete."""
    counted = Counted()
    counted.add({"a": {"brightness": (50.0, 50.0)}}, windows=65)
    assert counted.watch.complete
    return counted


@pytest.mark.parametrize("other", [(100.0,), (30.0, 30.0, 40.0), ()])
def test_a_histogram_of_other_buckets_is_left_out_and_the_others_decide(other: tuple[float, ...]) -> None:
    counted = referred()

    counted.add({"a": {"brightness": (5.0, 95.0)}, "newer": {"brightness": other}}, windows=30)

    assert [each.name for each in counted.watch.found] == ["brightness"]
    assert counted.watch.found[0].recent == pytest.approx((0.05, 0.95), abs=0.01)


@pytest.mark.parametrize("other", [(100.0,), (30.0, 30.0, 40.0), ()])
def test_servers_that_count_by_other_buckets_do_not_end_a_reference_in_the_making(other: tuple[float, ...]) -> None:
    counted = Counted()

    counted.add({"a": {"brightness": (50.0, 50.0)}, "newer": {"brightness": other}}, windows=65)

    assert counted.watch.complete
    assert counted.watch.scales[0].ranges["brightness"].low == (0.5,)


def test_the_number_of_histograms_is_bounded_whatever_names_servers_report() -> None:
    counted = Counted()

    for number in range(20):
        names = (f"histogram {number} {each}" for each in range(MAX_HISTOGRAMS))
        counted.add({f"server {number}": dict.fromkeys(names, (50.0, 50.0))}, windows=4)

    for scale in counted.watch.scales:
        assert len(scale.counts) <= MOST_WATCHED
        assert len(scale.ranges) <= MOST_WATCHED


def test_slices_are_watched_beside_all_requests_and_the_one_that_drifts_is_named() -> None:
    counted = Counted()

    def window(noisy: int) -> Mapping[str, Histograms]:
        report = AnswersReport(
            histograms={"detail": (190 - noisy, 10 + noisy)},
            slices={"north": {"detail": (95, 5)}, "south": {"detail": (95 - noisy, 5 + noisy)}},
        )
        return {"a": with_slices(report)}

    counted.add(window(noisy=0), windows=65)
    counted.add(window(noisy=30), windows=30)

    (of_south, of_all) = sorted(counted.watch.found, key=lambda each: each.slice, reverse=True)
    assert (of_south.slice, of_south.histogram) == ("south", "detail")
    assert (of_all.slice, of_all.histogram) == ("", "detail")
    assert of_south.psi > of_all.psi


DARK, LIGHT = (70.0, 30.0), (30.0, 70.0)


def with_south(counts: Histograms) -> Mapping[str, Histograms]:
    return {"a": {"brightness": (50.0, 50.0), **{f"south/{name}": each for name, each in counts.items()}}}


@pytest.mark.parametrize("first_window", [55, 75], ids=["at the end of the reference", "after it"])
def test_a_slice_that_comes_late_has_a_reference_of_its_own_that_lasts_as_long(first_window: int) -> None:
    counted = Counted()
    counted.add(with_south({}), windows=first_window)
    counted.add(with_south({"brightness": DARK}), windows=20)
    assert counted.watch.complete
    assert counted.watch.without_reference(["south"]) == ("south",)

    for _ in range(2):
        counted.add(with_south({"brightness": LIGHT}), windows=30)
        counted.watch = restored(counted.watch.stored, counted.now_s)
        counted.add(with_south({"brightness": DARK}), windows=30)
    assert not counted.watch.drifting
    assert counted.watch.without_reference(["south", "north"]) == ("north",)

    counted.add(with_south({"brightness": (0.0, 100.0)}), windows=60)
    assert counted.watch.drifting == {"south/brightness"}


def test_a_histogram_with_few_windows_in_the_reference_is_compared_once_it_has_enough() -> None:
    counted, rare = Counted(), {"a": {"brightness": (50.0, 50.0), "area:coin": (1.5, 1.5)}}
    counted.add(rare, windows=65)
    assert counted.watch.complete
    assert counted.watch.scales[0].ranges["area:coin"].windows < MIN_REFERENCE_WINDOWS

    counted.add({"a": {**rare["a"], "area:coin": (3.0, 0.0)}}, windows=40)
    assert not counted.watch.drifting
    counted.add(rare, windows=80)
    assert counted.watch.scales[0].ranges["area:coin"].windows >= MIN_REFERENCE_WINDOWS
    assert not counted.watch.scales[0].counting

    counted.add({"a": {**rare["a"], "area:coin": (0.0, 30.0)}}, windows=40)
    assert counted.watch.drifting == {"area:coin"}


def test_names_of_classes_with_slashes_are_of_no_slice() -> None:
    of_class = DriftedHistogram("classShare:car/truck", 1.0, 1.0, (0.5, 0.5), (1.0, 0.0))
    of_slice = DriftedHistogram("north/classShare:car/truck", 1.0, 1.0, (0.5, 0.5), (1.0, 0.0))

    assert (of_class.slice, of_class.histogram) == ("", "classShare:car/truck")
    assert (of_slice.slice, of_slice.histogram) == ("north", "classShare:car/truck")
    assert of_class.is_gone
    assert of_slice.is_gone


def test_other_slices_begin_another_reference_and_none_keep_that_of_before() -> None:
    assert basis_of(DRIFT, ()) == basis_of(DRIFT)
    assert len({basis_of(DRIFT), basis_of(DRIFT, ("north",)), basis_of(DRIFT, ("north", "south"))}) == 3


def test_a_server_that_reports_again_soon_loses_no_counts_and_one_that_is_gone_is_forgotten() -> None:
    counted = referred()
    counted.add({"soon": {"brightness": (0.0, 10.0)}, "gone": {"brightness": (0.0, 10.0)}})

    counted.add({"a": {"brightness": (1.0, 1.0)}}, windows=3)
    counted.add({"soon": {"brightness": (0.0, 7.0)}})
    assert counted.watch.scales[0].counts["brightness"] == (3.0, 10.0)
    assert {"a", "soon", "gone"} == counted.watch.seen.keys()

    counted.add({"a": {"brightness": (1.0, 1.0)}, "soon": {"brightness": (0.0, 1.0)}}, windows=12)
    assert {"a", "soon"} == counted.watch.seen.keys()


def test_the_longest_watch_fits_into_a_status_and_comes_back() -> None:
    random, counted = np.random.default_rng(1), Counted()
    names = [f"classShare:{number:03}{'x' * 97}" for number in range(MOST_WATCHED)]

    def window(reverse: bool) -> Histograms:
        shares = np.sort(random.dirichlet(np.ones(MAX_BUCKETS)))
        drawn = {name: random.multinomial(100_000, shares[::-1] if reverse else shares) for name in names}
        return {name: tuple(each.tolist()) for name, each in drawn.items()}

    for _ in range(65):
        counted.add({"a": window(reverse=False)})
    for _ in range(30):
        counted.add({"a": window(reverse=True)})

    stored = counted.watch.stored
    assert len(counted.watch.found) == MOST_WATCHED
    assert len(stored) < MAX_STATUS_LENGTH
    assert restored(stored, 0.0).found == counted.watch.found


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": [[], []]},
        {"ranges": 5},
        {"ranges": [{"brightness": [[1, 2], [0.5, 0.6], [0.5], 3]}, {}]},
        {"found": [["brightness"]]},
        {"version": 99},
    ],
)
def test_a_stored_reference_of_another_shape_is_refused(change: dict[str, object]) -> None:
    plain = unpack(referred().watch.stored)

    with pytest.raises(ValueError, match=r".+"):
        restored(pack({**plain, **change}), 0.0)


def test_a_report_loses_histograms_that_no_agent_counts_and_keeps_the_others() -> None:
    counts = {"brightness": [1, 2], "long": [1] * 1000, "short": [1], "y" * 1000: [1, 2], "huge": [10**400, 1]}
    plain = ModelReport(model="coins", revision="coins-1", state=ModelState.READY).to_json()

    report = ModelReport.read({**plain, "answers": {"histograms": counts}})

    assert report.answers.histograms == {"brightness": (1, 2)}
    many = {f"h{number}": [1, 2] for number in range(1000)}
    assert ModelReport.read({**plain, "answers": {"histograms": many}}).answers == AnswersReport()
