"""Errors of commands, and the exceptions that are shown to users as one line."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Final

from segserve_common.errors import SegserveError
from segserve_common.files import DamagedFileError
from segserve_platform.platforms.errors import needs as needs


class CommandError(Exception):
    """A command cannot proceed; the message says what was found and what helps."""


def plain(text: str) -> str:
    """Return text that others wrote so that it cannot steer a terminal: control and direction characters replaced."""
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)


def wrapped(text: str) -> str:
    """Return text for stderr; on a terminal its lines break between words, so that commands can be read and copied."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = text.splitlines()
    return "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines)


_USER_ERRORS: Final = {
    "segserve_builder.errors": "BuilderError",
    "segserve_operator.api.meta": "SpecError",
    "segserve_operator.adapters.local.gateway": "PortTakenError",
    "segserve_operator.adapters.local.files": "PlatformError",
    "segserve_operator.adapters.local.resource_files": "ResourceNotFoundError",
    "segserve_operator.adapters.local.runtime": "RuntimeEnvironmentError",
}


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exception types whose message is all that a user needs, of the modules that the command has loaded."""
    # Errors of the operating system (disk full, not a folder, permission denied) explain themselves.
    loaded = [getattr(sys.modules[module], name) for module, name in _USER_ERRORS.items() if module in sys.modules]
    return (CommandError, SegserveError, OSError, DamagedFileError, *loaded)
