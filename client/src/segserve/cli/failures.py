"""Which exceptions are a user's to mend, and what to say where an extra is not installed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from segserve.errors import SegserveError

if TYPE_CHECKING:
    from collections.abc import Iterator


class CommandError(Exception):
    """A command cannot do what was asked; the text says what was seen and what helps."""


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exception types whose text is all that a user needs to see."""
    found: list[type[Exception]] = [CommandError, SegserveError]
    with contextlib.suppress(ImportError):
        from segserve_builder.errors import BuilderError
        from segserve_operator.api.errors import SpecError

        found += [BuilderError, SpecError]
    with contextlib.suppress(ImportError):
        from segserve_operator.adapters.local.gateway import PortTakenError
        from segserve_operator.adapters.local.runtime import RuntimeEnvironmentError
        from segserve_operator.adapters.local.store import NotFoundError
        from segserve_operator.local_platform.supervisor import PlatformError

        found += [PlatformError, PortTakenError, RuntimeEnvironmentError, NotFoundError]
    return tuple(found)


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(f"this command needs {error.name}: pip install 'segserve[{extra}]'") from error
