"""What can go wrong with a large image beyond what can with a small one."""

from __future__ import annotations

from segserve_common.errors import SegserveError


class ImageTooLargeError(SegserveError):
    """An image, or a result, that would have to be in memory as a whole and is too large for that."""


class CheckpointError(SegserveError):
    """A folder that holds another run than the one asked for, or is damaged; nothing in it was changed."""


class RevisionChangedError(SegserveError):
    """Another revision began to answer while tiles were being sent."""


class WorkersLostError(SegserveError):
    """A tile that no worker of a Dask cluster lived to answer."""
