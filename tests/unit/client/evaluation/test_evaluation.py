"""`segserve.evaluate`: its figures are those of other code on the same answers, and nothing is asked twice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion

import segserve
from fakes.kserve import Arrays, Asked, Fault, items
from segserve import BadRequestError, Client, DatasetError, EvaluationReport
from segserve.errors import RevisionChangedError
from segserve.exports.samples import SampleResult
from segserve.results.result import SemanticResult
from segserve.results.values import SegmentClass
from segserve_builder.scoring.quality import Regions
from segserve_platform.evaluation.datasets import Dataset, LabelledImage
from segserve_platform.evaluation.estimates import Estimate, estimates
from segserve_platform.evaluation.regions import document_of
from segserve_platform.evaluation.report import ImageScore, SliceScore
from segserve_platform.evaluation.scores import SIZES, calibration_error, score

from ..conftest import rle_counts
from .conftest import (
    CLASSES,
    COUNT,
    FOUND,
    HEIGHT,
    TRUE,
    WIDTH,
    Disc,
    Served,
    coco_document,
    coco_sides,
    id_map,
    image_of,
    label_map,
    matches,
)

ROUNDED = 0.5001e-4
COCO_FIGURES = ("ap", "ap50", "ap75", *(f"ap {size}" for size in SIZES), "ar1", "ar10", "ar100",
                *(f"ar100 {size}" for size in SIZES))  # fmt: skip


def evaluated(model: str, data: Path, **options: Any) -> EvaluationReport:
    folder = next(each for each in (data, *data.parents) if (each / "images").is_dir())
    images = None if (data / "data.yaml").exists() else folder / "images"
    return segserve.evaluate(model, data, images=images, **{"resamples": 2, **options})


def means(report: EvaluationReport, group: str) -> dict[str, float]:
    return {name: own[group].mean for name, own in report.classes.items() if group in own}


@pytest.mark.parametrize("data", ["", "panoptic"], ids=["label maps", "panoptic labels"])
def test_iou_and_dice_are_those_of_all_pixels_counted_one_by_one(served: Served, folder: Path, data: str) -> None:
    report = evaluated("pixels", folder / data)

    true = np.concatenate([label_map(discs).ravel() for discs in TRUE])
    found = np.concatenate([label_map(discs).ravel() for discs in FOUND])
    counts = np.zeros((3, 3), np.int64)
    np.add.at(counts, (true, found), 1)
    both, labelled, answered = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou, dice = both / (labelled + answered - both), 2 * both / (labelled + answered)
    assert means(report, "iou") == pytest.approx(dict(zip(CLASSES.values(), iou, strict=True)), abs=ROUNDED)
    assert means(report, "dice") == pytest.approx(dict(zip(CLASSES.values(), dice, strict=True)), abs=ROUNDED)
    assert {name: each.mean for name, each in report.metrics.items()} == pytest.approx(
        {"miou": iou.mean(), "boundaryIou": report.metrics["boundaryIou"].mean, "dice": dice.mean(),
         "recall": (both / labelled).mean()}, abs=ROUNDED
    )  # fmt: skip


def band(mask: np.ndarray) -> np.ndarray:
    """Return the boundary of Cheng et al.: pixels of a mask not farther from its outline than 2 % of the diagonal."""
    distance = round(0.02 * math.hypot(*mask.shape))
    return mask & ~binary_erosion(mask, np.ones((2 * distance + 1,) * 2))


def test_boundary_iou_is_that_of_bands_of_outlines(served: Served, folder: Path) -> None:
    report = evaluated("pixels", folder)

    expected = {}
    for number, name in CLASSES.items():
        both = either = 0
        for true, found in zip(TRUE, FOUND, strict=True):
            left, right = (band(label_map(discs) == number) for discs in (true, found))
            both, either = both + (left & right).sum(), either + (left | right).sum()
        expected[name] = both / either
    assert means(report, "boundaryIou") == pytest.approx(expected, abs=ROUNDED)
    assert report.metrics["boundaryIou"].mean == pytest.approx(np.mean([*expected.values()]), abs=ROUNDED)
    assert all(expected[name] < iou for name, iou in means(report, "iou").items())


def test_an_area_without_labels_changes_no_outline(served: Served, folder: Path) -> None:
    # The answer is right on the left of each image; the right has no labels.
    for index, discs in enumerate(FOUND):
        labels = label_map(discs)
        labels[:, WIDTH // 2 :] = 255
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")

    assert evaluated("pixels", folder).metrics["boundaryIou"].mean == 1.0


def binned(confidences: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error of Guo et al., bin by bin."""
    total = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    return total


def test_the_calibration_error_of_pixels_is_that_of_their_classes_confidences(served: Served, folder: Path) -> None:
    confidences, right = [], []
    with Client() as client:
        for index, (true, found) in enumerate(zip(TRUE, FOUND, strict=True)):
            sure = client.segment(image_of(index), model="sure", expect=SemanticResult, confidence=True).confidence
            assert sure is not None
            labels, answer = label_map(true), label_map(found)
            confidences.append(np.array([sure[name] for name in CLASSES.values()])[answer].ravel())
            right.append((labels == answer).ravel())

    report = evaluated("sure", folder)

    expected = binned(np.concatenate(confidences), np.concatenate(right))
    assert report.metrics["ece"].mean == pytest.approx(expected, abs=ROUNDED)
    assert report.metrics["ece"].low is None
    assert "ece" not in evaluated("pixels", folder).metrics


def test_the_calibration_error_of_objects_is_that_of_those_matched_by_pycocotools(
    served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ece" not in evaluated("discs", folder / "coco").metrics, "30 objects tell nothing"
    monkeypatch.setattr("segserve_platform.evaluation.scores.FEWEST_CALIBRATED", 1)

    report = evaluated("discs", folder / "coco")

    confidences, right = matches(folder)
    assert len(confidences) == sum(map(len, FOUND))
    assert report.metrics["ece"].mean == pytest.approx(binned(confidences, right), abs=ROUNDED)


def test_a_bin_of_confidences_holds_its_upper_end() -> None:
    # A little more than 1/15 is of the second bin: in one bin the two would make up for each other.
    assert calibration_error([1 / 15, 1 / 15 + 1e-9], [0, 1]) == pytest.approx((1 / 15 + 14 / 15) / 2)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0.0
    assert math.isnan(calibration_error([], []))


def test_pixels_of_objects_of_two_classes_do_not_count_and_those_of_none_are_background(
    served: Served, folder: Path
) -> None:
    disc = TRUE[0][0]
    other, same = replace(disc, class_id=3 - disc.class_id, x=disc.x + 6), replace(disc, y=disc.y + 5)
    assert (disc.mask & other.mask).any()
    assert (disc.mask & same.mask).any()
    rewrite(
        folder,
        lambda coco: coco["annotations"].extend(
            {"id": 1000 + each.class_id, "image_id": 0, "category_id": 10 * each.class_id, "iscrowd": 0,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle_counts(each.mask).decode()}}
            for each in (other, same)
        ),
    )  # fmt: skip
    labels = label_map([*TRUE[0], other, same])
    coins, buttons = (
        np.any([each.mask for each in (*TRUE[0], other, same) if each.class_id == number], axis=0) for number in (1, 2)
    )
    labels[coins & buttons] = 255
    Image.fromarray(labels).save(folder / "labels/0.png")

    assert evaluated("pixels", folder / "coco").metrics == evaluated("pixels", folder).metrics


@pytest.mark.parametrize(("model", "kind"), [("discs", "segm"), ("boxes", "bbox")])
def test_precision_and_recall_are_those_that_pycocotools_prints(
    all_sizes: None, served: Served, folder: Path, model: str, kind: str
) -> None:
    report = evaluated(model, folder / "coco")

    truth, results = coco_sides(folder, model)
    if kind == "segm":
        for each in results:
            each.pop("bbox")  # else pycocotools takes the box's area for the mask's
    judge = COCOeval(truth, truth.loadRes(results), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    measured = {name: each.mean for name, each in report.metrics.items()}
    measured |= {f"{name} {size}": each.mean for size, own in report.sizes.items() for name, each in own.items()}
    expected = dict(zip(COCO_FIGURES, judge.stats, strict=True))
    assert measured.keys() >= {f"ap {size}" for size in SIZES}
    assert {name: measured.get(name, -1.0) for name in COCO_FIGURES} == pytest.approx(expected, abs=ROUNDED)
    precision = judge.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
    assert means(report, "ap") == pytest.approx({"coin": precision[0], "button": precision[1]}, abs=ROUNDED)


@pytest.mark.parametrize(
    ("model", "form", "images", "val"),
    [("boxes", "box", "images/val", "images/val"), ("discs", "polygon", "valid/images", "../valid/images")],
    ids=["boxes", "polygons from Roboflow"],
)
def test_labels_of_yolo_are_judged_as_the_same_ones_of_coco(
    served: Served, folder: Path, model: str, form: str, images: str, val: str
) -> None:
    root = folder / "yolo"
    document = coco_document()
    outlines = []
    labels = images.replace("images", "labels")
    for name in (images, labels):
        (root / name).mkdir(parents=True)
    for index, discs in enumerate(TRUE):
        (root / images / f"{index}.png").write_bytes(image_of(index))
        lines = []
        for disc in discs:
            x, y, width, height = disc.box
            centre = [(x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            polygon = [each / (HEIGHT if place % 2 else WIDTH) for place, each in enumerate(corners)]
            lines.append(" ".join(map(str, [disc.class_id - 1, *(centre if form == "box" else polygon)])))
            outlines.append(corners)
        (root / labels / f"{index}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(f"val: {val}\nnames: [coin, button]\n")
    for annotation, corners in zip(document["annotations"], outlines, strict=True):
        annotation.pop("area")
        annotation["segmentation"] = [corners]
    (folder / "coco/coco.json").write_text(json.dumps(document))

    expected = evaluated(model, folder / "coco")
    report = evaluated(model, root)

    assert (report.metrics, report.classes, report.sizes) == (expected.metrics, expected.classes, expected.sizes)
    with pytest.raises(DatasetError, match="task panoptic cannot be evaluated on labels of YOLO"):
        evaluated("world", root)
    with pytest.raises(DatasetError, match=r"data.yaml names its images itself; got the folder .* \(--images\)"):
        segserve.evaluate(model, root, images=folder / "images")


def test_panoptic_quality_is_the_sum_over_matched_segments_of_kirillov(served: Served, folder: Path) -> None:
    report = evaluated("world", folder / "panoptic")

    quality = {}
    for number, name in CLASSES.items():
        overlap, matched, missed, invented = 0.0, 0, 0, 0
        for true, found in zip(TRUE, FOUND, strict=True):
            sides = []
            for discs in (true, found):
                ids, classes = id_map(discs), [*(disc.class_id for disc in discs), 0]
                sides.append([ids == index for index, each in enumerate(classes, 1) if each == number])
            pairs = [(left & right).sum() / (left | right).sum() for left in sides[0] for right in sides[1]]
            hits = [each for each in pairs if each > 0.5]
            overlap, matched = overlap + sum(hits), matched + len(hits)
            missed, invented = missed + len(sides[0]) - len(hits), invented + len(sides[1]) - len(hits)
        quality[name] = overlap / (matched + missed / 2 + invented / 2)
    assert means(report, "pq") == pytest.approx(quality, abs=ROUNDED)
    things = (quality["coin"] + quality["button"]) / 2
    assert {name: each.mean for name, each in report.metrics.items()} == pytest.approx(
        {"pq": np.mean([*quality.values()]), "boundaryPq": report.metrics["boundaryPq"].mean, "pqThings": things,
         "pqStuff": quality["background"]}, abs=ROUNDED
    )  # fmt: skip
    assert report.metrics["boundaryPq"].mean < report.metrics["pq"].mean


@pytest.mark.parametrize(("width", "pq"), [(4, 1.0), (3, 0.75), (2, 0.0)])
def test_each_of_many_segments_is_matched_if_more_than_half_of_it_is_found(width: int, pq: float) -> None:
    coin = SegmentClass(1, "coin")
    image = LabelledImage(Path("0.png"), "0.png", (HEIGHT, WIDTH))
    sides = []
    for side in (4, width):
        masks = np.zeros((12, 16, HEIGHT, WIDTH), bool)
        for row, column in np.ndindex(12, 16):
            masks[row, column, 5 * row : 5 * row + 4, 5 * column : 5 * column + side] = True
        every = tuple(rle_counts(mask) for mask in masks.reshape(-1, HEIGHT, WIDTH))
        sides.append(Regions(image.size, (coin.id,) * len(every), every))
    labels, found = sides
    dataset = Dataset("segments", (image,), {1: "coin"}, frozenset({1}))
    answer = SampleResult("world-cccccccccc", document_of(found, image, [coin]))

    pairs = [(labels, Regions(image.size, (), ()))]
    scores = score("segments", dataset, {1: coin}, pairs, [answer], resamples=0)

    assert scores.metrics["pqThings"].mean == scores.images[0] == pq


def test_a_segment_that_lies_mostly_where_nothing_is_labelled_counts_neither_as_right_nor_as_wrong(
    served: Served, folder: Path
) -> None:
    before = evaluated("world", folder / "panoptic")
    path = folder / "panoptic/panoptic.json"
    document = json.loads(path.read_text())
    for index, page in enumerate(document["annotations"]):
        (ground,) = (each for each in page["segments_info"] if each["category_id"] == 0)
        page["segments_info"].remove(ground)
        file = folder / "panoptic/panoptic" / f"{index}.png"
        ids = np.array(Image.open(file))
        ids[ids == ground["id"]] = 0
        Image.fromarray(ids).save(file)
    path.write_text(json.dumps(document))

    after = evaluated("world", folder / "panoptic")

    # The ground is labelled no more, nor answered wrongly; invented discs lie on it, which is no fault now.
    assert after.classes.keys() == {"coin", "button"}
    assert means(after, "pq")["coin"] > means(before, "pq")["coin"]


def test_a_crowd_is_neither_missed_nor_wrongly_found(served: Served, folder: Path) -> None:
    path = folder / "coco/coco.json"
    document = json.loads(path.read_text())
    first = document["annotations"][0]
    without = {**document, "annotations": document["annotations"][1:]}
    crowd = {**document, "annotations": [{**first, "iscrowd": 1}, *document["annotations"][1:]]}
    reports = []
    for each in (without, crowd):
        path.write_text(json.dumps(each))
        reports.append(evaluated("discs", folder / "coco"))

    assert any(disc.class_id == TRUE[0][0].class_id and (disc.mask & TRUE[0][0].mask).any() for disc in FOUND[0])
    assert reports[1].images[0].score > reports[0].images[0].score
    assert reports[1].metrics["ap"].mean >= reports[0].metrics["ap"].mean
    assert [each.to_dict()["crowdCount"] for each in reports] == [0, 1]
    assert "1 labels are crowds" in reports[1].to_html()


def test_an_object_that_is_labelled_twice_is_counted_beside_the_figures(served: Served, folder: Path) -> None:
    document = coco_document()
    document["annotations"].append({**document["annotations"][0], "id": 99})
    (folder / "coco/coco.json").write_text(json.dumps(document))

    report = evaluated("discs", folder / "coco")

    assert report.to_dict()["repeatedCount"] == 1
    assert report.remark == "1 labels are copies of another one of their image, and count as missed"
    assert report.remark in report.to_html()


@pytest.mark.parametrize(
    ("model", "data"), [("pixels", ""), ("pixels", "coco"), ("world", "panoptic"), ("discs", "coco"), ("boxes", "coco")]
)
def test_what_lies_where_an_image_has_no_data_counts_neither_as_right_nor_as_wrong(
    served: Served, folder: Path, model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are wrong in the right third alone, and that is without data."""
    end, reports = 53, []
    answers = [
        [disc for disc in true if disc.x < end] + [disc for disc in found if disc.x > end]
        for true, found in zip(TRUE, FOUND, strict=True)
    ]
    monkeypatch.setitem(image_of.__globals__, "FOUND", answers)
    for tags in [], [(42113, "s", 0, "7", True)]:
        for index in range(COUNT):
            pixels = np.full((HEIGHT, WIDTH, 3), 40 * index, np.uint8)
            pixels[:, end:] = 7
            tifffile.imwrite(folder / "images" / f"{index}.png", pixels, photometric="rgb", extratags=tags)
        reports.append(evaluated(model, folder / data))

    assert reports[0].score.mean < 1
    assert reports[1].score.mean == 1
    assert all(each.mean == 1 for name, each in reports[1].metrics.items() if name in ("miou", "pq", "ap", "recall"))


def of_images(folder: Path, places: list[int]) -> None:
    """Leave only some of the images in the COCO file."""
    coco = coco_document()
    own = {key: [each for each in coco[key] if each.get("image_id", each["id"]) in places]
           for key in ("images", "annotations")}  # fmt: skip
    (folder / "coco/coco.json").write_text(json.dumps(coco | own))


def test_a_slice_has_the_figure_that_its_images_have_as_a_data_set(served: Served, folder: Path) -> None:
    (folder / "slices.csv").write_text("image,slice\n0.png,night\n1.png,day\n2.png,night\n3.png,\n77.png,dusk\n")

    whole = evaluated("discs", folder / "coco", resamples=30)
    report = evaluated("discs", folder / "coco", by=folder / "slices.csv", resamples=30)

    assert replace(report, slices={}) == whole
    assert [(name, each.images) for name, each in report.slices.items()] == [("day", 1), ("night", 2)]
    of_images(folder, [0, 2])
    alone = evaluated("discs", folder / "coco", resamples=30)
    assert report.slices["night"] == SliceScore(2, alone.score, {"ap": alone.metrics["ap"]})
    assert report.to_dict()["slices"]["night"]["metrics"]["ap"] == alone.metrics["ap"].model_dump()


def test_slices_are_named_by_json_by_a_mapping_or_by_the_folders_of_images(served: Served, folder: Path) -> None:
    names = {f"{index}.png": "even" if index % 2 == 0 else "odd" for index in range(COUNT)}
    expected = evaluated("pixels", folder, by=names)
    assert expected.slices["odd"].metrics.keys() == {"miou"}
    (folder / "slices.json").write_text(json.dumps(names))  # a folder with one JSON file is COCO's otherwise
    assert evaluated("pixels", folder, by=folder / "slices.json") == expected

    rewrite(folder, lambda coco: [each.update(file_name=f"{names[each['file_name']]}/{each['file_name']}")
                                  for each in coco["images"]])  # fmt: skip
    for name in ("even", "odd"):
        (folder / "images" / name).mkdir()
    for file, name in names.items():
        (folder / "images" / file).rename(folder / "images" / name / file)
    by_folder = evaluated("discs", folder / "coco", by="folder")
    assert {name: each.images for name, each in by_folder.slices.items()} == {"even": 3, "odd": 3}
    assert by_folder.slices == evaluated("discs", folder / "coco", by=names).slices


def test_a_slice_without_objects_has_no_figure(served: Served, folder: Path) -> None:
    rewrite(folder, lambda coco: coco.update(annotations=[e for e in coco["annotations"] if e["image_id"]]))

    report = evaluated("discs", folder / "coco", by={"0.png": "empty", "1.png": "full"})

    assert report.slices["empty"].metrics == {}
    assert "slice empty, 1 image<" in report.to_html()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("slices.csv", "image:slice\n0.png:night\n", "must have the columns image and slice, got image:slice"),
        ("slices.csv", "image,slice\n0.png,day\n0.png,night\n", "has the slices 'day' and 'night' of '0.png'"),
        ("slices.csv", "image,slice\n0.png,day\n", "must make 2 to 100 slices, got 1: day"),
        (
            "slices.json",
            '{"7.png": "day"}',
            "has no image of the data set: it has '7.png'; the data set '0.png'",
        ),
        ("slices.json", '{"0.png": ["day"]}', r"the slice of '0.png' must be a text, got \['day'\]"),
        ("slices.json", '["0.png"]', r"must have the slice of each image in an object, got \['0.png'\]"),
        ("slices.json", "{", "slices.json' cannot be read"),
        ("slices.txt", "", "slices must be 'folder', or a CSV or JSON file that names them, got .*slices.txt"),
    ],
)
def test_slices_that_cannot_be_used_are_told(served: Served, folder: Path, name: str, text: str, says: str) -> None:
    (folder / name).write_text(text)

    with pytest.raises(DatasetError, match=says):
        evaluated("discs", folder / "coco", by=folder / name)
    with pytest.raises(DatasetError, match=r"the folders of images must make 2 to 100 slices, got 1: images"):
        evaluated("discs", folder / "coco", by="folder")
    assert served.count("discs") == 0


def test_only_chosen_classes_count_and_others_are_no_fault(served: Served, folder: Path) -> None:
    every, one = evaluated("pixels", folder), evaluated("pixels", folder, classes=["coin"])

    assert one.classes == {"coin": every.classes["coin"]}
    assert one.metrics["miou"].mean == every.classes["coin"]["iou"].mean


def test_a_class_that_is_listed_and_never_labelled_need_not_be_the_models(served: Served, folder: Path) -> None:
    expected = evaluated("discs", folder / "coco")
    rewrite(folder, lambda coco: coco["categories"].append({"id": 0, "name": "round-things"}))

    assert evaluated("discs", folder / "coco").metrics == expected.metrics


def test_the_same_answers_have_the_same_intervals_around_their_figures(served: Served, folder: Path) -> None:
    first, second = (evaluated("discs", folder / "coco", resamples=30) for _ in range(2))

    assert first == second
    with_interval = [each for name, each in first.metrics.items() if name != "boundaryPq"]
    for each in (*with_interval, first.score):
        assert each.low is not None
        assert each.high is not None
        assert each.low < each.mean < each.high
    without = evaluated("discs", folder / "coco", resamples=0)
    assert {each.low for each in (*without.metrics.values(), without.score)} == {None}


def test_answers_that_were_given_are_not_asked_again_unless_the_revision_changes(served: Served, folder: Path) -> None:
    out = folder / "out"
    first = evaluated("pixels", folder, out=out)
    answers = out / "answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:3]) + lines[3][:100])

    assert evaluated("pixels", folder, out=out) == first
    assert served.count("pixels") == COUNT + 3
    assert evaluated("pixels", folder, out=out) == first
    assert served.count("pixels") == COUNT + 3

    assert evaluated("pixels", folder, out=out, score_threshold=0.5).metrics == first.metrics
    assert served.count("pixels") == 2 * COUNT + 3
    served.answer_as("pixels", "pixels-dddddddddd")
    assert evaluated("pixels", folder, out=out).revision == "pixels-dddddddddd"
    assert served.count("pixels") == 3 * COUNT + 3


def test_two_revisions_are_not_judged_as_one(served: Served, folder: Path) -> None:
    answers = folder / "out/answers.jsonl"
    evaluated("pixels", folder, out=folder / "out")
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:2]))
    served.answer_as("pixels", "pixels-dddddddddd", configured="pixels-aaaaaaaaaa")

    with pytest.raises(RevisionChangedError, match="pixels-aaaaaaaaaa, pixels-dddddddddd"):
        evaluated("pixels", folder, out=folder / "out")


def test_an_image_without_an_answer_counts_as_one_in_which_nothing_was_found(served: Served, folder: Path) -> None:
    whole = evaluated("discs", folder / "coco")
    served.gateway.faults.append(Fault(http=400, message="the image is broken"))

    report = evaluated("discs", folder / "coco", in_flight=1)

    (failed,) = report.failed
    assert failed.image == "0.png"
    assert "the image is broken" in str(failed.error)
    assert failed.score == 0
    assert report.metrics["ar100"].mean < whole.metrics["ar100"].mean
    assert report.images[1:] == whole.images[1:]


def test_an_image_without_objects_is_worth_nothing_if_it_is_not_answered(served: Served, folder: Path) -> None:
    rewrite(
        folder, lambda coco: coco.update(annotations=[each for each in coco["annotations"] if each["image_id"] != 0])
    )
    served.gateway.faults.append(Fault(http=400, message="the image is broken"))

    assert evaluated("discs", folder / "coco", in_flight=1).images[0].score == 0


def test_detections_of_low_scores_count_for_precision_and_not_for_the_score_of_an_image(
    served: Served, folder: Path
) -> None:
    expected = evaluated("discs", folder / "coco", out=folder / "out", worst=2)
    drawn = re.findall(r"base64,[^\"]+", (folder / "out/report.html").read_text())
    before = served.gateway.models["discs"]

    def answer(asked: Asked) -> Arrays:
        found = before.answer(asked)
        mask = Disc(1, 66, 45, 7).mask
        unsure = {"BOXES": [[59, 38, 72, 51]], "SCORES": [0.02], "CLASSES": [1], "MASKS": items(rle_counts(mask))}
        return {**found, **{name: np.append(found[name], np.array(more, found[name].dtype), 0)
                            for name, more in unsure.items()}}  # fmt: skip

    served.gateway.models["discs"] = replace(before, answer=answer)
    report = evaluated("discs", folder / "coco", out=folder / "more", worst=2, score_threshold=0.01)

    assert report.images == expected.images
    assert re.findall(r"base64,[^\"]+", (folder / "more/report.html").read_text()) == drawn


def test_a_photo_that_is_rotated_by_its_exif_data_has_the_labels_of_the_upright_image(
    served: Served, folder: Path
) -> None:
    expected = evaluated("pixels", folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH), (40, 40, 40)).save(folder / "images/1.png", exif=exif)

    assert evaluated("pixels", folder).metrics == expected.metrics


def test_labels_of_another_size_than_answers_are_told_after_the_first_answer(served: Served, folder: Path) -> None:
    def turn(coco: dict[str, Any]) -> None:
        for each in coco["images"]:
            each.update(height=WIDTH, width=HEIGHT)

    rewrite(folder, turn)

    with pytest.raises(DatasetError, match=r"0.png: the labels have 60 x 80 pixels, the answer 80 x 60: .*EXIF"):
        evaluated("boxes", folder / "coco", in_flight=1)
    assert served.count("boxes") == 1


@pytest.mark.parametrize(("model", "data"), [("world", "panoptic"), ("pixels", "coco"), ("boxes", "coco")])
def test_answers_of_each_kind_are_drawn_beside_labels(served: Served, folder: Path, model: str, data: str) -> None:
    report = evaluated(model, folder / data, out=folder / "out", worst=2)

    page = (folder / "out/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "not drawn" not in page
    assert json.loads((folder / "out/report.json").read_text()) == report.to_dict()


def test_images_that_cannot_be_drawn_or_were_not_answered_cost_no_report(served: Served, folder: Path) -> None:
    worst = [each for each in evaluated("pixels", folder).worst(COUNT) if each.image != "0.png"]
    served.gateway.faults.append(Fault(http=400, message="the image is broken"))
    steps = []

    def remove(step: str, done: int, total: int) -> None:
        steps.append((step, done, total))
        if step == "samples":
            (folder / "images" / worst[0].image).unlink(missing_ok=True)

    evaluated("pixels", folder, out=folder / "out", worst=2, in_flight=1, progress=remove)

    page = (folder / "out/report.html").read_text()
    assert re.findall(r"<h2>(\d\.png):", page) == [each.image for each in worst[:2]]
    assert page.count("not drawn: ") == page.count("data:image/jpeg;base64,") == 1
    images, samples = ([rest for step, *rest in steps if step == name] for name in ("images", "samples"))
    assert images == [[done, COUNT] for done in range(1, COUNT + 1)]
    assert samples == [[0, 2], [1, 2], [2, 2]]


def test_names_in_the_page_are_text(served: Served, folder: Path) -> None:
    report = evaluated("pixels", folder)
    named = replace(
        report,
        data="<i>data</i>",
        classes={"<b>coin</b>": report.classes["coin"]},
        images=(ImageScore("<u>0</u>.png", 0.0, "<s>broken</s>"), *report.images),
    )

    page = named.to_html([(ImageScore('"><u>1</u>.png', 0.5), "<em>gone</em>")])

    assert not re.search(r"<(i|b|u|s|em)>", page)
    assert "&lt;b&gt;coin&lt;/b&gt;" in page


def test_a_figure_that_no_sample_has_is_kept_without_an_interval() -> None:
    assert estimates([("ap", 0.5, [math.nan, math.nan]), ("ar", math.nan, [0.5])]) == {"ap": Estimate(mean=0.5)}


def test_the_page_shows_the_worst_images_and_refers_to_nothing_outside_of_it(served: Served, folder: Path) -> None:
    report = evaluated("discs", folder / "coco", out=folder / "out", worst=3)

    page = (folder / "out/report.html").read_text()
    titles = re.findall(r"<h2>(\d\.png): ([\d.]+)</h2>", page)
    assert titles == [(each.image, f"{each.score:.3f}") for each in report.worst(3)]
    assert page.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"https?://|<script|<link|url\(", page)
    for each in report.metrics.values():
        assert str(each) in page
    written = json.loads((folder / "out/report.json").read_text())
    assert written == report.to_dict()
    assert written["metrics"]["ap"].keys() == {"mean", "low", "high"}
    assert [each["score"] for each in written["images"]] == [round(each.score, 4) for each in report.images]
    assert not any(math.isnan(each.score) for each in report.images)


def test_values_of_label_maps_are_named_by_a_file_of_classes_and_others_are_not_labelled(
    served: Served, folder: Path
) -> None:
    expected = evaluated("pixels", folder, classes=["coin", "button"])
    save_maps(folder, [255, 1, 0])
    (folder / "classes.txt").write_text("button\ncoin\n", encoding="utf-8-sig")

    report = evaluated("pixels", folder)

    assert report.classes.keys() == {"coin", "button"}
    # What is found where nothing is labelled is no fault.
    assert all(means(report, "iou")[name] >= means(expected, "iou")[name] for name in report.classes)


def test_label_maps_that_count_from_1_are_read_so_and_are_named_where_they_are_not(
    served: Served, folder: Path
) -> None:
    expected = evaluated("pixels", folder, classes=["coin", "button"])
    save_maps(folder, [0, 2, 3])  # as ADE20K: 0 is no class

    report = evaluated("pixels", folder, labels_from=1, classes=["coin", "button"])
    save_maps(folder, [1, 2, 2])
    unread = evaluated("pixels", folder)

    assert all(means(report, "iou")[name] >= means(expected, "iou")[name] for name in report.classes)
    assert unread.remark is not None
    assert "count from 1 fit the answers better: try --labels-from 1" in unread.remark
    save_maps(folder, [1, 2, 3])
    with pytest.raises(DatasetError, match="if they count from 1: --labels-from 1"):
        evaluated("pixels", folder)


def empty(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = coco_document()
    change(document)
    (folder / "coco/coco.json").write_text(json.dumps(document))


def name_first(folder: Path, file_name: str) -> None:
    rewrite(folder, lambda coco: coco["images"][0].update(file_name=file_name))


def unname_map(path: Path) -> None:
    document = json.loads(path.read_text())
    del document["annotations"][0]["file_name"]
    path.write_text(json.dumps(document))


def transposed() -> dict[str, Any]:
    """Return run lengths that are as many pixels as an image's."""
    return {"size": [WIDTH, HEIGHT], "counts": rle_counts(TRUE[0][0].mask.T).decode()}


def save_maps(folder: Path, values: list[int]) -> None:
    """Save label maps whose classes have these values."""
    for index, discs in enumerate(TRUE):
        labels = np.array(values, np.uint8)[label_map(discs)]
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")


def first(document: dict[str, Any], **fields: Any) -> None:
    """Change the first annotation."""
    document["annotations"][0].update(fields)


@pytest.mark.parametrize(
    ("model", "data", "change", "says"),
    [
        ("pixels", "", empty, "no image found in .*images"),
        ("pixels", "", lambda folder: (folder / "labels/3.png").unlink(),
         "1 of 6 images have no labels: 3.png; expected a PNG or TIFF of the same name"),
        ("pixels", "nowhere", lambda folder: None, "no such data set"),
        ("pixels", "labels", lambda folder: None,
         "expected one COCO JSON file, data.yaml, or the folders images and labels"),
        ("pixels", "", lambda folder: (folder / "JPEGImages").mkdir(),
         "is not read, as it is Pascal VOC's: convert its boxes"),
        ("pixels", "", lambda folder: Image.new("L", (7, 5)).save(folder / "labels/3.png"),
         "3.png has 7 x 5 pixels; its image 3.png has 80 x 60"),
        ("discs", "", lambda folder: None,
         "models of the task instance cannot be evaluated on label maps; they need COCO annotations"),
        ("discs", "coco", lambda folder: (folder / "images/2.png").unlink(),
         r"1 of 6 images of coco.json are not there: 2.png; looked in .*\(--images\)"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: coco["categories"][0].update(name="penny")),
         "'penny': the data set has penny, button; the model has background, coin, button"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, segmentation=[[1e9, 1, 2, 2, 3, 3]])),
         "0.png: an annotation's segmentation cannot be read: a polygon lies outside its image"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, category_id=77)),
         r"annotations of the categories \[77\], which it does not list"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: coco["images"].append(coco["images"][2])),
         "coco.json lists the image ids 2 more than once; expected each of them once"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, image_id="77")),
         "annotations of 1 images that it does not list: 77"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, image_id="a")),
         "coco.json: annotation 0 has the image_id 'a'; expected a whole number"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, iscrowd="maybe")),
         "coco.json: annotation 0 has the iscrowd 'maybe'; expected 0 or 1"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, segmentation=[])),
         "1 of 30 annotations have a box and no segmentation: 0.png; expected all or none"),
        ("pixels", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, segmentation=[])),
         "a semantic model needs masks; 1 of 30 annotations have only boxes"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: coco["annotations"].clear()),
         "nothing is labelled: no image shows button or coin"),
        ("pixels", "coco", lambda folder: rewrite(folder, lambda coco: coco["annotations"].clear()),
         "nothing is labelled: no image shows background or button or coin"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, segmentation=transposed())),
         "0.png: an annotation's segmentation cannot be read: run lengths of the size"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: first(coco, segmentation="all of it")),
         "0.png: an annotation's segmentation cannot be read: a segmentation must be polygons, or size and counts"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: coco["images"][0].update(height="x")),
         "coco.json: image 0 has the height 'x'; expected a whole number"),
        ("discs", "coco", lambda folder: name_first(folder, "data\\\\1.png"),
         "coco.json has several names, as it lists .*1.png more than once"),
        ("discs", "coco", lambda folder: rewrite(folder, lambda coco: [each.update(iscrowd=1) for each in
                                                                       coco["annotations"]]),
         r"nothing is labelled: no image shows button or coin; 30 labels are crowds \(iscrowd: 1, as CVAT"),
        ("discs", "coco", lambda folder: name_first(folder, "0" * 300 + ".png"),
         "file_name '0+' cannot be looked for: File name too long"),
        ("world", "panoptic", lambda folder: unname_map(folder / "panoptic/panoptic.json"),
         "0.png has no panoptic annotation with file_name and segments_info: KeyError"),
        ("pixels", "", lambda folder: (folder / "labels/3.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\n"),
         "labels .*3.png' cannot be read: cannot identify image file"),
        ("pixels", "", lambda folder: (folder / "classes.txt").write_bytes("Münze\n".encode("latin-1")),
         "classes.txt' cannot be read as text in UTF-8"),
        ("pixels", "", lambda folder: save_maps(folder, [0, 255, 255]),
         r"0.png has the values 255; classes are 0 background, 1 coin, 2 button. No image shows button, coin: if 255"),
        ("pixels", "", lambda folder: save_maps(folder, [0, 1, 9]),
         r"0.png has the values 9; classes are 0 background, 1 coin, 2 button; 255 is not labelled"),
        ("discs", "coco", lambda folder: (folder / "coco/coco.json").write_text("[]"),
         "is not a COCO data set with images, categories and annotations"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_told_with_what_was_seen_and_what_is_allowed(
    served: Served, folder: Path, model: str, data: str, change: Callable[[Path], object], says: str
) -> None:
    change(folder)

    with pytest.raises(DatasetError, match=says):
        evaluated(model, folder / data)
    assert served.count(model) == 0


def test_a_class_that_neither_has_is_told_with_both_lists(served: Served, folder: Path) -> None:
    with pytest.raises(DatasetError, match="'penny': the data set has coin, button; the model has background, coin"):
        evaluated("discs", folder / "coco", classes=["coin", "penny"])
    with pytest.raises(BadRequestError, match="got -1 and 20"):
        evaluated("discs", folder / "coco", resamples=-1)
    with pytest.raises(BadRequestError, match="out must be another folder than the data's"):
        evaluated("pixels", folder, out=folder / "images/..")
