"""Shared by builder, operator and client: the KServe v2 codec, Kubernetes, guarded HTTP, files, backoff."""

from __future__ import annotations

from typing import Final

MAX_IMAGE_PIXELS: Final = 1_000_000_000
"""Upper bound of `spec.input.maxPixels`: without a limit, an answer of a few bytes could claim all memory."""
