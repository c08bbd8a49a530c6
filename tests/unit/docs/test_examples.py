"""Resources and commands in the documentation are valid."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer
import yaml
from typer.core import TyperGroup

from fakes.docs import PAGES, Block, blocks, prose
from fakes.offenders import offenders
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import SpecError
from segserve_operator.api.resources import KINDS
from segserve_operator.api.segmentation_model import SegmentationModelSpec
from segserve_operator.api.triton_pool import TritonPoolSpec
from segserve_platform.cli.app import app, loaded

SHELLS = ("console", "sh", "bash", "shell")
LEFT_OUT = re.compile(r"(?<=[:\s])(?:[0-9a-f]*\.\.\.)(?=\s*[},\n#])")
DIGEST = '"' + "0" * 64 + '"'
ALL_YAML = [block for page in PAGES for block in blocks(page, "yaml") if not block.reason]
ALL_SHELL = [block for page in PAGES for block in blocks(page, *SHELLS) if not block.reason]
COMMANDS: Any = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__base__
BASE = {
    "artifact": {"uri": "network.onnx", "sha256": "0" * 64},
    "family": "semantic-logits",
    "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
}
SPECS = {"SegmentationModel": SegmentationModelSpec, "TritonPool": TritonPoolSpec}


def test_every_resource_is_one_that_is_taken() -> None:
    def check(block: Block) -> None:
        for value in yaml.safe_load_all(without_gaps(block.text)):
            try:
                parse(completed(value, block), block.place)
            except SpecError as error:
                raise AssertionError(error) from None

    assert offenders(check, {block.place: (block,) for block in ALL_YAML}) == {}


def without_gaps(text: str) -> str:
    """Return YAML in which digests are whole, and no `...` stands for more."""
    text = re.sub(r"(sha256: *)\"?[0-9a-f]*\.\.\.\"?", rf"\g<1>{DIGEST}", text)
    return re.sub(r",? *\.\.\.(?=\s*[}\]])|^ *\.\.\.$", "", text, flags=re.MULTILINE)


def completed(value: Any, block: Block) -> dict[str, Any]:
    """Return the resource that a fragment is of: a whole one, a spec, fields of one, or a list of gates."""
    if isinstance(value, list):
        return resource("SegmentationModel", {"rollout": {"gates": value}})
    assert isinstance(value, dict), f"{block.place}: a resource is a mapping, got {value!r}"
    if "kind" in value:
        assert value["kind"] in KINDS, f"{block.place}: mark a block of another kind with <!-- not run: ... -->"
        return {**value, "spec": BASE | (value.get("spec") or {})} if value["kind"] == "SegmentationModel" else value
    spec = value.get("spec", value)
    for kind, of in SPECS.items():
        known = {field.alias or name for name, field in of.model_fields.items()}
        if spec.keys() <= known:
            return resource(kind, spec)
    raise AssertionError(f"{block.place}: neither of a model's nor of a pool's spec: {', '.join(spec)}")


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    base = BASE if kind == "SegmentationModel" else {}
    return {"apiVersion": "segserve.dev/v1alpha1", "kind": kind, "metadata": {"name": "example"}, "spec": base | spec}


def test_every_command_is_one_that_the_command_line_takes() -> None:
    def check_all(block: Block) -> None:
        for words in commands(block.text):
            check(words, block.place)

    assert offenders(check_all, {block.place: (block,) for block in ALL_SHELL if "segserve" in block.text}) == {}


def commands(text: str) -> list[list[str]]:
    """Return the words after `segserve` of each of its commands in a shell's text; what is printed is left out."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found = []
    for line in lines:
        found += [after(part) for part in split(line)] if "segserve" in line else []
    return [words for words in found if words]


def split(line: str) -> list[list[str]]:
    """Return the words of each of the commands that a line joins."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def after(words: list[str]) -> list[str]:
    """Return what follows `segserve` where it is the command, perhaps after variables or as kubectl's plugin."""
    rest = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if rest[:2] == ["kubectl", "segserve"]:
        return rest[2:]
    return rest[1:] if rest[:1] == ["segserve"] else []


def child(group: TyperGroup, name: str) -> Any:
    """Return a command of a group; of all commands it is imported when it is used."""
    return loaded(name) if group is COMMANDS else group.commands[name]


def check(words: list[str], place: str) -> None:
    """Let the real command tree parse the words, as far as to what the command would do."""
    command, path, given = COMMANDS, "segserve", list(words)
    while isinstance(command, TyperGroup) and given and given[0] in command.commands:
        command, path, given = child(command, given[0]), f"{path} {given[0]}", given[1:]
    if given == ["--help"]:
        return
    assert not isinstance(command, TyperGroup), f"{place}: {path} has no command {' '.join(given[:1])!r}"
    try:
        command.make_context(path, given).close()
    except UsageError as error:
        raise AssertionError(f"{place}: {path}: {error.format_message()}") from None


MENTIONED = re.compile(r"`(segserve [a-z][^`\n]*)`")


def test_every_option_that_a_text_mentions_is_one_of_its_command() -> None:
    def check(words: str) -> None:
        command, rest = COMMANDS, words.partition(r"\|")[0].split()[1:]
        while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
            command, *rest = child(command, rest[0]), *rest[1:]
        assert command is not COMMANDS, "names no command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = {word.strip("[]().,;") for word in rest if re.match(r"\[?--?[a-z]", word)}
        assert options <= known | {"--help"}

    mentioned = [(page.name, words) for page in PAGES for words in MENTIONED.findall(prose(page))]
    assert offenders(check, {each: (each[1],) for each in mentioned}) == {}
