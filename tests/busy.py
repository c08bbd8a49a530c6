"""Runs a command while every core is busy with something else: `python tests/busy.py COMMAND...`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack

SPIN = "while True: pass"


def main(command: list[str]) -> int:
    """Return the exit status of the command; the busy processes end with it, whatever happens."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = subprocess.Popen([sys.executable, "-c", SPIN])
            stack.callback(process.wait)
            stack.callback(process.kill)
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
