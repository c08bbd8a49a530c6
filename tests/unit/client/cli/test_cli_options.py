"""Options mean the same in all commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from segserve_platform.cli.app import app


def commands(group: Any, path: str = "segserve") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_o_is_a_place_or_a_format_and_json_has_one_way(name: str) -> None:
    options = {
        each: param for param in COMMANDS[name].params for each in param.opts if param.param_type_name == "option"
    }

    assert not {"--out", "--out-dir", "--output-dir", "--dest"} & options.keys()
    assert ("-o" in options) == ("--output" in options)
    is_format = "-o" in options and options["-o"].help.startswith("Output format")
    assert not ("--json" in options and is_format)
    assert is_format or "-o" not in options or options["-o"].metavar in ("FILE", "FOLDER", "PATH")


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_that_may_be_left_out_are_shown_so(name: str) -> None:
    for argument in (param for param in COMMANDS[name].params if param.param_type_name == "argument"):
        assert not (argument.metavar or "").startswith("["), "a metavar's own brackets hide whether it is required"
        if argument.help and "Default:" in argument.help:
            assert not argument.required
