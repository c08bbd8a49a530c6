"""The operator with a clock that tests set: `python -m faults.stepped_operator FILE`, ahead by the seconds in FILE."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

_CLOCK: Final = time.time
_STEP: Final = Path(sys.argv[1])


def stepped() -> float:
    """Return the time, as a clock tells it that somebody may have set."""
    try:
        return _CLOCK() + float(_STEP.read_text())
    except FileNotFoundError:
        return _CLOCK()


if __name__ == "__main__":
    time.time = stepped  # before the operator's modules take it as a default
    from segserve_operator.main import main

    sys.argv[1:] = []
    main()
