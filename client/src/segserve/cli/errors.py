"""Errors of commands, and the exceptions that are shown to users as one line."""

from __future__ import annotations

import contextlib

from segserve.platforms.errors import needs as needs
from segserve_common.errors import SegserveError


class CommandError(Exception):
    """A command cannot proceed; the message says what was found and what helps."""


def plain(text: str) -> str:
    """Return text that others wrote so that it cannot steer a terminal: control and direction characters replaced."""
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exception types whose message is all that a user needs."""
    # Errors of the operating system (disk full, not a folder, permission denied) explain themselves.
    errors: list[type[Exception]] = [CommandError, SegserveError, OSError]
    with contextlib.suppress(ImportError):
        from segserve_builder.errors import BuilderError
        from segserve_operator.api.errors import SpecError

        errors += [BuilderError, SpecError]
    with contextlib.suppress(ImportError):
        from segserve_operator.adapters.local.gateway import PortTakenError
        from segserve_operator.adapters.local.runtime import RuntimeEnvironmentError
        from segserve_operator.adapters.local.store import ResourceNotFoundError
        from segserve_operator.local_platform.supervisor import PlatformError

        errors += [PlatformError, PortTakenError, RuntimeEnvironmentError, ResourceNotFoundError]
    return tuple(errors)
