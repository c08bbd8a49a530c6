"""What to say where a part of segserve is not installed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from segserve.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into a `MissingExtraError` that has the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"this needs {error.name}: pip install 'segserve[{extra}]'") from error
