"""The site builds without a warning, its links lead somewhere, and it fetches nothing from elsewhere."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import segserve
from fakes.docs import ROOT

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(HTMLParser):
    """Links of a page, addresses that it fetches, and anchors in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.linked: set[str] = set()
        self.fetched: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.linked.add(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.add(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # Not --quiet: mkdocs counts only the warnings that it prints.
    assert done.returncode == 0, done.stderr
    return folder


@cache
def links(page: Path) -> Links:
    return Links(page.read_text())


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_link_leads_to_a_page_and_a_place_in_it(site: Path) -> None:
    lost = defaultdict(list)
    for page in pages(site):
        for target in links(page).linked | links(page).fetched:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            known = path.is_file() and (not parts.fragment or unquote(parts.fragment) in links(path).ids)
            if not known:
                lost[page.relative_to(site).as_posix()].append(target)
    assert dict(lost) == {}


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    assert {target for page in pages(site) for target in links(page).fetched if urlsplit(target).netloc} == set()
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert "url(http" not in styles
    assert "@import" not in styles


def test_no_page_shows_an_escaped_pipe(site: Path) -> None:
    own = [page for page in pages(site) if "repository" not in page.parts]

    assert [page.name for page in own if r"\|" in page.read_text()] == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    known = {each for page in (site / "reference/api").glob("*.html") for each in links(page).ids}

    assert {name for name in segserve.__all__ if f"segserve.{name}" not in known} == set()


def test_every_script_is_a_page_and_a_notebook_with_its_text_and_its_code(site: Path) -> None:
    scripts = sorted((ROOT / "docs/how-to").glob("*.py"))

    assert scripts
    for path in scripts:
        page = (site / "how-to" / f"{path.stem}.html").read_text()
        assert "# %%" not in page
        assert f'href="{path.name}"' in page
        notebook = json.loads((site / "how-to" / f"{path.stem}.ipynb").read_text())
        sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert ast.dump(ast.parse("\n".join(sources))) == ast.dump(ast.parse(path.read_text()))
