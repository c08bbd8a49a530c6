"""Runs the property tests with fresh seeds, over and over: `python tests/fuzz.py MINUTES`.

What fails is kept among Hypothesis's examples, so that the next round fails with it again, and is printed as what
becomes an `@example(...)` of its test.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHOSEN = "hypothesis and not platform and not cluster"
PYTEST = [sys.executable, "-m", "pytest", "--numprocesses=logical", "--hypothesis-profile=fuzz", "-q", "-m", CHOSEN]


def main(minutes: float) -> int:
    """Return 0 where no property failed in that time; a round that has begun is finished."""
    tests = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "@given(" in path.read_text("utf-8"))
    command = [*PYTEST, *map(str, tests)]
    end_s = time.monotonic() + minutes * 60
    rounds = failed = 0
    while time.monotonic() < end_s:
        rounds += 1
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
        print(f"round {rounds}: {failed} of {rounds} found something", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
