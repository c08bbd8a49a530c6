"""The command line as a shell sees it: help, completion, exit codes, colours; no traceback for a user's mistake."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from rich.console import Console
from rich.text import Text
from typer.rich_utils import rich_format_help

from fakes.offenders import offenders
from segserve_operator.store_format import STORE_FORMAT
from segserve_platform.cli.app import COMMANDS, app, loaded
from segserve_platform.cli.examples import EXAMPLES

from .conftest import Command, model

ROOT = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__base__
CONSOLE = Console()
ANSI = re.compile("\x1b")


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, listed in group.commands.items():
        found = loaded(name) if group is ROOT else listed
        if hasattr(found, "commands"):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name), found


ALL = dict(commands())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A state folder with a model of each of two names, of a platform that is not up."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "format").write_text(f"{STORE_FORMAT}\n")
    for name in ("coins", "roads"):
        folder = state / "objects/SegmentationModel" / name
        folder.mkdir(parents=True)
        manifest = model(name)
        status = manifest.pop("status")
        (folder / "spec.yaml").write_text(yaml.safe_dump(manifest))
        (folder / "status.yaml").write_text(yaml.safe_dump({"status": status}))
    monkeypatch.setenv("SEGSERVE_STATE", str(state))
    return state


def test_every_command_explains_itself_and_ends_with_examples(command: Command) -> None:
    def check(*path: str) -> None:
        code, printed, _ = command(*path, "--help")
        assert code == 0
        assert all(parameter.help for parameter in ALL[path].params), [p.name for p in ALL[path].params if not p.help]
        assert ANSI.search(printed) is None
        assert EXAMPLES.get(" ".join(path)), "has no examples"
        for example in EXAMPLES[" ".join(path)]:
            assert " ".join(example.split()) in " ".join(printed.replace("•", " ").split())

    assert offenders(check, {path: path for path in ALL}) == {}


def test_the_list_of_commands_has_the_beginnings_of_their_helps() -> None:
    listed = {name: text for group in COMMANDS.values() for name, (_, text) in group.items()}

    assert listed == {
        name: inspect.cleandoc(loaded(name).help).partition("\n\n")[0].replace("\n", " ") for name in listed
    }


@pytest.mark.parametrize("columns", [50, 80, 160])
def test_the_help_is_the_one_that_typer_would_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)

    ROOT(["--help"], prog_name="segserve", standalone_mode=False)
    printed = capsys.readouterr().out

    with ROOT.make_context("segserve", [], resilient_parsing=True) as context:
        rich_format_help(obj=ROOT, ctx=context, markup_mode="markdown")
    assert drawn(printed) == drawn(capsys.readouterr().out)


def drawn(printed: str) -> list[tuple[str, str]]:
    """Return the characters of a terminal's lines, each with its style."""
    lines = (Text.from_ansi(line) for line in printed.rstrip("\n").split("\n"))
    return [
        (each, str(line.get_style_at_offset(CONSOLE, place)) if each.strip() else "")
        for line in lines
        for place, each in enumerate(f"{line.plain.rstrip()}\n")
    ]


def test_examples_are_understood_by_the_commands_that_they_are_of() -> None:
    def check(name: str, line: str) -> None:
        words = shlex.split(line[line.index("segserve ") :].partition(" | ")[0].rstrip(")"))
        path = tuple(name.split())
        assert words[1 : len(path) + 1] == list(path)
        try:
            with ALL[path].make_context(name, words[len(path) + 1 :]) as context:
                assert context.command is ALL[path]
        except UsageError as error:
            raise AssertionError(error.format_message()) from None

    cases = [(name, line) for name, lines in EXAMPLES.items() for line in lines]
    assert offenders(check, {case: case for case in cases}) == {}


def completed(line: str, *, shell: str = "bash") -> list[str]:
    asked = {"_SEGSERVE_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'segserve'; from segserve_platform.cli.app import main; main()",
        ],
        env={**os.environ, **asked, "_TYPER_COMPLETE_ARGS": line},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_names_of_models_complete(here: Path) -> None:
    assert completed("segserve describe ") == ["coins", "roads"]
    assert completed("segserve predict r") == ["roads"]


def test_nobody_hears_of_a_platform_that_cannot_say_its_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "file/x"))

    assert completed("segserve get ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(command: Command, shell: str) -> None:
    code, printed, _ = command("completion", shell)

    assert (code, "_SEGSERVE_COMPLETE" in printed) == (0, True)
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=printed, text=True, check=True)


def test_the_version_is_one_line(command: Command) -> None:
    code, printed, _ = command("--version")

    assert (code, re.fullmatch(r"segserve \d+\.\d+\.\S+\n", printed) is not None) == (0, True)


def test_a_mistyped_command_or_model_is_told_with_the_likeliest(command: Command, here: Path) -> None:
    assert "Did you mean 'predict'?" in command("pedict")[2]
    for arguments in (("get", "coin"), ("describe", "coin"), ("delete", "coin")):
        code, _, complaint = command(*arguments)
        assert code == 1
        assert "did you mean 'coins'?" in complaint


@pytest.mark.parametrize(
    ("form", "begin"), [("json", "["), ("yaml", "apiVersion"), ("wide", "NAME"), ("table", "NAME")]
)
def test_lists_come_in_every_form(command: Command, here: Path, form: str, begin: str) -> None:
    code, printed, _ = command("get", "-o", form)

    assert (code, printed.startswith(begin), "roads" in printed) == (0, True, True)


def test_what_is_piped_has_no_colours_and_a_reader_that_goes_is_no_error(here: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    segserve = f"{sys.executable} -m segserve_platform.cli"

    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {segserve} get -o wide | cat; {segserve} --help | head -1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ANSI.search(piped.stdout) is None
    assert "Traceback" not in piped.stderr


@pytest.fixture
def mistakes(tmp_path: Path) -> list[str]:
    """What people give by mistake: other files, folders, nothing, names that are none."""
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "folder").mkdir()
    files = ("binary", "list.yaml", "folder", "binary/below")
    return [*(str(tmp_path / name) for name in files), "", "a" * 300]


NOT_TRIED = {("demo",), ("up",), ("down",), ("ui",), ("doctor",), ("crds",), ("runtime", "install"), ("completion",)}
MUST = {("build",): ("-o", "OUT"), ("export",): ("-o", "OUT", "--name", "n", "--images", "OUT")}


@pytest.mark.parametrize("path", [path for path in ALL if path not in NOT_TRIED], ids=" ".join)
def test_no_mistake_ends_in_a_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mistakes: list[str], path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SEGSERVE_URL", "http://127.0.0.1:1")
    must = [str(tmp_path / "out") if word == "OUT" else word for word in MUST.get(path, ())]
    for mistake in mistakes:
        arguments = [mistake for parameter in ALL[path].params if parameter.param_type_name == "argument"]
        files = [word for p in ALL[path].params if "--filename" in p.opts for word in ("--filename", mistake)]

        # Anything but an exit, an exception above all, fails the command fixture.
        code, _, complaint = command(*path, *arguments, *files, *must)

        assert code in (0, 1, 2)
        assert code == 0 or complaint
