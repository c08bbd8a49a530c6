"""`segserve eval` and `segserve diff`: one table, files in a folder, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.kserve import Arrays, Asked, Fault, Model, items
from segserve.rendering.comparison import CANDIDATE_ONLY, OTHER_CLASS, STABLE_ONLY

from .conftest import COUNT, FOUND, Command, Served, instances


def test_an_evaluation_prints_a_table_and_writes_its_report(served: Served, folder: Path, command: Command) -> None:
    asked = ("eval", "discs", "--data", folder / "coco", "--images", folder / "images", "--resamples", 5)

    code, printed, _ = command(*asked)

    assert code == 0
    report = json.loads((folder / "discs-evaluation/report.json").read_text())
    table = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("all", "small", "coin"))}
    for row, own in (
        ("all", report["metrics"]),
        ("small", report["sizes"]["small"]),
        ("coin", report["classes"]["coin"]),
    ):
        for name in ("ap", "ap50", "ar100"):
            assert f"{own[name]['mean']:.3f} (" in table[row]
    assert "report: discs-evaluation/report.html" in printed
    assert (folder / "discs-evaluation/report.html").is_file()

    assert json.loads(command(*asked, "--json")[1]) == report
    assert served.count("discs") == COUNT


def test_slices_are_rows_of_the_table(served: Served, folder: Path, command: Command) -> None:
    (folder / "slices.json").write_text(json.dumps({"0.png": "day", "1.png": "night", "2.png": "night"}))

    code, printed, _ = command("eval", "pixels", "--data", folder, "--by", "slices.json", "-o", "out", "--resamples", 9)

    assert code == 0
    slices = json.loads((folder / "out/report.json").read_text())["slices"]
    (row,) = (line for line in printed.splitlines() if line.startswith("slice night, 2 images"))
    assert f"{slices['night']['metrics']['miou']['mean']:.3f} (" in row
    complaint = command("eval", "discs", "--data", folder / "coco", "--images", folder / "images", "--by", "night.csv")[
        2
    ]
    assert "'night.csv' cannot be read: No such file" in complaint


def test_an_image_that_fails_is_named_and_makes_the_exit_code_1(served: Served, folder: Path, command: Command) -> None:
    served.gateway.faults.append(Fault(http=400, message="the image is broken"))

    code, _, complaint = command("eval", "pixels", "--data", folder, "-o", folder / "out", "--in-flight", 1)

    assert code == 1
    assert "error: 0.png: the image is broken" in complaint
    assert "1 of 6 images were not answered" in complaint


def test_classes_that_the_model_does_not_have_are_an_error_before_anything_is_asked(
    served: Served, folder: Path, command: Command
) -> None:
    code, _, complaint = command("eval", "pixels", "--data", folder, "--classes", "coin, penny")

    assert code == 1
    assert "'penny': the data set has background, coin, button; the model has" in complaint
    assert served.count("pixels") == 0


@pytest.fixture
def next_discs(served: Served) -> str:
    """A second revision of the model `discs`, by another name: it finds no button, and its classes are renumbered."""
    first = served.gateway.models["discs"]
    classes = json.dumps([{"id": 5, "name": "coin"}, {"id": 6, "name": "button"}])

    def answer(asked: Asked) -> Arrays:
        found = instances(asked)
        coins = found["CLASSES"] == 1
        rows = {name: found[name][coins] for name in ("BOXES", "SCORES", "MASKS")}
        return {**found, **rows, "CLASSES": np.full(coins.sum(), 5, np.int32), "REVISION": items(b"next-eeeeeeeeee")}

    served.gateway.models["next"] = Model(first.outputs, {"revision": "next-eeeeeeeeee", "classes": classes}, answer)
    return "next"


def test_two_models_are_compared_by_the_names_of_their_classes(
    served: Served, folder: Path, command: Command, next_discs: str
) -> None:
    code, printed, _ = command("diff", "discs", next_discs, folder / "images", "-o", folder / "sheet", "--most", 2)

    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    with_buttons = sum(any(disc.class_id == 2 for disc in discs) for discs in FOUND)
    assert code == 0
    assert table["coin"][:2] == ["1.000", "1.000"]
    assert table["button"] == ["0.000", "0.000", str(with_buttons)]
    assert 0 < float(table["all"][0]) < 1
    assert {path.name for path in (folder / "sheet").iterdir()} == {"index.html", "pair-1.png", "pair-2.png"}
    page = (folder / "sheet/index.html").read_text()
    assert "least by class: button 0.000" in page
    assert "only discs has:" in page
    with Image.open(folder / "sheet/pair-1.png") as drawn:
        assert drawn.width > 4 * 400

    report = json.loads(command("diff", "discs", next_discs, folder / "images", "--json")[1])
    assert f"{report['agreement']:.3f}" == table["all"][0]
    assert [each["image"] for each in report["images"]] == [f"{index}.png" for index in range(COUNT)]


def test_the_exit_code_tells_whether_both_agree_enough(
    served: Served, folder: Path, command: Command, next_discs: str
) -> None:
    asked = ("diff", "discs", next_discs, folder / "images", "--at-least")

    code, _, complaint = command(*asked, 0.99)

    assert (code, complaint.splitlines()[-1][-13:]) == (1, "is below 0.99")
    assert command(*asked, 0.01)[0] == 0
    for model in ("pixels", "world", "boxes"):
        assert command("diff", model, model, folder / "images", "--at-least", 1)[0] == 0


def test_images_that_are_not_compared_are_named_and_make_the_exit_code_1(
    served: Served, folder: Path, command: Command, next_discs: str
) -> None:
    served.gateway.faults.append(Fault(http=400, message="the image is\x1b[2J broken"))
    asked = ("diff", "discs", next_discs, folder / "images", "--in-flight", 1)

    code, printed, complaint = command(*asked)

    assert code == 1
    assert f"error: {folder / 'images/0.png'}: the image is�[2J broken" in complaint
    assert f"1 of {COUNT} images were not compared" in complaint
    (every,) = (line.split() for line in printed.splitlines() if line.startswith("all"))
    assert every[-1] == str(COUNT - 1)

    served.gateway.faults.append(Fault(http=400, message="the image is broken"))
    code, printed, _ = command(*asked, "--json")
    assert code == 1
    assert [each["image"] for each in json.loads(printed)["images"] if "error" in each] == ["0.png"]


def test_a_sheet_of_a_model_and_itself_has_both_answers_and_its_legend_fits(
    served: Served, folder: Path, command: Command
) -> None:
    name = "discs-" + 34 * "w"
    served.gateway.models[name] = served.gateway.models["discs"]

    code, *_ = command("diff", name, name, folder / "images/0.png", "-o", folder / "sheet")
    assert code == 0

    with Image.open(folder / "sheet/pair-1.png") as drawn:
        sheet = np.asarray(drawn)
    assert sheet.shape[1] > 4 * 400
    legend = sheet[:30]
    assert all((legend == colour).all(-1).any() for colour in (STABLE_ONLY, CANDIDATE_ONLY, OTHER_CLASS))
    assert (legend[:, -5:] == 255).all()


def test_names_of_images_cannot_steer_the_terminal(served: Served, folder: Path, command: Command) -> None:
    for name in ("images", "labels"):
        (folder / name / "0.png").rename(folder / name / "0\x1b[2J.png")
    served.gateway.faults.append(Fault(http=400, message="the image\x1b[2J is broken"))

    code, printed, complaint = command("eval", "pixels", "--data", folder, "-o", folder / "out", "--in-flight", 1)

    assert code == 1
    assert "error: 0�[2J.png: the image�[2J is broken" in complaint
    assert "worst: 0�[2J.png" in printed
    assert "\x1b" not in printed + complaint


def test_answers_of_different_kinds_are_not_compared(served: Served, folder: Path, command: Command) -> None:
    code, _, complaint = command("diff", "pixels", "discs", folder / "images/0.png")

    assert code == 1
    assert "answers cannot be compared: SemanticResult of 80 x 60 and InstanceResult of 80 x 60" in complaint
