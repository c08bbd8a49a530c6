"""Stages beside named peers: `python -m bench.stages` measures them in turns, in one process."""

import sys
from pathlib import Path

# The oracles.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
