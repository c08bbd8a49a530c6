"""The command of a child interpreter."""

from __future__ import annotations

import sys
from pathlib import Path


def python(*arguments: str, interpreter: str | Path | None = None) -> list[str]:
    """Return the command that starts Python with these arguments, by default the one that runs this.

    Without `-P` a child would import a `numpy.py` of the current folder, which may be full of others' downloads. A
    script does not find the modules beside it.
    """
    return [str(interpreter or sys.executable), "-P", *arguments]
