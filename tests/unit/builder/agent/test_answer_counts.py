"""What an agent reads of its server's metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fakes.platform import assigned
from segserve_builder.agent.answer_counts import (
    MAX_CLASSES,
    AnswerCounts,
    counted_classes,
    histograms,
    read_series,
    report_of,
)
from segserve_builder.agent.protocol import (
    MAX_HISTOGRAMS,
    MAX_REPORTED_SLICES,
    MAX_SLICE_HISTOGRAMS,
    AnswerCounting,
    AnswersReport,
)
from segserve_builder.spec.model_spec import MAX_COUNTED_SLICES, ModelMetrics
from segserve_builder.steps.answer_metrics import IMAGE_HISTOGRAMS, METRIC_FAMILIES

OWN = 'model="coins",revision="coins-1"'
METRICS = f"""
# HELP segserve_answers_total Answers to callers.
segserve_answers_total{{{OWN}}} 10
segserve_answers_total{{model="coins",revision="coins-2"}} 99
segserve_empty_answers_total{{{OWN}}} 2
segserve_class_answers_total{{{OWN},class="coin"}} 8
segserve_class_score_bucket{{{OWN},class="coin",le="0.1"}} 0
segserve_class_score_bucket{{{OWN},class="coin",le="0.9"}} 3
segserve_class_score_bucket{{{OWN},class="coin",le="1"}} 8
segserve_class_score_bucket{{{OWN},class="coin",le="+Inf"}} 8
segserve_image_brightness_ratio_bucket{{{OWN},le="0.4"}} 10
segserve_image_brightness_ratio_bucket{{{OWN},le="+Inf"}} 10
segserve_step_seconds_bucket{{{OWN},step="pre",le="+Inf"}} 10
nv_inference_request_success{{model="coins",version="1"}} 10
"""


class _Metrics(BaseHTTPRequestHandler):
    text = METRICS

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server's metrics."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_cumulated_buckets_become_observations_of_each_bucket_of_one_revision() -> None:
    series = read_series(METRICS.encode(), frozenset({"coins-1"}))

    found = histograms(series["coins-1"][""], ("coin",))

    assert found["emptyAnswers"] == (8, 2)
    assert found["classShare:coin"] == (2, 8)
    assert sum(found["score:coin"]) == 8
    assert found["score:coin"][8:10] == (3, 5)
    assert found["brightness"] == (0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0)
    assert "area:coin" not in found
    assert series.keys() == {"coins-1"}


def test_names_of_classes_may_have_any_characters() -> None:
    text = 'segserve_class_answers_total{revision="r",class="a \\"b\\", {c}"} 3'

    series = read_series(text.encode(), frozenset({"r"}))

    assert series["r"][""] == {("segserve_class_answers_total", 'a "b", {c}', ""): 3.0}


def test_a_report_has_a_bounded_number_of_classes() -> None:
    many = assigned("coins", classes=tuple(f"class {number}" for number in range(200)))

    assert len(counted_classes(many)) == MAX_CLASSES
    named = many.model_copy(update={"metrics": ModelMetrics(classes=("class 150",))})
    assert counted_classes(named) == ("class 150",)


def test_a_report_of_most_classes_has_no_more_histograms_than_are_read() -> None:
    many = assigned("coins", classes=tuple(f"class {number}" for number in range(200)))
    labels = ("", *counted_classes(many))
    everything = {(f"{family.name}_bucket", label, "+Inf"): 10.0 for family in METRIC_FAMILIES for label in labels}
    everything |= {(family.name, label, ""): 10.0 for family in METRIC_FAMILIES for label in labels}

    report = report_of({"": everything}, many)

    assert {"confidence"} < report.histograms.keys()
    assert len(report.histograms) <= MAX_HISTOGRAMS
    assert AnswersReport.model_validate(report.model_dump(mode="json")).histograms.keys() == report.histograms.keys()


def test_slices_are_reported_beside_their_sum() -> None:
    model = assigned("coins").model_copy(update={"metrics": ModelMetrics(slices=("north", "south", "east"))})
    lines = []
    for label, answers, empty, detailed in (("north", 30, 3, 5), ("south", 20, 2, 20), ("other", 7, 7, 0)):
        own = f'{OWN},slice="{label}"'
        lines += [
            f"segserve_answers_total{{{own}}} {answers}",
            f"segserve_empty_answers_total{{{own}}} {empty}",
            f'segserve_image_detail_ratio_bucket{{{own},le="0.05"}} {answers - detailed}',
            f'segserve_image_detail_ratio_bucket{{{own},le="+Inf"}} {answers}',
            f'segserve_answer_confidence_bucket{{{own},le="+Inf"}} {answers - empty}',
        ]

    report = report_of(read_series("\n".join(lines).encode(), frozenset({"coins-1"}))["coins-1"], model)

    assert report.histograms["emptyAnswers"] == (45, 12)
    assert sum(report.histograms["confidence"]) == 45
    assert report.slices.keys() == {"north", "south"}
    assert "confidence" not in report.slices["north"]
    assert report.slices["north"]["emptyAnswers"] == (27, 3)
    assert sum(report.slices["south"]["detail"][8:]) == 20
    assert AnswersReport.model_validate(report.model_dump(mode="json")) == report


def test_however_many_slices_there_are_a_report_stays_bounded() -> None:
    metrics = ModelMetrics(slices=tuple(f"camera-{number}" for number in range(MAX_COUNTED_SLICES)))
    model = assigned("coins", classes=tuple(f"class {number}" for number in range(40)))
    by_slice = {
        label: {
            ("segserve_answers_total", "", ""): 10.0,
            **{(f"{family.name}_bucket", "", "+Inf"): 10.0 for family in IMAGE_HISTOGRAMS.values()},
        }
        for label in metrics.slices or ()
    }

    for slices in (metrics.slices, (metrics.slices or ())[:4]):
        limited = model.model_copy(update={"metrics": ModelMetrics(slices=slices)})
        report = report_of(by_slice, limited)

        assert len(report.slices) == min(len(slices or ()), MAX_REPORTED_SLICES)
        assert sum(map(len, report.slices.values())) <= MAX_SLICE_HISTOGRAMS
        assert len(report.histograms) <= MAX_HISTOGRAMS


def test_counts_are_read_as_often_as_requested_and_only_then(port: int) -> None:
    counts = AnswerCounts(port)
    assert not counts.start(0.0)

    counts.follow({"coins-1": (assigned("coins"), AnswerCounting(interval_s=30))})

    assert counts.start(1.0)
    assert not counts.start(30.9)
    assert counts.start(31.0)


def test_what_was_read_is_reported_until_it_is_not_requested_any_more(port: int) -> None:
    counts = AnswerCounts(port)
    counts.follow({"coins-1": (assigned("coins"), AnswerCounting(interval_s=30))})
    assert counts.report("coins-1") is None

    counts.read()

    told = counts.report("coins-1")
    assert told is not None
    assert told.histograms["classShare:coin"] == (2, 8)
    counts.follow({})
    assert counts.report("coins-1") is None


def test_a_server_that_does_not_answer_leaves_the_former_counts(port: int) -> None:
    counts = AnswerCounts(port)
    counts.follow({"coins-1": (assigned("coins"), AnswerCounting(interval_s=30))})
    counts.read()
    before = counts.report("coins-1")

    counts.metrics_port = 1
    counts.read()

    assert counts.report("coins-1") == before


def test_metrics_that_are_too_long_leave_the_former_counts_and_are_told_once(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = AnswerCounts(port)
    counts.follow({"coins-1": (assigned("coins"), AnswerCounting(interval_s=30))})
    counts.read()
    before = counts.report("coins-1")

    monkeypatch.setattr(_Metrics, "text", METRICS.replace("} 10", "} 20") + "\n" * 16 * 2**20)
    for _ in range(3):
        counts.read()

    assert counts.report("coins-1") == before
    assert [record.getMessage() for record in caplog.records] == [
        "the server's metrics are longer than 16 MiB: answers are not counted any more"
    ]
