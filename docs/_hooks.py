"""Adds to the site the README as its start page, the how-to scripts as pages and notebooks, and files linked to.

Links are written so that they work in the repository; here they are rewritten to work in the site.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
HOME: Final = "README.md"
HOW_TO: Final = "how-to/"
LINKED: Final = "repository/"
_LINK: Final = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCED: Final = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"`[^`\n]*`")
_CELL: Final = re.compile(r"^# %%(?: *\[(\w+)\])?.*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file of the repository that a page links to."""
    files.append(File.generated(config, "index.md", content=(ROOT / HOME).read_text()))
    for path in _scripts():
        files.append(File.generated(config, _page_of_script(path), content=page_of(path.read_text(), path.name)))
        notebook = json.dumps(notebook_of(path.read_text()), indent=1)
        files.append(File.generated(config, f"{HOW_TO}{path.stem}.ipynb", content=notebook))
    for name in sorted(_linked(files)):
        files.append(_copied(config, name))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links into the repository as links into the site, and pipes in tables' code as mkdocs reads them."""
    own = _in_repository(page.file.src_uri)
    parts = _FENCED.split(markdown)
    for number, part in enumerate(parts[::2]):
        linked = _LINK.sub(lambda link: _relinked(link, own, page.file.src_uri), part)
        # GitHub wants a pipe in a table's code escaped; Python-Markdown would show the backslash.
        parts[2 * number] = _CODE.sub(lambda code: code[0].replace(r"\|", "|"), linked)
    return "".join(parts)


def page_of(script: str, name: str) -> str:
    """Return a script in percent format as Markdown: text cells as text, code cells as code blocks."""
    pages = [text if is_text else f"```python\n{text}\n```" for is_text, text in _cells(script)]
    notebook = name.removesuffix(".py") + ".ipynb"
    return "\n\n".join([*pages, f"Download this page as a [script]({name}) or a [notebook]({notebook})."]) + "\n"


def notebook_of(script: str) -> dict[str, Any]:
    """Return a script in percent format as a Jupyter notebook (nbformat 4.4)."""
    text, code = {"cell_type": "markdown"}, {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [(text if is_text else code) | {"metadata": {}, "source": source} for is_text, source in _cells(script)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernel}, "cells": cells}


def _cells(script: str) -> Iterator[tuple[bool, str]]:
    """Yield whether a cell is text, and what it holds."""
    _, *cells = _CELL.split(script)
    for kind, source in zip(cells[::2], cells[1::2], strict=True):
        lines = source.strip().splitlines()
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        yield kind == "markdown", "\n".join(lines)


def _scripts() -> list[Path]:
    return sorted((ROOT / "docs" / HOW_TO).glob("*.py"))


def _script_pages() -> set[str]:
    return {_page_of_script(path) for path in _scripts()}


def _page_of_script(path: Path) -> str:
    return f"{HOW_TO}{path.stem}.md"


def _in_repository(uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    if uri == "index.md":
        return HOME
    return uri.removeprefix(LINKED) if uri.startswith(LINKED) else f"docs/{uri}"


def _in_site(name: str) -> str:
    """Return the path in the site of a file of the repository."""
    if name == HOME:
        return "index.md"
    if not name.startswith("docs/"):
        return LINKED + name
    return re.sub(rf"^({HOW_TO}.*)\.py$", r"\1.md", name.removeprefix("docs/"))


def _targets(markdown: str, own: str) -> Iterator[str]:
    """Yield the files of the repository that a text links to; `own` is the text's path there."""
    for part in _FENCED.split(markdown)[::2]:
        for _, target, _ in _LINK.findall(part):
            if "://" not in target and not target.startswith(("mailto:", "/")):
                yield posixpath.normpath(posixpath.join(posixpath.dirname(own), target))


def _linked(files: Files) -> set[str]:
    """Return the files outside this folder that pages link to, and the files that those link to in turn."""
    linked: set[str] = set()
    texts = [(_in_repository(file.src_uri), file.content_string) for file in files.documentation_pages()]
    while texts:
        own, text = texts.pop()
        for name in _targets(text, own):
            if name in linked or name == HOME or name.startswith(("docs/", "..")) or not (ROOT / name).is_file():
                continue
            linked.add(name)
            if name.endswith(".md"):
                texts.append((name, (ROOT / name).read_text()))
    return linked


def _copied(config: MkDocsConfig, name: str) -> File:
    # mypy sees only the overload for text; mkdocs takes bytes as well.
    content: Any = (ROOT / name).read_bytes()
    return File.generated(config, LINKED + name, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _relinked(link: re.Match[str], own: str, uri: str) -> str:
    before, target, after = link.groups()
    if "://" in target or target.startswith("mailto:") or uri in _script_pages():
        return link[0]
    name = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
    if (ROOT / name).is_dir():
        return before.lstrip("!").removeprefix("[").removesuffix("](")  # a folder has no page
    return f"{before}{os.path.relpath(_in_site(name), posixpath.dirname(uri) or '.')}{after}"
