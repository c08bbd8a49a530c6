"""Errors of large images, in addition to those of single requests."""

from __future__ import annotations

from segserve_common.errors import SegserveError


class ImageTooLargeError(SegserveError):
    """An image or result that must be in memory as a whole and is too large for that."""


class CheckpointError(SegserveError):
    """The folder holds another run or is damaged; nothing in it was changed."""


class RevisionChangedError(SegserveError):
    """Another revision started to answer while tiles were being sent."""


class WorkersLostError(SegserveError):
    """Repeatedly, workers of a Dask cluster died while answering the same tile."""
