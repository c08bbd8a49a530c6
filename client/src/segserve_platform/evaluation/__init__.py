"""How good a model's answers are on labelled images, and the reports that say so."""

from __future__ import annotations

from typing import Final

RESAMPLES: Final = 200
"""Samples of the images that intervals are made of."""
WORST: Final = 20
"""Images of the lowest scores that the page shows."""
IN_FLIGHT: Final = 8
"""Images that are sent at the same time."""
