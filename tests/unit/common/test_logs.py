"""What a program's log looks like to people and to a log store."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

import pytest

from segserve_common.logs import FORMAT_VARIABLE, LEVEL_VARIABLE, LogSettings, LogSettingsError

PROGRAM = """
import logging, os, threading, warnings
from segserve_common.logs import LogSettings, start_logging

start_logging(LogSettings.of(os.environ))
log = logging.getLogger("own")
log.debug("unimportant")
log.info('model "%s"\\nhas %d classes', "Zähler", 2)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a pass failed")
logging.getLogger("httpx").info("HTTP Request: GET")
warnings.warn("old")
thread = threading.Thread(target=lambda: int("x"))
thread.start()
thread.join()
raise LookupError("nothing left")
"""


def logged(**environment: str) -> list[str]:
    command = [sys.executable, "-W", "always", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert not done.stdout
    return done.stderr.splitlines()


def test_each_line_of_a_json_log_is_one_object_with_a_time_a_level_and_its_logger() -> None:
    lines = [json.loads(line) for line in logged(SEGSERVE_LOG_FORMAT="json")]

    assert [(line["level"], line["logger"]) for line in lines] == [
        ("info", "own"),
        ("error", "own"),
        ("warning", "py.warnings"),
        ("critical", "segserve_common.logs"),
        ("critical", "segserve_common.logs"),
    ]
    assert lines[0]["message"] == 'model "Zähler"\nhas 2 classes'
    assert all(datetime.fromisoformat(line["time"]).utcoffset() is not None for line in lines)


def test_exceptions_of_a_json_log_are_fields_those_that_nobody_caught_too() -> None:
    _, caught, _, thread, last = (json.loads(line) for line in logged(SEGSERVE_LOG_FORMAT="json"))

    assert (caught["message"], "ZeroDivisionError" in caught["exception"]) == ("a pass failed", True)
    assert thread["exception"].splitlines()[-1].startswith("ValueError: invalid literal")
    assert last["exception"].splitlines()[-1] == "LookupError: nothing left"


def test_a_log_for_people_has_level_and_logger_on_each_line() -> None:
    assert " INFO own model" in logged()[0]


@pytest.mark.parametrize(("level", "first"), [("debug", "unimportant"), ("error", "a pass failed")])
def test_what_is_below_the_level_is_not_written(level: str, first: str) -> None:
    lines = logged(SEGSERVE_LOG_FORMAT="json", SEGSERVE_LOG_LEVEL=level)

    assert json.loads(lines[0])["message"] == first


@pytest.mark.parametrize(("variable", "value"), [(FORMAT_VARIABLE, "yaml"), (LEVEL_VARIABLE, "INFO")])
def test_a_word_that_there_is_not_is_refused_with_those_that_there_are(variable: str, value: str) -> None:
    with pytest.raises(LogSettingsError, match=rf"^{variable} is '{value}'; allowed: "):
        LogSettings.of({variable: value})


@pytest.mark.parametrize("settings", [LogSettings(), LogSettings("json"), LogSettings("text", "debug")])
def test_what_is_written_into_an_environment_reads_back(settings: LogSettings) -> None:
    assert LogSettings.of(settings.variables()) == settings
    assert not LogSettings().variables()
