"""Counts of a model's answers, for Prometheus: what each answer adds, and what was added since the last report.

Histograms are counted as counters of their buckets: Triton takes one observation at a time, and each is a message to
the server. Classes beyond the counted ones share the label `other`, so that series are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

from segserve_builder.spec.model_spec import ModelMetrics
from segserve_builder.steps.encode import FEW_CLASSES, label_areas
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import (
    Candidates,
    ClassMasks,
    ImageStatistics,
    Instances,
    KeypointDetections,
    LabelMap,
    Panoptic,
    ResizeTransform,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Answer: TypeAlias = LabelMap | ClassMasks | Instances | Candidates | KeypointDetections | Panoptic

OTHER: Final = "other"
MOST_PIXELS: Final = 2**17
"""The areas of a larger label map are estimated from a grid of at most this many pixels."""
MOST_PROBABILITIES: Final = 2**12
"""Probabilities that are computed of a label map, of all classes for each pixel of a grid."""
MOST_KEPT: Final = 256
"""Answers that are kept to be summed at once."""
STEPS: Final = ("pre", "network", "post")
TIERS: Final = ("light", "heavy")


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """A metric: its name and help, its labels beside `model` and `revision`, and a histogram's upper edges.

    A histogram with negative edges has no sum, as that would not grow.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def counters(self) -> tuple[str, ...]:
        """The names of the counters that report it."""
        if not self.edges:
            return (self.name,)
        suffixes = ("_bucket", "_count") if self.edges[0] < 0 else ("_bucket", "_count", "_sum")
        return tuple(self.name + suffix for suffix in suffixes)


_TENTHS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

ANSWERS: Final = MetricFamily("segserve_answers_total", "Answers to callers.")
EMPTY: Final = MetricFamily(
    "segserve_empty_answers_total", "Answers without an object; of semantic models, with one class or none."
)
COLD_STARTS: Final = MetricFamily(
    "segserve_cold_starts_total",
    "Requests that were the first of a step's process, tests by agents included.",
    ("step",),
)
CLASS_ANSWERS: Final = MetricFamily("segserve_class_answers_total", "Answers that contain the class.", ("class",))
CLASS_INSTANCES: Final = MetricFamily("segserve_class_instances_total", "Objects of the class.", ("class",))
CLASS_PIXELS: Final = MetricFamily("segserve_class_pixels_total", "Pixels of the class.", ("class",))
CLASS_ISLANDS: Final = MetricFamily(
    "segserve_class_islands_total", "Connected regions of the masks of the class.", ("class",)
)
CLASS_AREA: Final = MetricFamily(
    "segserve_class_area_ratio",
    "Share of the image that is of the class, of answers that contain it.",
    ("class",),
    (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
)
CLASS_SCORE: Final = MetricFamily(
    "segserve_class_score", "Scores of objects; of semantic models, mean confidences of the class.", ("class",), _TENTHS
)
CONFIDENCE: Final = MetricFamily(
    "segserve_answer_confidence",
    "Mean probability of the pixels' classes, or mean score of objects, by answer.",
    (),
    (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0),
)
IMAGE_PIXELS: Final = MetricFamily(
    "segserve_image_pixels", "Pixels of images.", (), (1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
)
IMAGE_BRIGHTNESS: Final = MetricFamily(
    "segserve_image_brightness_ratio", "Mean of decoded images; 0 is black, 1 is white.", (), _TENTHS
)
_SHARES: Final = (0.2, 0.3, 0.4, 0.44, 0.47, 0.49, 0.51, 0.53, 0.56, 0.6, 0.7, 0.8, 1.0)
"""Edges for shares of which one half is usual."""
IMAGE_CONTRAST: Final = MetricFamily(
    "segserve_image_contrast_ratio", "Standard deviation of decoded images, divided by their mean.", (), _TENTHS
)
IMAGE_DETAIL: Final = MetricFamily(
    "segserve_image_detail_ratio",
    "Fine detail of decoded images: median of the absolute Laplacian, divided by four and by the mean.",
    (),
    (0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 1.0),
)
IMAGE_VERTICAL_GRADIENTS: Final = MetricFamily(
    "segserve_image_vertical_gradients_ratio",
    "Share of vertical gradients in the energy of all gradients of decoded images.",
    (),
    _SHARES,
)
IMAGE_TOP_BRIGHTNESS: Final = MetricFamily(
    "segserve_image_top_brightness_ratio",
    "Share of the upper half in the brightness of decoded images; 0.5 where both are equally bright.",
    (),
    _SHARES,
)
STEP_SECONDS: Final = MetricFamily(
    "segserve_step_seconds",
    "Time of a request in a step; network has its queue, and the time between the steps.",
    ("step",),
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
OUT_OF_DISTRIBUTION: Final = MetricFamily(
    "segserve_out_of_distribution_total",
    "Requests whose image was flagged as out of distribution, refused ones included; of models with "
    "spec.outOfDistribution.",
)
OUT_OF_DISTRIBUTION_MARGIN: Final = MetricFamily(
    "segserve_out_of_distribution_margin",
    "Score of a request's image, less the threshold above which it is flagged.",
    (),
    (-20, -10, -5, -2, -1, -0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
)
CASCADE_ANSWERS: Final = MetricFamily(
    "segserve_cascade_answers_total",
    "Requests by the network that answered them, light or heavy; of models with spec.cascade.",
    ("tier",),
)
SLICED: Final = frozenset(
    {
        *(ANSWERS, EMPTY, CLASS_ANSWERS, CLASS_INSTANCES, CLASS_PIXELS, CLASS_ISLANDS, CLASS_AREA, CLASS_SCORE),
        *(CONFIDENCE, IMAGE_PIXELS, IMAGE_BRIGHTNESS, IMAGE_CONTRAST, IMAGE_DETAIL),
        *(IMAGE_VERTICAL_GRADIENTS, IMAGE_TOP_BRIGHTNESS),
    }
)
"""Families that also have the label `slice`, if the model declares slices."""
IMAGE_HISTOGRAMS: Final = {
    "brightness": IMAGE_BRIGHTNESS,
    "contrast": IMAGE_CONTRAST,
    "detail": IMAGE_DETAIL,
    "verticalGradients": IMAGE_VERTICAL_GRADIENTS,
    "topBrightness": IMAGE_TOP_BRIGHTNESS,
    "imagePixels": IMAGE_PIXELS,
}
"""Families of images, by the names that reports have for them: the fields of `ImageStatistics` in order, and pixels."""
METRIC_FAMILIES: Final = (
    *(ANSWERS, EMPTY, COLD_STARTS, CLASS_ANSWERS, CLASS_INSTANCES, CLASS_ISLANDS, CLASS_PIXELS, CLASS_AREA),
    *(CLASS_SCORE, CONFIDENCE, *IMAGE_HISTOGRAMS.values(), STEP_SECONDS),
    *(OUT_OF_DISTRIBUTION, OUT_OF_DISTRIBUTION_MARGIN, CASCADE_ANSWERS),
)


class Increment(NamedTuple):
    """Growth of one counter, which is named and labelled."""

    name: str
    labels: Mapping[str, str]
    amount: float


class Measures(NamedTuple):
    """Measurements of the step `pre`, as they pass to `post`: in the tensor GEOMETRY, behind the `ResizeTransform`.

    Times are of the machine's monotonic clock, in seconds; `first` is 1 for the first request of the step's process.
    """

    image: ImageStatistics
    started_s: float
    ended_s: float
    first: float

    def to_numbers(self) -> NDArray[Any]:
        """Return the bytes of the eight FP64 numbers, as INT32 [16]."""
        import numpy as np

        return np.array((*self.image, *self[1:])).view(np.int32)

    @classmethod
    def from_geometry(cls, numbers: NDArray[Any]) -> Self:
        """Read the tensor GEOMETRY; raises `TypeError` or `ValueError` if it has no measures."""
        *image, started_s, ended_s, first = numbers[8:].view("float64").tolist()
        return cls(ImageStatistics(*image), started_s, ended_s, first)


class _Counts:
    """One family's counts: a row for each combination of its own labels' values; the last label's changes first."""

    def __init__(self, family: MetricFamily, values: Mapping[str, tuple[str, ...]]) -> None:
        import numpy as np

        rows = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
        self._family, self._rows = family, rows
        self._edges = np.array(family.edges)
        # For a histogram, the observations by bucket and their sum, else the count alone.
        self._values = np.zeros((len(rows), len(family.edges) + 2 if family.edges else 1))
        self._known: set[int] = set()

    def add(self, amounts: Any, rows: Any = 0) -> None:
        """Add to the counts of a row, or of an array of rows."""
        self._values[:, 0] += self._sums(amounts, rows)

    def observe(self, values: Any, rows: Any = 0) -> None:
        """Count an array of observations in a histogram's rows."""
        import numpy as np

        cells = rows * self._values.shape[1] + np.searchsorted(self._edges, values)
        self._values += np.bincount(np.ravel(cells), minlength=self._values.size).reshape(self._values.shape)
        self._values[:, -1] += self._sums(values, rows)

    def _sums(self, amounts: Any, rows: Any) -> NDArray[Any]:
        import numpy as np

        amounts, rows = np.broadcast_arrays(amounts, rows)
        return np.bincount(rows.ravel(), amounts.ravel(), len(self._rows))

    def take(self) -> Iterator[Increment]:
        """Yield what was added since the last call.

        Counters begin with zeros, so that their first increment shows, and histograms with all buckets of a new row.
        """
        import numpy as np

        values, self._values = self._values, np.zeros_like(self._values)
        for row, changed in enumerate(map(any, values.tolist())):
            labels = self._rows[row]
            if not self._family.edges:
                if changed or (row not in self._known and OTHER not in labels.values()):
                    yield Increment(self._family.name, labels, float(values[row, 0]))
                self._known.add(row)
                continue
            if not changed:
                continue
            bucket, count, *total = self._family.counters
            cumulated = values[row, :-1].cumsum().tolist()
            for edge, amount in zip([*self._family.edges, None], cumulated, strict=True):
                if amount or row not in self._known:
                    yield Increment(bucket, labels | {"le": "+Inf" if edge is None else f"{edge:.10g}"}, amount)
            self._known.add(row)
            for name in total:
                yield Increment(name, labels, float(values[row, -1]))
            yield Increment(count, labels, cumulated[-1])


class AnswerMetrics:
    """The counts of one revision's answers. One thread counts, another one may take.

    Answers are kept, and many are summed at once: numpy takes as long for one as for a hundred.
    """

    def __init__(self, pipeline: Pipeline, metrics: ModelMetrics, *, tiers: bool = False) -> None:
        """Start at zero; with `tiers` the requests to the networks of a cascade are also counted."""
        import numpy as np

        counted = [item for item in pipeline.classes if not metrics.classes or item.name in metrics.classes]
        if not metrics.classes:
            counted = counted[: metrics.most_classes]
        names = dict.fromkeys((*(item.name for item in counted), OTHER))
        row_of = {name: row for row, name in enumerate(names)}
        # By class id; the last one stands for ids that the model does not list.
        self._rows = np.full(max(item.id for item in pipeline.classes) + 2, row_of[OTHER])
        for item in counted:
            self._rows[item.id] = row_of[item.name]
        self._pipeline = pipeline
        self._names = tuple(names)
        slices = () if metrics.slices is None else tuple(dict.fromkeys((*metrics.slices, OTHER)))
        self._slice_of = {name: number for number, name in enumerate(slices)}
        values = {"step": STEPS, "class": self._names, "tier": TIERS}
        of_scores = () if pipeline.out_of_distribution else (OUT_OF_DISTRIBUTION, OUT_OF_DISTRIBUTION_MARGIN)
        absent = {*of_scores, *(() if tiers else (CASCADE_ANSWERS,))}
        self._counts = {
            family: _Counts(
                family,
                ({"slice": slices} if slices and family in SLICED else {})
                | {name: values[name] for name in family.labels},
            )
            for family in METRIC_FAMILIES
            if family not in absent
        }
        self._kept: list[_Kept] = []
        self._margins: list[float] = []
        self._lock = Lock()
        self._is_first = True

    def count(
        self,
        answer: Answer,
        outputs: Mapping[str, NDArray[Any]],
        image: ResizeTransform,
        measures: Measures,
        times_s: tuple[float, float],
        *,
        is_test: bool,
        label: str = "",
    ) -> None:
        """Count an answer with its public outputs, which the step `post` made between two times.

        If the request is an agent's test, only a cold start is counted. `label` is the slice that the request names.
        """
        if measures.first or self._is_first:
            firsts = {"pre": measures.first, "post": float(self._is_first)}
            with self._lock:
                self._counts[COLD_STARTS].add(list(firsts.values()), [STEPS.index(step) for step in firsts])
            self._is_first = False
        if is_test:
            return
        pre_started_s, pre_ended_s, (post_started_s, post_ended_s) = measures.started_s, measures.ended_s, times_s
        seconds = (pre_ended_s - pre_started_s, post_started_s - pre_ended_s, post_ended_s - post_started_s)
        contents = AnswerContents.of(answer, outputs, self._pipeline)
        self.count_contents(contents, image, measures.image, seconds, label)

    def count_contents(
        self,
        contents: AnswerContents,
        image: ResizeTransform,
        statistics: ImageStatistics,
        seconds: tuple[float, float, float] = (0.0, 0.0, 0.0),
        label: str = "",
    ) -> None:
        """Count an answer by its contents, and its image; `seconds` is the time in each step."""
        with self._lock:
            number = self._slice_of.get(label, self._slice_of.get(OTHER, 0))
            self._kept.append(_Kept(image.height * image.width, statistics, seconds, contents, number))
            if len(self._kept) == MOST_KEPT:
                self._sum()

    def count_score(self, margin: float) -> None:
        """Count an image's score by how far it is above the threshold of `Pipeline.out_of_distribution`."""
        with self._lock:
            self._margins.append(margin)
            if len(self._margins) == MOST_KEPT:
                self._sum()

    def count_tier(self, tier: str) -> None:
        """Count a request to a cascade by the network that answers it."""
        with self._lock:
            self._counts[CASCADE_ANSWERS].add(1, TIERS.index(tier))

    def take(self) -> list[Increment]:
        """Return what was counted since the last call."""
        with self._lock:
            self._sum()
            return [increment for counts in self._counts.values() for increment in counts.take()]

    def _sum(self) -> None:
        """Add the kept answers to the counts."""
        import numpy as np

        if self._margins:
            margins, self._margins = np.array(self._margins), []
            self._counts[OUT_OF_DISTRIBUTION].add((margins > 0).sum())
            self._counts[OUT_OF_DISTRIBUTION_MARGIN].observe(margins)
        if not self._kept:
            return
        pixels, images, seconds, contents, numbers = zip(*self._kept, strict=True)
        self._kept = []
        slices = np.array(numbers)
        counts = self._counts
        counts[ANSWERS].add(1, slices)
        counts[EMPTY].add([each.is_empty for each in contents], slices)
        for family, values in zip(IMAGE_HISTOGRAMS.values(), (*zip(*images, strict=True), pixels), strict=True):
            counts[family].observe(values, slices)
        counts[STEP_SECONDS].observe(np.array(seconds), np.arange(len(STEPS)))
        classes = np.concatenate([each.classes for each in contents])
        scores = np.concatenate([each.scores for each in contents])
        areas, islands, objects = (
            np.concatenate(amounts) if amounts[0] is not None else None  # all answers of a model are of one type
            for amounts in zip(*((each.areas, each.islands, each.objects) for each in contents), strict=True)
        )
        answers = np.repeat(np.arange(len(contents)), [len(each.classes) for each in contents])
        rows = self._rows[np.minimum(classes, len(self._rows) - 1)]
        width = len(self._names)
        pairs = answers * width + rows
        first_rows = slices * width
        in_answers = np.bincount(pairs, minlength=width * len(contents)).reshape(-1, width) > 0
        counts[CLASS_ANSWERS].add(in_answers, first_rows[:, None] + np.arange(width))
        rows = rows + first_rows[answers]
        is_scored = ~np.isnan(scores)
        counts[CLASS_SCORE].observe(scores[is_scored], rows[is_scored])
        weights = np.where(is_scored, 1 if areas is None or objects is not None else areas, 0)
        totals = np.bincount(answers, weights, len(contents))
        sums = np.bincount(answers, weights * np.nan_to_num(scores), len(contents))
        counts[CONFIDENCE].observe(np.minimum(sums[totals > 0] / totals[totals > 0], 1.0), slices[totals > 0])
        if objects is not None:
            counts[CLASS_INSTANCES].add(objects, rows)
        if islands is not None:
            counts[CLASS_ISLANDS].add(islands, rows)
        if areas is not None:
            counts[CLASS_PIXELS].add(areas, rows)
            # If several of an answer's items share a class, its share of the image is the share of all of them.
            of_pairs = np.bincount(pairs, areas)
            (present,) = of_pairs.nonzero()
            shares = of_pairs[present] / np.array(pixels)[present // width]
            counts[CLASS_AREA].observe(np.minimum(shares, 1.0), first_rows[present // width] + present % width)


class _Kept(NamedTuple):
    """An answer until it is counted: its image's pixels and statistics, seconds in each step, contents, its slice."""

    pixels: int
    image: ImageStatistics
    seconds: tuple[float, float, float]
    contents: AnswerContents
    slice: int


class AnswerContents(NamedTuple):
    """Items of an answer (objects, segments, classes), an array each: class ids, scores, areas in pixels and so on.

    Scores are NaN where unknown; other amounts are None if the answers lack them. A class may have several items.
    Nothing here refers to the answer's large arrays.
    """

    is_empty: bool
    classes: NDArray[Any]
    scores: NDArray[Any]
    areas: NDArray[Any] | None = None
    islands: NDArray[Any] | None = None
    objects: NDArray[Any] | None = None
    """1 where an item counts as an object of its class, else 0."""

    @classmethod
    def of(cls, answer: Answer, outputs: Mapping[str, NDArray[Any]], pipeline: Pipeline) -> Self:
        """Return the contents of an answer with its public outputs."""
        import numpy as np

        from segserve_builder.kernels.rle_reader import regions

        match answer:
            case LabelMap():
                number = len(pipeline.classes)
                areas = _label_areas(answer.labels, number, outputs)
                (present,) = areas.nonzero()
                scores = _label_scores(answer, number, outputs)
                return cls(len(present) < 2, present, scores[present], areas[present])
            case ClassMasks():
                (present,) = answer.areas.nonzero()
                masks = [answer.masks[index] for index in present.tolist()]
                islands = regions(masks, answer.height, answer.width)[1]
                scores = answer.confidence[present]
                return cls(len(present) < 2, present, scores, answer.areas[present], islands)
            case Panoptic():
                segments = answer.segments
                classes = np.array([segment.class_id for segment in segments], np.int64)
                scores = np.array([segment.score for segment in segments], float)
                by_id = _areas(answer.ids, max((segment.id for segment in segments), default=0) + 1)
                areas = by_id[[segment.id for segment in segments]]
                objects = np.array([segment.is_thing for segment in segments], float)
                return cls(not segments, classes, scores, areas, objects=objects)
            case _:
                number = len(answer.scores)
                of_masks = regions(answer.masks, answer.height, answer.width) if isinstance(answer, Instances) else ()
                # Copies, as these may be parts of the network's outputs.
                items = cls(not number, answer.classes.copy(), answer.scores.copy(), *of_masks)
                return items._replace(objects=np.ones(number))


def _label_areas(labels: NDArray[Any], number: int, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    areas = outputs.get("AREAS")
    return areas if areas is not None and len(areas) else _areas(labels, number)


def _areas(labels: NDArray[Any], number: int) -> NDArray[Any]:
    """Return the pixels of each label below `number` of a map (H, W), estimated for one of more than `MOST_PIXELS`."""
    import numpy as np

    from segserve_builder.kernels.labels import count_labels

    if labels.size <= MOST_PIXELS and number <= FEW_CLASSES:
        return label_areas(labels, number)
    step = math.ceil(math.sqrt(labels.size / MOST_PIXELS))
    points = count_labels(labels, number, step)
    return points if step == 1 else np.rint(points * (labels.size / points.sum()))


def _label_scores(answer: LabelMap, number: int, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the mean probability of each label, from a grid of pixels unless it is an output, NaN where unknown."""
    import numpy as np

    from segserve_builder.kernels.labels import sampled_confidences
    from segserve_builder.sampling import axes

    exact = outputs.get("CONFIDENCE")
    if exact is not None and len(exact):
        return exact
    logits = answer.logits
    if not logits.values.size:
        return np.full(number, np.nan)
    channels, *grid = logits.values.shape
    rows, columns = axes(logits.transform, *grid, align_corners=logits.align_corners)
    step = math.ceil(math.sqrt(answer.labels.size * channels / MOST_PROBABILITIES))
    points, sums = sampled_confidences(answer.labels, logits.values, rows, columns, logits.temperature, step)
    scores = np.full(number, np.nan)
    (seen,) = points[:number].nonzero()
    scores[seen] = sums[seen] / points[seen]
    return scores
