"""Which exceptions are a user's to mend."""

from __future__ import annotations

import contextlib

from segserve.platforms.errors import needs as needs
from segserve_common.errors import SegserveError


class CommandError(Exception):
    """A command cannot do what was asked; the text says what was seen and what helps."""


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exception types whose text is all that a user needs to see."""
    # What the machine refuses (a full disk, a folder that is a file, a right that is missing) says itself what it is.
    found: list[type[Exception]] = [CommandError, SegserveError, OSError]
    with contextlib.suppress(ImportError):
        from segserve_builder.errors import BuilderError
        from segserve_operator.api.errors import SpecError

        found += [BuilderError, SpecError]
    with contextlib.suppress(ImportError):
        from segserve_operator.adapters.local.gateway import PortTakenError
        from segserve_operator.adapters.local.runtime import RuntimeEnvironmentError
        from segserve_operator.adapters.local.store import ResourceNotFoundError
        from segserve_operator.local_platform.supervisor import PlatformError

        found += [PlatformError, PortTakenError, RuntimeEnvironmentError, ResourceNotFoundError]
    return tuple(found)
