"""Time until planted drifts are found, and false alarms: `python -m bench.archive.drift`.

Answers are those of the example's instances model, run in this process on parts of its photograph, and counted by the
steps' own code. Thirty days are drawn from them: four cameras whose scenes last some twenty answers, twelve answers a
minute in all, a day and a night. A second table has a simulated brightness alone, whose mean falls. The figures go to
bench/out/drift.json, and the tables are printed (a quarter of an hour). `--values FILE` only
writes what the steps measure of each answer, for `bench.archive.drift_peers`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bench.archive.drift_months import (
    ANSWERS,
    CAMERAS,
    DAYS,
    DRIFTS,
    LEVELS,
    PLANTED_DAY,
    RUNS,
    SCENES,
    WINDOW_S,
    Month,
    Planted,
)
from bench.coins import variant
from bench.platform import ROOT
from bench.rollout.report import markdown_table
from segserve_builder.agent.answer_counts import counted_classes, histograms
from segserve_builder.spec.model_spec import ModelMetrics
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.answer_metrics import (
    CLASS_AREA,
    CONFIDENCE,
    EMPTY,
    IMAGE_HISTOGRAMS,
    AnswerMetrics,
    Measures,
)
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import Postprocess, check_postprocess
from segserve_builder.steps.preprocess import NetworkInput, Preprocess
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.steps.session import NetworkSession
from segserve_builder.steps.step_options import NetOptions
from segserve_operator.api.drift import Drift, DriftReference, DriftWindow
from segserve_operator.api.segmentation_model import SegmentationModel
from bench.rollout.outcomes import wilson
from segserve_operator.core.drift.watch import DriftWatch

OUT: Final = ROOT / "bench/out/drift.json"
PHOTO: Final = ROOT / "examples/coins/coins.png"
CLEAN_MONTHS: Final = 12
DRIFT: Final = Drift(
    window=timedelta(seconds=WINDOW_S), reference=DriftReference(window=DriftWindow(duration=timedelta(days=2)))
)
FALLS: Final = (0.3, 0.15, 0.1, 0.05)
SWINGS: Final = (0.0, 0.2)
"""How far the simulated mean brightness of day and night differ."""
FALL_RUNS: Final = 9
FALL_DAYS: Final = 10
DAY: Final = Drift(window=timedelta(seconds=WINDOW_S))
Record = Mapping[str, tuple[int, ...]]
"""Histograms of one answer."""
Values = Mapping[str, float]
"""What the histograms count of one answer."""
T = TypeVar("T")


class CountedModel:
    """The example's instances model in this process, with the counts of its steps."""

    def __init__(self) -> None:
        model = SegmentationModel.model_validate(variant(model="coins-instances"))
        pipeline, self.assigned = model.pipeline, model.assigned
        file = Path(model.spec.artifact.uri.removeprefix("file://"))
        io_ = network_io(pipeline, read_signature(file))
        self._network = NetworkSession(file, NetOptions.of(pipeline, io_))
        self._pre = Preprocess(pipeline.preprocess, pipeline.input, io_.input, io_.layout, measures=True)
        self._post = Postprocess(pipeline, io_)
        self._outputs = frozenset(each.name for each in PUBLIC_OUTPUTS[check_postprocess(pipeline)]) - {"REVISION"}
        self._pipeline = pipeline

    def _run(self, image: Image.Image) -> tuple[NetworkInput, dict[str, NDArray[Any]]]:
        file = io.BytesIO()
        image.save(file, "PNG")
        given = self._pre(file.getvalue(), None)
        return given, self._network.run(given.tensor)

    def _counters(self, image: Image.Image) -> dict[tuple[str, str, str], float]:
        """Return the counters of the answer to an image by name, class and bucket."""
        given, raw = self._run(image)
        values: list[Any] = []
        outputs = self._post(raw, given.transform, RequestOptions(), self._outputs, observe=values.append)
        metrics = AnswerMetrics(self._pipeline, ModelMetrics())
        assert given.statistics is not None
        measures = Measures(given.statistics, 0.0, 0.0, 0.0)
        metrics.count(values[0], outputs, given.transform, measures, (0.0, 0.0), is_test=False)
        return {
            (each.name, each.labels.get("class", ""), each.labels.get("le", "")): each.amount
            for each in metrics.take()
            if "step" not in each.labels
        }

    def values(self, image: Image.Image) -> Values:
        """Return what the histograms count of the answer to an image; 0 for what an answer without a coin lacks."""
        counters = self._counters(image)
        (name,) = counted_classes(self.assigned)
        families = {**IMAGE_HISTOGRAMS, "confidence": CONFIDENCE}
        return {
            **{key: counters.get((f"{family.name}_sum", "", ""), 0.0) for key, family in families.items()},
            "empty": counters.get((EMPTY.name, "", ""), 0.0),
            f"area:{name}": counters.get((f"{CLASS_AREA.name}_sum", name, ""), 0.0),
        }

    def record(self, image: Image.Image) -> Record:
        """Return what the steps count of the answer to an image, as an agent reports it."""
        return histograms(self._counters(image), counted_classes(self.assigned))


def pictures() -> tuple[list[Image.Image], list[Image.Image]]:
    """Return the scenes of all cameras, and some without a coin."""
    photo = Image.open(PHOTO).convert("RGB")
    random = np.random.default_rng(0)
    scenes = []
    for _ in range(CAMERAS * SCENES):
        left, top = int(random.integers(photo.width - 192)), int(random.integers(photo.height - 150))
        scenes.append(photo.crop((left, top, left + 192, top + 150)))
    ground = [Image.fromarray(np.clip(random.normal(70, 8, (150, 192, 3)), 0, 255).astype(np.uint8)) for _ in range(4)]
    return scenes, ground


def answers(measure: Callable[[Image.Image], T], planted: Planted) -> list[list[T]]:
    """Return what is measured of the answers to every scene, the empty ones last, by level of brightness."""
    scenes, ground = pictures()
    changed = [planted.change(each) for each in (*scenes, *ground)]
    return [[measure(ImageEnhance.Brightness(each).enhance(level)) for each in changed] for level in LEVELS]


def summed(given: list[tuple[Record, int]], totals: dict[str, NDArray[np.float64]]) -> dict[str, tuple[float, ...]]:
    """Add answers to what the server has counted, and return that."""
    for counts, times in given:
        for name, each in counts.items():
            totals[name] = totals.get(name, np.zeros(len(each))) + times * np.array(each)
    return {name: tuple(each.tolist()) for name, each in totals.items()}


def watched(month: Month[Record]) -> list[tuple[float, str]]:
    """Return the alarms of a month: the day of each, and the histogram that is farthest from the reference."""
    watch, totals = DriftWatch.start("coins-1", 0.0, DRIFT), dict[str, NDArray[np.float64]]()
    watch = watch.measured({"server": summed(month.window(0), totals)}, DRIFT, 0.0)
    alarms, alarmed = [], False
    for number in range(1, DAYS * 86400 // WINDOW_S):
        at_s = float(number * WINDOW_S)
        watch = watch.measured({"server": summed(month.window(number), totals)}, DRIFT, at_s)
        if watch.found and not alarmed:
            alarms.append((at_s / 86400, watch.found[0].name))
            if at_s / 86400 >= PLANTED_DAY and month.planted.says != "none":
                break
        alarmed = bool(watch.found)
    return alarms


def result(name: str, tables: Mapping[str, list[list[Record]]]) -> dict[str, Any]:
    """Return how long it takes to find a drift, and the false alarms before it."""
    runs = CLEAN_MONTHS if name == "none" else RUNS
    minutes, false, by = [], 0, []
    for seed in range(runs):
        month = Month(tables["none"], tables[name], DRIFTS[name], np.random.default_rng((seed, 1)))
        alarms = watched(month)
        late = [alarm for alarm in alarms if alarm[0] >= PLANTED_DAY and name != "none"]
        false += len(alarms) - len(late)
        if late:
            minutes.append(round((late[0][0] - PLANTED_DAY) * 1440))
            by.append(late[0][1])
    return {"runs": runs, "found": len(minutes), "minutes": minutes, "falseAlarms": false, "histograms": by}


def minutes_until_found(fall: float, swing: float, seed: int) -> int | None:
    """Return the minutes until a fall of the mean of a simulated brightness is found, None if it is not.

    An alarm before the fall is false, and its number is negative.
    """
    random = np.random.default_rng(seed)
    watch, total, falls_s = DriftWatch.start("simulated", 0.0, DAY), np.zeros(11), 86400 * (2 + random.random())
    for number in range(round(falls_s / WINDOW_S) + FALL_DAYS * 86400 // WINDOW_S):
        at_s = float(number * WINDOW_S)
        mean = 0.45 + swing / 2 * np.sin(2 * np.pi * at_s / 86400) - (fall if at_s >= falls_s else 0.0)
        light = np.clip(random.normal(mean, 0.08, ANSWERS), 0.0, 0.999)
        total[:10] += np.histogram(light, 10, (0.0, 1.0))[0]
        watch = watch.measured({"server": {"brightness": tuple(total.tolist())}}, DAY, at_s)
        if watch.found:
            return round((at_s - falls_s) / 60)
    return None


def falls() -> list[dict[str, Any]]:
    """Return the minutes until each fall of a simulated brightness is found."""
    return [
        {
            "fall": fall,
            "swing": swing,
            "minutes": [minutes_until_found(fall, swing, seed) for seed in range(FALL_RUNS)],
        }
        for fall in FALLS
        for swing in SWINGS
    ]


def report_falls(results: list[dict[str, Any]]) -> None:
    """Print the table of the simulated brightness."""
    rows = []
    for each in results:
        found = [minutes for minutes in each["minutes"] if minutes is not None]
        missed = f", {FALL_RUNS - len(found)} of {FALL_RUNS} not found" if len(found) < FALL_RUNS else ""
        own = f"{np.median(found):.0f} min ({min(found)} to {max(found)}){missed}" if found else "not found"
        rows.append([str(each["fall"]), str(each["swing"]), own])
    print(markdown_table(["mean falls by", "day and night differ by", "time until found"], rows))


def report(results: Mapping[str, Any]) -> None:
    """Print the table of planted drifts."""
    rows = []
    for name, each in results.items():
        planted = DRIFTS[name]
        if name == "none":
            low, high = (round(DAYS / 30 * bound, 2) for bound in wilson(each["falseAlarms"], each["runs"]))
            own = f"{each['falseAlarms']} alarms in {each['runs']} months ({low} to {high} a month)"
        elif each["found"]:
            worst = f", {each['runs'] - each['found']} not found" if each["found"] < each["runs"] else ""
            own = f"{int(np.median(each['minutes']))} min ({min(each['minutes'])} to {max(each['minutes'])}){worst}"
        else:
            own = f"not found in {DAYS - PLANTED_DAY:.0f} days"
        rows.append([planted.says, own])
    head = ["drift", "time until found"]
    print(markdown_table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=Path, metavar="FILE", help="only write what is measured of each answer")
    options = parser.parse_args()
    model = CountedModel()
    if options.values is not None:
        options.values.write_text(json.dumps({name: answers(model.values, each) for name, each in DRIFTS.items()}))
        return
    tables = {name: answers(model.record, DRIFTS[name]) for name in DRIFTS}
    results: dict[str, Any] = {}
    for name in DRIFTS:
        results[name] = result(name, tables)
        print(name, results[name], flush=True)
    simulated = falls()
    OUT.write_text(json.dumps({"planted": results, "simulated": simulated}, indent=2) + "\n")
    report(results)
    report_falls(simulated)


if __name__ == "__main__":
    main()
