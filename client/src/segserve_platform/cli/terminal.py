"""Output for its reader: a person at a terminal of some width, or a file or program behind a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from segserve_platform.cli.errors import plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDEST: Final = 1000
NAMED: Final = 3
"""Up to this many images are named."""


def wide_enough(console: Console, shown: RenderableType) -> Console:
    """Return a console wide enough for the content: a terminal wraps longer lines itself."""
    from rich.console import Console
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(width=WIDEST), shown).maximum
    return Console(width=max(console.width, needed))


def print_whole(console: Console, shown: RenderableType) -> None:
    """Print the content in its full width; where it is piped, lines end without blanks."""
    wide = wide_enough(console, shown)
    if console.is_terminal:
        wide.print(shown)
        return
    with wide.capture() as captured:
        wide.print(shown)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_failures(failures: Sequence[tuple[object, object]], total: int, what: str) -> None:
    """Print on stderr the first images that failed, each with its error, and how many of all were not `what`."""
    for image, error in failures[:NAMED]:
        typer.echo(plain(f"error: {image}: {error}"), err=True)
    typer.echo(f"{len(failures)} of {total} images were not {what}", err=True)


@dataclass(frozen=True, slots=True)
class Activity:
    """A sign of life: `say` changes its text, `line` prints a result above it."""

    say: Callable[[str], None]
    line: Callable[[str], None]


@contextmanager
def activity(text: str) -> Iterator[Activity]:
    """Show on a terminal, with a spinner, that something is going on while the block runs."""
    if not sys.stderr.isatty():
        yield Activity(lambda _: None, typer.echo)
        return
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    is_one_terminal = sys.stdout.isatty()
    console = Console(stderr=not is_one_terminal)
    with Status(Text(text), console=console) as status:
        yield Activity(
            lambda changed: status.update(Text(changed)),
            (lambda line: console.out(line, highlight=False)) if is_one_terminal else typer.echo,
        )


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show an activity that prints no results; the function changes its text."""
    with activity(text) as shown:
        yield shown.say
