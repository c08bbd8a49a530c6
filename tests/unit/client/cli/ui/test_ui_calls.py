"""The calls that the page shows: what they name is what they ask for."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.main import get_command

from segserve import Box, Click
from segserve.platform import Cluster, Local
from segserve_platform.cli.app import app
from segserve_ui.calls import Caller, calls
from segserve_ui.prompts import Prompts

URL = "http://127.0.0.1:8080"
NAMES = ["photo.jpg", "a b.png", 'it\'s "one".png', "$(rm -rf).png", "-o.png", "ü\n.png"]


def texts(caller: Caller, name: str = "photo.jpg", score: float | None = None) -> dict[str, str]:
    return {each["title"]: each["text"] for each in calls(caller, "coins", name, score)}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_stays_one_word(name: str) -> None:
    found = texts(Caller(Local(), URL), name, 0.75)

    tree = ast.parse(found["Python"])
    assert name in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert f"@{name}" in shlex.split(found["curl"])
    words = shlex.split(found["Command line"])
    assert (f"./{name}" if name.startswith("-") else name) in words


@pytest.mark.parametrize(
    "place", [Local(), Cluster("prod", "vision", Path("/k c")), Cluster()], ids=["here", "there", "current"]
)
def test_the_command_line_takes_the_command(place: Local | Cluster) -> None:
    program, *words = shlex.split(texts(Caller(place, URL), "a b.png", 0.75)["Command line"])

    assert program == "segserve"
    command = get_command(app)
    context = command.make_context("segserve", words, resilient_parsing=True)
    name, found, rest = command.resolve_command(context, words)  # type: ignore[attr-defined]
    given = found.make_context(name, rest, parent=context).params
    assert (name, given["name"], given["images"], given["score_threshold"]) == ("predict", "coins", ["a b.png"], 0.75)
    if place == Cluster("prod", "vision", Path("/k c")):
        assert (given["context"], given["namespace"], given["kubeconfig"]) == ("prod", "vision", Path("/k c"))


def test_curl_asks_plain_http_with_what_the_gateway_requires() -> None:
    words = shlex.split(texts(Caller(Local(), "https://here:1", "/ca.pem", has_key=True), score=0.5)["curl"])

    url = urlsplit(words[-1])
    assert (url.netloc, url.path, parse_qs(url.query)) == (
        "here:1",
        "/v1/models/coins:segment",
        {"score_threshold": ["0.5"]},
    )
    assert words[words.index("--cacert") + 1] == "/ca.pem"
    assert "x-api-key: $SEGSERVE_API_KEY" in words
    assert texts(Caller(Cluster(), URL, plain_http=False))["curl"].startswith("# needs gateway.plainHttp")


def test_python_trusts_the_private_authority() -> None:
    text = texts(Caller(Local(), "https://here:1", "/ca.pem"))["Python"]

    assert 'Client("https://here:1", tls=Tls(ca_file="/ca.pem"))' in text
    assert "import Client, Tls" in text
    assert "score_threshold" not in text


CLICKED = Prompts((Click(120, 80), Click(200.25, 90, foreground=False), Box(20, 30, 200, 150)), multimask=True)


def test_the_prompts_of_a_call_are_those_of_the_page() -> None:
    found = {each["title"]: each["text"] for each in calls(Caller(Local(), URL), "sam", "photo.jpg", None, CLICKED)}

    (asked,) = (
        node
        for node in ast.walk(ast.parse(found["Python"]))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ask"
    )
    names = {"Box": Box, "Click": Click}
    assert tuple(eval(ast.unparse(each), names) for each in asked.args) == CLICKED.given
    assert [(each.arg, ast.literal_eval(each.value)) for each in asked.keywords] == [("multimask", True)]
    query = parse_qs(urlsplit(shlex.split(found["curl"])[-1]).query)
    assert query == {
        "points": ["120,80;200.25,90"],
        "point_labels": ["1;0"],
        "prompt_boxes": ["20,30,220,180"],
        "multimask": ["true"],
    }
    assert "Command line" not in found  # which has one mask of each object
    alone = calls(Caller(Local(), URL), "sam", "photo.jpg", None, Prompts(CLICKED.given))
    words = shlex.split(alone[2]["text"])
    assert words[words.index("--point") :] == [
        *("--point", "120,80", "--background", "200.25,90", "--box", "20,30,200,150")
    ]
