"""Makes the example's scripts importable, as they are when one of them is run."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"
sys.path[:0] = [str(EXAMPLES / "coins"), str(EXAMPLES / "prompt")]
