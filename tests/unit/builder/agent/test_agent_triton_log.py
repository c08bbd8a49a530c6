"""What Triton's log tells of a model that would not load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_builder.agent.server import log_position, logged_reason

if TYPE_CHECKING:
    from pathlib import Path

OLD = "E1120 08:00:00.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'coins': old\"\n"
NEW = "E1120 08:00:01.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'coins': new\"\n"
OTHER = "E1120 08:00:02.000001 1 model_repository_manager.cc:1460] \"Poll failed for model directory 'parts': x\"\n"


def test_the_last_error_about_the_model_is_found(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text('I1120 08:00:00.000001 1 server.cc:1] "coins"\n' + OLD + NEW + OTHER)
    assert logged_reason(log, "coins", 0) == "Poll failed for model directory 'coins': new"


def test_what_was_logged_before_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text(OLD)
    since = log_position(log)
    assert logged_reason(log, "coins", since) is None


def test_a_log_that_was_cut_short_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text(NEW)
    assert logged_reason(log, "coins", 10_000_000) == "Poll failed for model directory 'coins': new"


def test_a_missing_log_tells_nothing(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    assert logged_reason(log, "coins", log_position(log)) is None
