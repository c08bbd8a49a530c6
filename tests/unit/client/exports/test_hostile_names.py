"""Names of classes, and answers, that mean harm do none: not in markup, pictures, files or memory."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from segserve import Instance, InstanceResult, ProtocolError, SegmentClass, SemanticResult
from segserve.exports.formats import FORMATS
from segserve.exports.label_studio import labelling_config
from segserve.rendering.display import printable
from segserve.results.masks import EncodedMask
from segserve.results.result import Result

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]><!--",
    "[bold red]x[/bold red] [link=http://x]y[/link]",
    "\x1b[31mred\x1b[0m\x00\n\r\t\x7f",
    "\u202eright to left\u2066",
    "half a \ud800 pair",
    "x" * 5000,
    "",
)
GREY = np.full((60, 90, 3), 90, np.uint8)


def named(name: str) -> list[Result]:
    classes = (SegmentClass(1, name),)
    mask = np.zeros((60, 90), bool)
    mask[20:50, 10:70] = True
    instance = Instance((10, 20, 70, 50), 0.5, 1, name, EncodedMask.of(mask))
    labels = mask.astype(np.uint8).tobytes()
    return [
        InstanceResult(name, name, (60, 90), classes, (instance,)),
        SemanticResult(name, name, (60, 90), classes, {name: 1800}, None, labels, {}),
    ]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert {key for key, _ in attrs} <= {"alt", "src"}


@pytest.mark.parametrize("name", NAMES)
def test_html_has_no_tags_but_its_own(name: str) -> None:
    for result in named(name):
        for html in (result._repr_html_(), result.with_image(GREY)._repr_html_()):
            tags = Tags()
            tags.feed(html)
            assert tags.seen <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "img"}
            html.encode()


@pytest.mark.parametrize("name", NAMES)
def test_a_console_shows_the_name_as_text_on_one_line(name: str) -> None:
    for result in named(name):
        console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
        console.print(result)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "\x1b[31m" not in shown
        assert all(line.isprintable() for line in shown.replace("\x1b[2m", "").replace("\x1b[0m", "").split("\n"))
        assert repr(result).isprintable()
        assert len(repr(result)) < 300


@pytest.mark.parametrize("name", NAMES)
def test_every_format_can_be_written_and_parsed(name: str) -> None:
    for result in named(name):
        for label, form in FORMATS.items():
            if not label.startswith("coco-panoptic"):
                text = form.encode(result, "a.png")
                assert ElementTree.fromstring(text) is not None if form.suffix == ".xml" else json.loads(text)
        ElementTree.fromstring(labelling_config(result))


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_is_drawn_whatever_the_name(name: str) -> None:
    for result in named(name):
        assert result.overlay(GREY, legend=True).size == (90, 60)


def test_a_text_is_cut_and_cleaned() -> None:
    assert printable("a\tb\x00c") == "a�b�c"
    assert printable("x" * 100) == "x" * 59 + "…"


@pytest.mark.parametrize("data", [b"5", b"\x89PNG\r\n\x1a\n", b"[[0,0,2e9,0,0,2e9]]"])
def test_what_cannot_be_decoded_is_an_error_where_it_is_used_and_a_text_in_a_notebook(data: bytes) -> None:
    (good, _) = named("dog")
    assert isinstance(good, InstanceResult)
    instance = Instance((0, 0, 5, 5), 0.5, 1, "dog", EncodedMask(data, 60, 90))
    bad = InstanceResult("m", "m-aa", (60, 90), good.classes, (instance,))

    assert repr(bad) == "<InstanceResult of 90 x 60 by m-aa: 1 dog>"
    assert bad._repr_html_().startswith("<div><p>")
    for use in (bad.to_coco, bad.to_geojson, bad.to_rows, lambda: bad.to_cvat("a"), lambda: bad.overlay(GREY)):
        with pytest.raises(ProtocolError):
            use()


@pytest.mark.parametrize("box", [(-1e30, -1e30, 1e30, 1e30), (50, 50, 10, 10), (200, 200, 300, 300), (0, 0, 0, 0)])
def test_a_box_that_is_nowhere_is_drawn_without_harm(box: tuple[float, float, float, float]) -> None:
    (good, _) = named("dog")
    assert isinstance(good, InstanceResult)
    result = InstanceResult("m", "m", (60, 90), good.classes, (Instance(box, 0.5, 1, "dog", good[0].encoded),))
    assert result.overlay(GREY).size == (90, 60)
