"""Links between files lead somewhere where the repository is shown as it is, not only on the site."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.same


def test_every_relative_link_of_a_page_is_a_file_of_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    dead = [
        f"{page}: {target}"
        for page in listed.split()
        for target in LINK.findall(CODE.sub("", (ROOT / page).read_text()))
        if "://" not in target and not target.startswith("mailto:")
        if not (ROOT / page).parent.joinpath(unquote(target)).exists()
    ]

    assert dead == []
