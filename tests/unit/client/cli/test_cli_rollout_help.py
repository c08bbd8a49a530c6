"""What `segserve rollout --help` says, and what saying it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

from segserve.cli.rollout.commands import rollout

COMMANDS = get_command(rollout).commands  # type: ignore[attr-defined]


def test_every_verb_of_the_design_is_a_command() -> None:
    verbs = {"promote", "abort", "pause", "resume", "retry", "rollback", "skip-gate"}

    assert set(COMMANDS) == {"status", "plan", "list", "replay", "bundle"} | verbs


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_help_text_is_a_sentence(name: str) -> None:
    texts = [COMMANDS[name].help, *(each.help for each in COMMANDS[name].params if getattr(each, "help", None))]

    assert COMMANDS[name].help
    for text in texts:
        assert text[0].isupper() or text.startswith("-"), text
        assert text.rstrip().endswith("."), text


def test_the_command_line_loads_no_engine_until_a_rollout_is_asked_about() -> None:
    code = (
        "import segserve.cli.app, sys; "
        "heavy = ('segserve_operator.core', 'segserve_operator.adapters', 'scipy', 'pydantic'); "
        "print(*[name for name in sys.modules if name.startswith(heavy)])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "\n"
