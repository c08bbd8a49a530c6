"""The dashboard of what models answer: which model, revision and class has changed, and since when."""

from __future__ import annotations

from typing import Final

from charts.monitoring.panels import Dashboard, Panel, Row
from charts.monitoring.rules import MODEL

REVISION: Final = f"{MODEL}, revision"
CLASS: Final = f"{REVISION}, class"
CHOSEN: Final = 'namespace=~"$namespace",pool=~"$pool",model=~"$model"'
OF_CLASSES: Final = f'{CHOSEN},class=~"$class"'
OF_REVISION: Final = "{{revision}}"
NAMED: Final = "{{revision}} {{class}}"


def rate(metric: str, by: str = REVISION, *, at: str = "", past: str = "5m", selector: str = CHOSEN) -> str:
    """Return the rate of a counter of answers, summed over servers; `at` is an offset such as `offset 1d`."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[{past}]{f' {at}' if at else ''}))"


def per_answer(numerator: str, denominator: str = "segserve_answers_total") -> str:
    """Return by how much a counter of classes grows for each answer, or for each unit of another counter."""
    return f"{rate(numerator, CLASS, selector=OF_CLASSES)} / on ({REVISION}) group_left () {rate(denominator)}"


def answers_with_class(at: str) -> str:
    """Return the share of a model's answers that contain a class, whatever the revision, over half an hour."""
    found = rate("segserve_class_answers_total", f"{MODEL}, class", at=at, past="30m", selector=OF_CLASSES)
    return f"{found} / on ({MODEL}) group_left () {rate('segserve_answers_total', MODEL, at=at, past='30m')}"


def mean(histogram: str, by: str = REVISION, selector: str = CHOSEN) -> str:
    """Return the mean of a histogram's observations."""
    parts = (rate(f"{histogram}_{part}", by, selector=selector) for part in ("sum", "count"))
    return " / ".join(parts)


def quantile(share: float, histogram: str, by: str = REVISION, selector: str = CHOSEN) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', f'{by}, le', selector=selector)})"


def of_leader(metric: str, by: str, selector: str = CHOSEN) -> str:
    """Return a gauge of the operator without those of others, which remember too; one machine knows no leader."""
    return f"max by ({by}) ({metric}{{{selector}}} unless on (pod) segserve_is_leader == 0)"


CHANGE: Final = f"{answers_with_class('')} - {answers_with_class('offset 1d')}"
STEP: Final = f"{REVISION}, step"

VARIABLES: Final = (
    ("namespace", "label_values(segserve_answers_total, namespace)"),
    ("pool", 'label_values(segserve_answers_total{namespace=~"$namespace"}, pool)'),
    ("model", 'label_values(segserve_answers_total{namespace=~"$namespace",pool=~"$pool"}, model)'),
    ("class", f"label_values(segserve_class_answers_total{{{CHOSEN}}}, class)"),
)

ANSWERS: Final = Dashboard(
    "answers",
    "answers",
    (
        Row("Which model and revision", (
            Panel("Answers", ((rate("segserve_answers_total"), OF_REVISION),), "reqps", width=8),
            Panel("Empty answers",
                  ((f"{rate('segserve_empty_answers_total')} / {rate('segserve_answers_total')}", OF_REVISION),),
                  "percentunit", width=8, top=1, description="Without an object; of semantic models, with one class."),
            Panel("Cold starts", ((f"sum by ({STEP}) (increase(segserve_cold_starts_total{{{CHOSEN}}}[15m]))",
                                   "{{revision}} {{step}}"),), width=8,
                  description="First requests of a step's process. After a load it is a test by the agent."),
        )),
        Row("Which class", (
            Panel("Answers that contain the class", ((per_answer("segserve_class_answers_total"), NAMED),),
                  "percentunit", top=1, description="A class that falls to 0 has collapsed."),
            Panel("Change since yesterday", ((CHANGE, "{{model}} {{class}}"),), "percentunit", signed=True,
                  description="Of the share of answers that contain the class, over half an hour; below 0 it is less."),
            Panel("Objects per answer", ((per_answer("segserve_class_instances_total"), NAMED),)),
            Panel("Share of pixels", ((per_answer("segserve_class_pixels_total", "segserve_image_pixels_sum"), NAMED),),
                  "percentunit"),
            Panel("Median score", ((quantile(0.5, "segserve_class_score", CLASS, OF_CLASSES), NAMED),), "percentunit",
                  top=1, description="Of semantic models the confidence."),
            Panel("Scores of the lowest tenth", ((quantile(0.1, "segserve_class_score", CLASS, OF_CLASSES), NAMED),),
                  "percentunit", top=1),
            Panel("Median share of the image, where it is there",
                  ((quantile(0.5, "segserve_class_area_ratio", CLASS, OF_CLASSES), NAMED),), "percentunit"),
            Panel("Mean score", ((mean("segserve_class_score", CLASS, OF_CLASSES), NAMED),), "percentunit", top=1),
            Panel("Confidence of answers", ((mean("segserve_answer_confidence"), OF_REVISION),), "percentunit", top=1,
                  description="Images unlike those that the network was trained with move it down."),
            Panel("Parts of an object",
                  ((" / ".join(rate(f"segserve_class_{each}_total", CLASS, selector=OF_CLASSES)
                               for each in ("islands", "instances")), NAMED),)),
        )),
        Row("Which images", (
            Panel("Mean brightness", ((mean("segserve_image_brightness_ratio"), OF_REVISION),), "percentunit", top=1,
                  width=8, description="0 is black, 1 is white."),
            Panel("Darkest tenth", ((quantile(0.1, "segserve_image_brightness_ratio"), OF_REVISION),), "percentunit",
                  top=1, width=8),
            Panel("Pixels of an image, mean", ((mean("segserve_image_pixels"), OF_REVISION),), width=8),
            Panel("Fine detail, median", ((quantile(0.5, "segserve_image_detail_ratio"), OF_REVISION),), width=8,
                  description="Noise raises it; blur, JPEG of low quality and dirt lower it."),
            Panel("Contrast, mean", ((mean("segserve_image_contrast_ratio"), OF_REVISION),), width=8),
            Panel("Directions, means",
                  ((mean("segserve_image_vertical_gradients_ratio"), "{{revision}} vertical gradients"),
                   (mean("segserve_image_top_brightness_ratio"), "{{revision}} brightness of the upper half")),
                  "percentunit", top=1, width=8, description="A camera that was turned moves them."),
        )),
        Row("Drift", (
            Panel("Drifting", ((of_leader("segserve_drifting", MODEL), "{{model}}"),), top=1, width=8,
                  description="1 while a model with spec.drift differs from its reference: the test decides."),
            Panel("PSI",
                  ((of_leader("segserve_drift_psi", f"{MODEL}, histogram"), "{{model}} {{histogram}}"),), width=8,
                  description="How far the last windows are from the reference; no threshold decides."),
            Panel("KL divergence",
                  ((of_leader("segserve_drift_kl_nats", f"{MODEL}, histogram"), "{{model}} {{histogram}}"),), width=8,
                  description="In nats."),
        )),
        Row("Which step", (
            Panel("p95 by step", ((quantile(0.95, "segserve_step_seconds", STEP), "{{revision}} {{step}}"),), "s"),
            Panel("Mean by step", ((mean("segserve_step_seconds", STEP), "{{revision}} {{step}}"),), "s"),
        )),
    ),
    VARIABLES,
    past="now-24h",
)  # fmt: skip
