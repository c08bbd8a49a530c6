"""The calls that the page shows: what they name is what they ask for."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.main import get_command

from segserve.platform import Cluster, Local
from segserve_platform.cli.app import app
from segserve_ui.calls import Caller, calls

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
