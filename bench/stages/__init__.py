"""Stages compared with named peers: `python -m bench.stages` measures them in one process, alternating."""

import sys
from pathlib import Path

# For the package `oracles`.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
