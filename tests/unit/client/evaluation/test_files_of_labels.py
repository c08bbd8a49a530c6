"""Files of labels that are absent, doubled, orphaned, of other tools, or spelled otherwise than their images."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from segserve import Client, DatasetError, evaluate
from segserve.exports.label_studio import brush_rle, read_brush
from segserve.exports.samples import SampleResult
from segserve_builder.scoring.quality import Regions
from segserve_platform.evaluation.datasets import Dataset, read_dataset
from segserve_platform.evaluation.regions import limits_of
from segserve_platform.evaluation.report import EvaluationReport

from .conftest import COUNT, HEIGHT, TRUE, WIDTH, Command, Served, coco_document, id_map, image_of, label_map

NFC, NFD = (unicodedata.normalize(form, "Münzen") for form in ("NFC", "NFD"))


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def yolo_set(folder: Path) -> Path:
    """Write the labels as boxes of YOLO, beside the images."""
    for index, discs in enumerate(TRUE):
        lines = []
        for disc in discs:
            x, y, width, height = disc.box
            centre = ((x + width / 2) / WIDTH, (y + height / 2) / HEIGHT)
            lines.append(f"{disc.class_id} {centre[0]} {centre[1]} {width / WIDTH} {height / HEIGHT}\n")
        write(folder / "yolo/images" / f"{index}.png", image_of(index))
        write(folder / "yolo/labels" / f"{index}.txt", "".join(lines))
    return write(folder / "yolo/data.yaml", "val: images\nnames: [background, coin, button]\n").parent


def refused(path: Path, says: str, images: Path | None = None) -> None:
    with pytest.raises(DatasetError, match=says):
        read_dataset(path, images)


# Absent, doubled and orphaned


def test_absent_and_orphaned_labels_are_counted_and_named_in_table_json_and_page(
    served: Served, folder: Path, command: Command
) -> None:
    data = yolo_set(folder)
    (data / "labels/3.txt").rename(data / "labels/b.txt")
    says = "1 image has no label file and counts as background: 3.png; 1 label file belongs to no image: b.txt"

    code, printed, _ = command("eval", "boxes", "--data", data, "-o", "out", "--resamples", 0)

    assert code == 0
    assert says in printed
    assert says in (folder / "out/report.html").read_text()
    report = json.loads((folder / "out/report.json").read_text())
    assert "; ".join(report["notes"]) == says


def test_a_whole_set_has_neither_absent_nor_orphaned_labels(tmp_path: Path) -> None:
    data = yolo_set(tmp_path)
    write(data / "labels/classes.txt", "background\ncoin\nbutton\n")
    write(data / "labels/notes.txt", "of June")
    write(data / "val.txt", "images/0.png\nimages/1.png\n")

    whole = read_dataset(data)
    # Labels of other images of the folder are no orphans of a list that names some of them.
    part = read_dataset(write(data / "data.yaml", "val: val.txt\nnames: [background, coin, button]\n"))

    assert [each.notes for each in (whole, part)] == [(), ()]
    assert [len(each.images) for each in (whole, part)] == [COUNT, 2]


def test_images_of_one_name_in_several_folders_have_labels_of_their_own(tmp_path: Path) -> None:
    data = yolo_set(tmp_path)
    for name in ("a", "b"):
        write(data / "images" / name / "0.png", image_of(0))
        write(data / "labels" / name / "0.txt", "1 .5 .5 .1 .1\n")

    found = read_dataset(write(data / "data.yaml", "val: [images/a, images/b]\nnames: [background, coin, button]\n"))

    assert ([len(each.annotations) for each in found.images], found.notes) == ([1, 1], ())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_labels_are_taken_away_added_and_renamed_is_counted(tmp_path: Path, seed: int) -> None:
    numbers, data = random.Random(seed), yolo_set(tmp_path)
    absent = sorted(numbers.sample(range(COUNT), numbers.randint(1, COUNT - 1)))
    added = sorted(numbers.sample(["a", "7", "0.1", "1 (1)", "ö"], numbers.randint(0, 5)))
    for index in absent:
        (data / "labels" / f"{index}.txt").unlink()
    for name in added:
        write(data / "labels" / f"{name}.txt", numbers.choice(["", "1 .5 .5 .1 .1\n"]))

    found = read_dataset(data)

    for note, names in zip(found.notes, [[f"{n}.png" for n in absent], [f"{n}.txt" for n in added]], strict=False):
        assert (note.split()[0], note.partition(": ")[2]) == (str(len(names)), ", ".join(sorted(names)))
    assert len(found.notes) == 1 + bool(added)


def test_orphaned_maps_are_named_and_an_image_of_coco_without_annotations_is_not(folder: Path) -> None:
    write(folder / "labels/x.png", (folder / "labels/0.png").read_bytes())
    write(folder / "panoptic/panoptic/x.png", (folder / "panoptic/panoptic/0.png").read_bytes())
    document = coco_document()
    document["annotations"] = [each for each in document["annotations"] if each["image_id"]]
    write(folder / "images/x.json", {})

    assert read_dataset(folder).notes == ("1 label file belongs to no image: x.png",)
    assert read_dataset(folder / "panoptic/panoptic.json").notes == ("1 label file belongs to no image: x.png",)
    assert read_dataset(write(folder / "coco/coco.json", document)).notes == ()


def of_coco(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        document = coco_document()
        change(document)
        return write(folder / "coco/coco.json", document)

    return changed


def of_yolo(yaml: str = "val: images\nnames: [background, coin, button]\n", **files: str) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        data = yolo_set(folder)
        for name, text in files.items():
            write(data / f"{name}.txt", text)
        return write(data / "data.yaml", yaml)

    return changed


def copied(source: str, *targets: str, data: str = "") -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        if data == "yolo":
            yolo_set(folder)
        for target in targets:
            write(folder / target, (folder / source).read_bytes())
        return folder / data

    return changed


def of_panoptic(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def changed(folder: Path) -> Path:
        document = json.loads((folder / "panoptic/panoptic.json").read_text())
        change(document)
        return write(folder / "panoptic/panoptic.json", document)

    return changed


DOUBLED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two images of one text": (copied("images/1.png", "yolo/images/1.jpg", data="yolo"),
                               r"images have the label files .*labels/1.txt \(1.jpg, 1.png\)"),
    "two images of one map": (copied("images/1.png", "images/1.tif"),
                              r"images have the label files .*labels/1.png \(1.png, 1.tif\)"),
    "two maps of one image": (copied("labels/1.png", "labels/1.tif"),
                              r"label files are there of .*images/1.png \(1.png, 1.tif\)"),
    "two endings of one map": (copied("labels/1.png", "labels/1_masks.png"),
                               r"label files are there of .*images/1.png \(1.png, 1_masks.png\)"),
    "two texts of one image": (copied("yolo/labels/1.txt", "yolo/labels/1.TXT", data="yolo"),
                               r"label files are there of .*images/1.png \(1.TXT, 1.txt\)"),
    "two entries of one name": (of_coco(lambda coco: coco["images"].append(coco["images"][2] | {"id": 99})),
                                "coco.json lists the file names 2.png more than once"),
    "two categories of one name": (of_coco(lambda coco: coco["categories"][1].update(name="coin")),
                                   "coco.json names the categories coin more than once"),
    "two unused categories of one name": (of_coco(lambda coco: coco["categories"].append({"id": 7, "name": "coin"})),
                                          "coco.json names the categories coin more than once"),
    "two categories of one id": (of_coco(lambda coco: coco["categories"].append({"id": 10, "name": "x"})),
                                 "coco.json lists the category ids 10 more than once"),
    "two segments of one id": (of_panoptic(lambda page: page["annotations"][0]["segments_info"].append(
        page["annotations"][0]["segments_info"][0])), "0.png lists the segment ids 1 more than once"),
    "two images of one panoptic map": (of_panoptic(lambda page: page["annotations"][0].update(file_name="1.png")),
                                       "names the maps .*1.png more than once"),
    "two keys of JSON": (lambda folder: write(folder / "coco/coco.json", '{"images": [], "images": [1]}'),
                         "coco.json has the keys images more than once"),
    "two classes of one name": (of_yolo("val: images\nnames: {0: a, 1: a, 2: b}\n"), "names the classes a more than"),
    "two classes of a list": (of_yolo("val: images\nnames: [a, b, a]\n"), "names the classes a more than once"),
    "two classes of one id": (of_yolo("val: images\nnames: {0: a, 0: b}\n"), "has the keys 0 more than once"),
    "two spellings of one id": (of_yolo("val: images\nnames: {0: a, '0': b}\n"), "data.yaml has the keys 0 more than"),
    "two keys of YAML": (of_yolo("val: images\nval: other\nnames: [a, b, c]\n"), "has the keys val more than once"),
    "two lines of one image": (of_yolo("val: val.txt\nnames: [a, b, c]\n", val="images/1.png\n./images/1.png\n"),
                               "data.yaml lists the images .*1.png more than once"),
    "two lists of one image": (of_yolo("val: [val.txt, images]\nnames: [a, b, c]\n", val="images/1.png"),
                               "data.yaml lists the images .*1.png more than once"),
    "two lines of one class": (lambda folder: write(folder / "classes.txt", "coin\nx\ncoin\n").parent,
                               "classes.txt names the classes coin more than once"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), DOUBLED.values(), ids=DOUBLED)
def test_what_is_there_twice_is_refused_by_name(folder: Path, change: Callable[[Path], Path], says: str) -> None:
    refused(change(folder), says)


def test_the_project_that_roboflow_lists_above_its_classes_may_have_the_name_of_one(folder: Path) -> None:
    path = of_coco(
        lambda coco: (
            coco["categories"].append({"id": 0, "name": "coin", "supercategory": "none"})
            or coco["categories"][0].update(supercategory="coin")
        )
    )(folder)

    assert len(read_dataset(path).images) == COUNT


# Limits


def grid(count: int, columns: int = 20) -> list[list[float]]:
    return [[4.0 * (number % columns), 4.0 * (number // columns), 3.0, 3.0] for number in range(count)]


def evaluated_grid(
    served: Served, folder: Path, labelled: int, answered: int, of_model: int | None = None, **options: Any
) -> EvaluationReport:
    """Evaluate one image of a grid of labelled boxes; the answer has as many, the first of them right."""
    numbers = np.array(grid(answered))
    found = {
        "REVISION": np.array([b"discs-bbbbbbbbbb"], object),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.hstack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]]).astype(np.float32),
        "SCORES": np.linspace(0.99, 0.6, answered).astype(np.float32),
        "CLASSES": np.ones(answered, np.int32),
    }
    model = served.gateway.models["boxes"]
    limit = {} if of_model is None else {"maxDetections": str(of_model)}
    served.gateway.models["boxes"] = type(model)(model.outputs, {**model.parameters, **limit}, lambda asked: found)
    document = {
        "images": [{"id": 0, "file_name": "0.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "coin"}],
        "annotations": [{"id": number, "image_id": 0, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
                        for number, box in enumerate(grid(labelled), 1)],
    }  # fmt: skip
    return evaluate("boxes", write(folder / "grid/grid.json", document), images=folder / "images", resamples=2,
                    **options)  # fmt: skip


@pytest.mark.parametrize(
    ("labelled", "answered", "ap", "says"),
    [
        (90, 90, 1.0, None),
        (100, 100, 1.0, None),
        (101, 101, 1.0, "an image has 101 labelled objects of a class: AP counts all detections"),
        (240, 240, 1.0, "an image has 240 labelled objects of a class: AP counts all detections"),
        (50, 120, 1.0, "answers with more: 1, by 20 objects"),
        (240, 150, 0.63, "images with more labelled objects than the 150 of their answer, the most of any: 1"),
        (12, 10, 0.84, None),
    ],
)
def test_no_limit_of_objects_cuts_silently(
    served: Served, folder: Path, labelled: int, answered: int, ap: float, says: str | None
) -> None:
    report = evaluated_grid(served, folder, labelled, answered)

    assert report.metrics["ap"].mean == pytest.approx(ap, abs=0.01)
    assert report.metrics["ar100"].mean == pytest.approx(min(labelled, answered, 100) / labelled, abs=1e-3)
    assert report.remark is None if says is None else says in (report.remark or "")


@pytest.mark.parametrize("labelled", [3, 30])
def test_answers_that_reach_the_limit_of_objects_are_counted_however_many_are_labelled(
    served: Served, folder: Path, labelled: int
) -> None:
    def said(answered: int, **options: Any) -> str:
        report = evaluated_grid(served, folder, labelled, answered, **options)
        assert "; ".join(report.to_dict()["notes"]) == (report.remark or "")
        return report.remark or ""

    assert "reached --max-detections, 20 objects, and were perhaps cut: 1" in said(20, max_detections=20, of_model=300)
    assert "reached the model's limit (maxDetections of output or a stage), 20 objects" in said(20, of_model=20)
    assert [said(19, max_detections=20), said(20, max_detections=40, of_model=20), said(19, of_model=20)] == [""] * 3


def test_answers_of_one_number_of_objects_are_perhaps_cut_if_more_are_labelled() -> None:
    def regions(count: int) -> Regions:
        return Regions((9, 9), (1,) * count, None, np.zeros((count, 4)))

    def notes(*counts: tuple[int, int]) -> list[str]:
        answers = [SampleResult("a", {"annotations": [{"category_id": 1}] * found}) for _, found in counts]
        return limits_of([(regions(labelled), regions(0)) for labelled, _ in counts], answers, None)

    assert "the 20 of their answer, the most of any: 2; perhaps" in notes((30, 20), (25, 20), (5, 5))[0]
    assert [notes((30, 20), (20, 20)), notes((30, 20)), notes((3, 2), (4, 2))] == [[], [], []]


# Forms of other tools


OTHERS: dict[str, tuple[str, Any, str]] = {
    "results": ("x.json", [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}],
                "list of detections .*: name the file with images"),
    "VIA 2": ("x.json", {"_via_settings": {}, "_via_img_metadata": {}}, "x.json is not read, as it is VIA's: export"),
    "VIA 2, annotations": ("x.json", {"1.png123": {"filename": "1.png", "size": 1, "regions": []}}, "is VIA's"),
    "VIA 3": ("x.json", {"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}}, "is VIA's"),
    "nnU-Net 1": ("dataset.json", {"modality": {}, "labels": {}, "numTraining": 1, "training": []}, "is nnU-Net's"),
    "nnU-Net 2": ("dataset.json", {"channel_names": {}, "labels": {}, "numTraining": 1}, "nnU-Net's: copy"),
    "datumaro": ("x.json", {"info": {}, "categories": {}, "items": []}, "datum convert -if datumaro"),
    "VOC": ("1.xml", "<annotation><filename>1.png</filename></annotation>", "Pascal VOC's: convert"),
    "CVAT": ("x.xml", '<?xml version="1.0"?>\n<!-- x -->\n<annotations></annotations>', "CVAT's: export"),
    "XML": ("x.xml", "\ufeff<root/>", "cannot be read as JSON"),
    "unknown": ("x.json", {"foo": 1, "bar": [2]}, r"is not a COCO data set .*; it has foo, bar"),
    "unknown list": ("x.json", [{"imagefilename": "1.png"}], "is not a COCO data set .*; it has imagefilename"),
    "text": ("x.json", "hello", "cannot be read as JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), OTHERS.values(), ids=OTHERS)
def test_files_of_other_tools_are_named_with_the_way(tmp_path: Path, name: str, content: Any, says: str) -> None:
    path = write(tmp_path / name, content)

    refused(path, says)
    refused(tmp_path, says)


def of_client(folder: Path, kind: str, model: str, **options: Any) -> Path:
    """Write the answers of a model as the client writes them."""
    with Client() as client:
        answers = [client.segment(image_of(index), model=model) for index in range(COUNT)]
    if kind == "labelme":
        for index, answer in enumerate(answers):
            write(folder / kind / f"{index}.json", answer.to_labelme(f"../images/{index}.png", **options))
        return folder / kind
    urls = [f"/data/local-files/?d=images/{index}.png" for index in range(COUNT)]
    tasks = [answer.to_label_studio(url, **options) for answer, url in zip(answers, urls, strict=True)]
    return write(folder / kind / "tasks.json", tasks)


@pytest.mark.parametrize("shapes", ["mask", "polygon"])
@pytest.mark.parametrize("kind", ["labelme", "label-studio"])
@pytest.mark.parametrize("model", ["discs", "boxes"])
def test_what_the_client_writes_for_a_tool_is_read_as_the_labels_that_it_was(
    served: Served, folder: Path, model: str, kind: str, shapes: str
) -> None:
    data = of_client(folder, kind, model, shapes=shapes)

    report = evaluate(model, data, images=folder / "images", resamples=0)

    assert report.metrics["ap"].mean == 1.0
    assert report.score.mean == pytest.approx(1.0, abs=0.25)  # counts objects of a score of 0.5 alone
    assert (report.remark is None) is (kind == "labelme")
    assert kind == "labelme" or report.notes == ("labels are predictions, not people's annotations, in 6 of 6 tasks",)


@pytest.mark.parametrize("kind", ["labelme", "label-studio"])
def test_classes_of_a_label_map_are_read_as_the_pixels_that_they_were(served: Served, folder: Path, kind: str) -> None:
    data = of_client(folder, kind, "pixels", shapes="mask")

    assert evaluate("pixels", data, images=folder / "images", resamples=0).metrics["miou"].mean == 1.0


def test_an_image_without_a_file_of_labelme_is_left_out_and_said(served: Served, folder: Path) -> None:
    data = of_client(folder, "labelme", "discs")
    for index in range(COUNT):
        write(data / f"{index}.png", image_of(index))
        document = json.loads((data / f"{index}.json").read_text())
        write(data / f"{index}.json", document | {"imagePath": f"{index}.png"})
    (data / "4.json").unlink()

    found = read_dataset(data)

    assert len(found.images) == COUNT - 1
    assert found.notes == ("1 image without a file of LabelMe is left out: 4.png",)
    assert len(read_dataset(data / "0.json").images) == 1
    write(data / "5.json", {"foo": 1})
    refused(data, "has several JSON files")


def labelme_shape(**shape: Any) -> dict[str, Any]:
    shapes = [{"label": "coin", "points": [[1, 1], [9, 9]], "group_id": None, "shape_type": "rectangle"} | shape]
    return {"shapes": shapes, "imagePath": "0.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}


def studio_task(kind: str = "rectanglelabels", **changes: Any) -> list[dict[str, Any]]:
    value = {"x": 10, "y": 10, "width": 10, "height": 10, "rotation": 0, kind: ["coin"]} | changes
    region = {"id": "a", "type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    return [{"id": 1, "data": {"image": "/data/upload/1/0.png"}, "annotations": [{"result": [region]}]}]


REGIONS: dict[str, tuple[Any, str]] = {
    "circle": (labelme_shape(shape_type="circle"), "a shape 'circle'; polygon, rectangle and mask are read"),
    "point": (labelme_shape(shape_type="point"), "a shape 'point'"),
    "no size": ({"shapes": [], "imagePath": "0.png"}, r"cannot be read: KeyError\('imageHeight'\)"),
    "no points": (labelme_shape(points=[], shape_type="polygon"), "cannot be read: "),
    "ellipse": (studio_task("ellipselabels"), "x.json: task 0 has ellipselabels; brushlabels"),
    "rotated": (studio_task(rotation=3), "x.json: task 0 has rotated rectanglelabels"),
    "several labels": (studio_task(rectanglelabels=["coin", "button"]), "cannot be read: ValueError"),
    "brush of another size": (studio_task("brushlabels", rle=[0, 0, 0, 9, 57, 24, 60]),
                              "a brush of 9 values is not of an image"),
    "several annotators": ([{**studio_task()[0], "annotations": studio_task()[0]["annotations"] * 2}],
                           "task 0 has 2 annotations; expected one"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "says"), REGIONS.values(), ids=REGIONS)
def test_regions_that_the_client_does_not_write_are_named(folder: Path, content: Any, says: str) -> None:
    refused(write(folder / "x/x.json", content), says, folder / "images")


def test_annotations_of_people_count_in_place_of_predictions_and_parts_of_an_object_are_joined(folder: Path) -> None:
    (task,) = studio_task()
    task["predictions"] = [{"result": [{"type": "never read"}]}]
    task["annotations"].append({"was_cancelled": True, "result": []})
    studio = read_dataset(write(folder / "x/x.json", [task]), folder / "images")
    labelme = labelme_shape(group_id=4, shape_type="polygon", points=[[1, 1], [5, 1], [5, 5], [1, 5]])
    labelme["shapes"].append(labelme["shapes"][0] | {"points": [[20, 1], [25, 1], [25, 5], [20, 5]]})
    joined = read_dataset(write(folder / "y/y.json", labelme), folder / "images")

    assert (studio.notes, studio.images[0].annotations[0]["bbox"]) == ((), [8.0, 6.0, 8.0, 6.0])
    (one,) = joined.images[0].annotations
    assert int(pycoco.area(one["segmentation"])) == 25 + 30


@pytest.mark.parametrize("seed", range(6))
def test_a_brush_of_label_studio_has_the_mask_that_was_written(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    mask = numbers.random((int(numbers.integers(1, 40)), int(numbers.integers(1, 40)))) < numbers.random()

    assert (read_brush(brush_rle(mask), *mask.shape) == mask).all()


# Instance ids


def instance_maps(folder: Path, ending: str = "", suffix: str = "png", dtype: type = np.uint16) -> Path:
    """Write maps of instance numbers: beside the images with an ending, else in `labels`."""
    place = folder / "cells"
    for index, discs in enumerate(TRUE):
        write(place / ("" if ending else "images") / f"{index}.png", image_of(index))
        ids = id_map(discs).astype(dtype) * (1 if dtype is np.uint8 else 257)
        ids[label_map(discs) == 0] = 0
        target = place / ("" if ending else "labels") / f"{index}{ending}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(target)
    return place


@pytest.mark.parametrize(
    ("ending", "suffix", "dtype"),
    [("", "png", np.uint16), ("", "tif", np.uint16), ("", "tif", np.int32), ("", "png", np.uint8),
     ("_masks", "tif", np.uint16), ("_cp_masks", "png", np.uint16)],
)  # fmt: skip
@pytest.mark.parametrize("model", ["discs", "boxes"])
def test_maps_of_instance_ids_are_labels_of_one_class(
    served: Served, folder: Path, model: str, ending: str, suffix: str, dtype: type
) -> None:
    data = instance_maps(folder, ending, suffix, dtype)
    document = coco_document()
    for each in document["annotations"]:
        each["category_id"] = 10
    expected = evaluate(model, write(folder / "one/coco.json", document), classes=["coin"], resamples=0)

    report = evaluate(model, data, classes=["coin"], resamples=0)

    assert (report.metrics, report.score) == (expected.metrics, expected.score)
    assert report.notes[0] == f"values of label maps are read as numbers of objects: {sum(map(len, TRUE))} of 'coin'"


def test_cellposes_other_files_are_no_images_and_an_image_without_a_map_is_named(folder: Path) -> None:
    data = instance_maps(folder, "_cp_masks")
    for name in ("0_flows.tif", "0_cp_output.png", "1_outlines.txt"):
        write(data / name, image_of(0))

    assert len(read_dataset(data).images) == COUNT
    (data / "3_cp_masks.png").unlink()
    refused(data, "1 of 6 images have no labels: 3.png")


def test_names_of_the_cell_tracking_challenge_are_matched(folder: Path) -> None:
    data = instance_maps(folder)
    for index in range(COUNT):
        (data / f"images/{index}.png").rename(data / f"images/t00{index}.png")
        (data / f"labels/{index}.png").rename(data / f"labels/man_seg00{index}.png")

    found = read_dataset(data)

    assert [each.label_map and each.label_map.name for each in found.images][:2] == ["man_seg000.png", "man_seg001.png"]
    assert found.notes == ()


def test_a_map_is_read_by_the_models_task_and_several_classes_are_refused(served: Served, folder: Path) -> None:
    for chosen in (None, ["coin", "button"]):
        with pytest.raises(DatasetError, match=r"cannot be evaluated on label maps; .* of one class \(--classes\)"):
            evaluate("discs", instance_maps(folder), classes=chosen)
    # Maps of classes, read as numbers, are told by their number of objects.
    note = evaluate("discs", folder, classes=["coin"], resamples=0).notes[0]
    assert "numbers of objects" in note
    assert evaluate("pixels", folder, resamples=0).notes == ()
    write(folder / "classes.txt", "background\ncoin\nbutton\n")
    with pytest.raises(DatasetError, match="cannot be evaluated on label maps"):
        evaluate("discs", folder, classes=["coin"])
    for index in range(COUNT):
        Image.fromarray((label_map(TRUE[index]) > 0).astype(np.uint8)).save(folder / f"cells/labels/{index}.png")
    note = evaluate("discs", folder / "cells", classes=["coin"], resamples=0).notes[0]
    assert note.endswith("6 of 'coin'; no map shows more than one: perhaps they are of classes")


# Names


def renamed(folder: Path, stem: str) -> None:
    (folder / "images/0.png").rename(folder / f"images/{stem}.png")


def of_list(folder: Path, name: str, files: list[str]) -> Dataset:
    """Read a COCO file whose only image has this name, with these files in its folder."""
    document = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    for file in files:
        write(folder / "pictures" / file, image_of(0))
    return read_dataset(write(folder / "list/x.json", document), folder / "pictures")


@pytest.mark.parametrize(
    ("name", "file"),
    [(f"{NFC}.png", f"{NFD}.png"), (f"{NFD}.png", f"{NFC}.png"), ("coins.png", "coins.PNG"), ("Coins.PNG", "coins.png"),
     (f"{NFC}/{NFC}.PNG", f"{NFD}/{NFD}.png"), (f"C:\\x\\{NFC}.png", f"{NFD}.png"), ("straße.png", "STRASSE.png")],
)  # fmt: skip
def test_a_name_that_is_spelled_otherwise_is_found_where_one_file_fits(tmp_path: Path, name: str, file: str) -> None:
    assert of_list(tmp_path, name, [file]).images[0].path == tmp_path / "pictures" / file


def test_a_name_that_several_files_are_spelled_like_is_refused_unless_one_has_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'coins.png' is not there, and several files .*COINS.png.*coins.PNG"):
        of_list(tmp_path, "coins.png", ["COINS.png", "coins.PNG"])
    assert of_list(tmp_path, "coins.PNG", []).images[0].path.name == "coins.PNG"


def test_labels_of_yolo_and_label_maps_are_found_whichever_way_they_are_spelled(folder: Path) -> None:
    data = yolo_set(folder)
    for file in (data / "images/0.png", data / "labels/0.txt", folder / "images/0.png", folder / "labels/0.png"):
        file.rename(file.with_name((NFC if file.parent.name == "images" else NFD) + file.suffix.upper()))
    write(data / "val.txt", "".join(f"images/{name}.png\n" for name in (NFD, *range(1, COUNT))))

    yolo, listed, maps = (
        read_dataset(path)
        for path in (data, write(data / "list.yaml", "val: val.txt\nnames: [background, coin, button]"), folder)
    )

    for found in (yolo, listed, maps):
        assert (len(found.images), found.notes) == (COUNT, ())
    assert all(each.annotations for each in (*yolo.images, *listed.images))


@pytest.mark.parametrize(
    "content",
    [
        "image;slice\n0.png;night\n1.png;day\n", "image\tslice\n0.png\tnight\n1.png\tday\n",
        "image, slice\n0.png, night\n1.png, day\n", "sep=;\nimage;slice\n0.png;night\n1.png;day\n",
        "\ufeffimage,slice\r\n0.png,night\r\n1.png,day\r\n",
        '"slice";"note";"image"\n"night";"a;b";"0.png"\nday;;1.png\n',
        "image;slice\n0.PNG;night\n\n1.png;day\n;\n",
        "image\tslice\r\n0.png\tnight\r\n1.png\tday\r\n".encode("utf-16"),
    ],
)  # fmt: skip
def test_slices_are_read_as_spreadsheets_write_them(served: Served, folder: Path, content: str | bytes) -> None:
    report = evaluate("pixels", folder, by=write(folder / "slices.csv", content), resamples=0)

    assert {name: each.images for name, each in report.slices.items()} == {"night": 1, "day": 1}


def test_slices_in_latin_1_are_refused_with_line_byte_and_cure(served: Served, folder: Path) -> None:
    path = write(folder / "slices.csv", "image,slice\n0.png,Tag\n1.png,D\xe4mmerung\n".encode("latin-1"))

    with pytest.raises(DatasetError, match=r"UTF-8: line 3 has the byte 0xe4\. If it is Latin-1 .*save it as UTF-8"):
        evaluate("pixels", folder, by=path)
    with pytest.raises(DatasetError, match=r"has the keys 0\.png more than once"):
        evaluate("pixels", folder, by=write(folder / "slices.json", '{"0.png": "a", "0.png": "b"}'))


@pytest.mark.parametrize("text", ["nc: 2\nval: images\n", "names: []\nval: images\n", "- a\n", "names: [a]\n"])
def test_a_yolo_file_that_lacks_something_is_refused_in_words(folder: Path, text: str) -> None:
    (folder / "data.yaml").write_text(text)

    with pytest.raises(DatasetError, match="YOLO data set") as refused:
        read_dataset(folder / "data.yaml")

    assert "Error(" not in str(refused.value)
