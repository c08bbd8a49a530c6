"""The number of the format of what is stored, in a state folder and in a cluster. Only the present format is read."""

from __future__ import annotations

from typing import Final

STORE_FORMAT: Final = 1
