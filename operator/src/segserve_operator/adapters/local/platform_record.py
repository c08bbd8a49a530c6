"""The record of the platform in a state folder; reading it imports little."""

from __future__ import annotations

from segserve_common.platform_record import PlatformRecord as PlatformRecord
from segserve_common.platform_record import read_record
from segserve_operator.adapters.local.files import StateFolder


class PlatformError(Exception):
    """The local platform cannot do what was requested; the message has the cause and a remedy."""


def read_platform(state: StateFolder) -> PlatformRecord | None:
    """Return the record of the running platform, or None if none runs."""
    return read_record(state.platform)
