"""Tables and trees on terminals of several widths: a cell is whole or its column is not there."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from segserve_platform.cli.models_view import models_table
from segserve_platform.cli.terminal import print_whole

from .conftest import Command, conditions, model

WIDTHS = (60, 80, 100, 130)
URL = "http://segserve-default.vision.svc.cluster.local:8080"
FAILED = {
    "stable": {"revision": "roads-1111111111", "group": "main-7183b843"},
    "candidate": {"revision": "roads-2222222222", "state": "Failed", "reason": "GoldenFailed", "message": "IoU 0.2"},
}
TRIAL = {
    "stable": {"revision": "coins-instances-1111111111", "group": "main-7183b843"},
    "candidate": {
        "revision": "coins-instances-2222222222",
        "group": "coins-instances-2222222222-7183b843",
        "state": "Pending",
    },
}
SHIFTING = conditions("Shifting", "step 2 of 5", Ready="True", Progressing="True", Degraded="False")


def drawn(shown: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(shown)
    assert all(len(line) <= width for line in file.getvalue().splitlines())
    return file.getvalue()


def cells(shown: RenderableType, width: int) -> list[dict[str, str]]:
    """Return each row's cells by the name of their column."""
    head, *rows = drawn(shown, width).splitlines()
    names = head.split()
    starts = [head.index(name) for name in names]
    return [
        {name: row[start:end].strip() for name, start, end in zip(names, starts, [*starts[1:], len(row)], strict=True)}
        for row in rows
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_shows_whether_each_model_is_ready_and_its_weight_at_every_width(width: int) -> None:
    models = [model("coins"), model("coins-instances", url=f"{URL}/v2/models/coins-instances"), model("roads")]

    rows = cells(models_table(models), width)

    assert [(row["NAME"], row["READY"], row["STABLE"], row["WEIGHT"]) for row in rows] == [
        (name, "True", f"{name}-1111111111", "100") for name in ("coins", "coins-instances", "roads")
    ]


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "NAME READY STABLE CANDIDATE WEIGHT"),
        (80, "NAME READY STABLE CANDIDATE PHASE WEIGHT SLO"),
        (100, "NAME READY STABLE CANDIDATE PHASE WEIGHT SLO AGE"),
        (130, "NAME READY STABLE CANDIDATE PHASE WEIGHT SLO URL AGE"),
    ],
)
def test_the_address_goes_first_then_the_age_and_every_cell_that_is_left_is_whole(width: int, columns: str) -> None:
    trial = model("roads", roles=FAILED, phase="Progressing", weight=25, slo="Breached")

    row = cells(models_table([trial]), width)[0]

    assert list(row) == columns.split()
    assert row["CANDIDATE"] in ("roads-2222222222", "roads-2222222222 (GoldenFailed)")
    assert {"READY": "True", "STABLE": "roads-1111111111", "WEIGHT": "25"}.items() <= row.items()
    assert row.get("PHASE", "Progressing") == "Progressing"
    assert row.get("SLO", "Breached") == "Breached"


def test_columns_without_content_make_room_before_any_other() -> None:
    assert "AGE" in drawn(models_table([model("coins-instances")]), 100)
    assert "PHASE" not in drawn(models_table([model("coins-instances")]), 80)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({"conditions": conditions("NoStable", Ready="False", Progressing="True", Degraded="False")}, "Starting"),
        ({"conditions": conditions("NoServer", Ready="False", Progressing="True", Degraded="True")}, "Starting"),
        ({"conditions": conditions("DigestMismatch", Ready="False", Progressing="False", Degraded="True")}, "False"),
        ({"conditions": conditions("Deleting", Ready="False", Progressing="True", Degraded="False")}, "False"),
    ],
)
def test_a_model_that_was_never_ready_is_starting_until_something_is_wrong(status: Any, shown: str) -> None:
    new = model(roles={}, weight=0, **status)

    assert cells(models_table([new]), 100)[0]["READY"] == shown
    assert new["status"]["conditions"][0]["status"] == "False"


def test_a_model_that_stopped_serving_is_not_ready_unless_its_platform_has_just_started() -> None:
    down = model(conditions=conditions("NoServer", Ready="False", Progressing="False", Degraded="True"))

    assert cells(models_table([down]), 100)[0]["READY"] == "False"
    assert cells(models_table([down], starting={"coins"}), 100)[0]["READY"] == "Starting"


def test_a_terminal_that_is_too_low_shows_first_what_is_not_ready_and_how_many_more_there_are() -> None:
    down = conditions("NoServer", Ready="False", Progressing="False", Degraded="True")
    models = [*(model(f"m{number}") for number in range(30)), model("down", conditions=down)]

    lines = drawn(models_table(models, height=10), 100).splitlines()

    assert len(lines) == 10
    assert lines[1].split()[:2] == ["down", "False"]
    assert lines[-1] == "and 23 more: `segserve get`"
    assert len(drawn(models_table(models, height=32), 100).splitlines()) == 32


def test_piped_lines_have_all_columns_and_end_without_blanks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    print_whole(Console(), models_table([model("coins"), model("coins-instances")]))

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["NAME", "READY", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "SLO", "URL", "AGE"]
    assert [line for line in printed if line != line.rstrip()] == []
