"""What the site has beside the pages of this folder: the README as its start, scripts as pages, linked files.

A link of a page is written as it works in the repository; here it leads to the same thing in the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mkdocs.structure.files import File, Files, InclusionLevel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
HOME: Final = "README.md"
HOW_TO: Final = "how-to/"
LINKED: Final = "repository/"
_LINK: Final = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCED: Final = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_CELL: Final = re.compile(r"^# %%(?: *\[(\w+)\])?.*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and every file of the repository that a page links to."""
    files.append(File.generated(config, "index.md", content=(ROOT / HOME).read_text()))
    for path in _scripts():
        files.append(File.generated(config, _page_of_script(path), content=page_of(path.read_text(), path.name)))
    for name in sorted(_linked(files)):
        files.append(_copied(config, name))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository into links into the site."""
    own = _in_repository(page.file.src_uri)
    parts = _FENCED.split(markdown)
    return "".join(
        part if number % 2 else _LINK.sub(lambda found: _relinked(found, own, page.file.src_uri, files), part)
        for number, part in enumerate(parts)
    )


def page_of(script: str, name: str) -> str:
    """Return the page of a script in percent format: its text as text, its code as code."""
    _, *cells = _CELL.split(script)
    pages = [_cell(kind, text) for kind, text in zip(cells[::2], cells[1::2], strict=True)]
    return "\n\n".join([*pages, f"[{name}]({name}) is all of this as a script."]) + "\n"


def _cell(kind: str | None, text: str) -> str:
    if kind == "markdown":
        return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines())
    return f"```python\n{text.strip()}\n```"


def _scripts() -> list[Path]:
    return sorted((ROOT / "docs" / HOW_TO).glob("*.py"))


def _script_pages() -> set[str]:
    return {_page_of_script(path) for path in _scripts()}


def _page_of_script(path: Path) -> str:
    return f"{HOW_TO}{path.stem}.md"


def _in_repository(uri: str) -> str:
    """Return what a page of the site is in the repository."""
    if uri == "index.md":
        return HOME
    return uri.removeprefix(LINKED) if uri.startswith(LINKED) else f"docs/{uri}"


def _in_site(name: str) -> str:
    """Return what a file of the repository is in the site."""
    if name == HOME:
        return "index.md"
    if not name.startswith("docs/"):
        return LINKED + name
    return re.sub(rf"^({HOW_TO}.*)\.py$", r"\1.md", name.removeprefix("docs/"))


def _targets(markdown: str, own: str) -> Iterator[str]:
    """Yield the files of the repository that a text links to; `own` is where it is itself."""
    for part in _FENCED.split(markdown)[::2]:
        for _, target, _ in _LINK.findall(part):
            if "://" not in target and not target.startswith(("mailto:", "/")):
                yield posixpath.normpath(posixpath.join(posixpath.dirname(own), target))


def _linked(files: Files) -> set[str]:
    """Return the files outside this folder that pages link to, and those that these link to."""
    found: set[str] = set()
    texts = [(_in_repository(file.src_uri), file.content_string) for file in files.documentation_pages()]
    while texts:
        own, text = texts.pop()
        for name in _targets(text, own):
            if name in found or name == HOME or name.startswith(("docs/", "..")) or not (ROOT / name).is_file():
                continue
            found.add(name)
            if name.endswith(".md"):
                texts.append((name, (ROOT / name).read_text()))
    return found


def _copied(config: MkDocsConfig, name: str) -> File:
    given: dict[str, Any] = {"content": (ROOT / name).read_bytes(), "inclusion": InclusionLevel.NOT_IN_NAV}
    return File.generated(config, LINKED + name, **given)


def _relinked(found: re.Match[str], own: str, uri: str, files: Files) -> str:
    before, target, after = found.groups()
    if "://" in target or target.startswith("mailto:") or uri in _script_pages():
        return found[0]
    name = posixpath.normpath(posixpath.join(posixpath.dirname(own), target))
    if (ROOT / name).is_dir():
        return before.lstrip("!").removeprefix("[").removesuffix("](")  # a folder has no page
    return f"{before}{os.path.relpath(_in_site(name), posixpath.dirname(uri) or '.')}{after}"
