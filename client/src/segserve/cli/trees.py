"""Trees for terminals: rows with a state, aligned in columns across levels, in ASCII if the terminal lacks Unicode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from segserve_operator.core.failure import FailureReason

Branch = tuple[bool, ...]
"""For each level of a row's path, whether it is the last of its siblings."""

GOOD, MOVING, BAD, QUIET = "green", "yellow", "red", "dim"
_SIGNS: Final = {GOOD: "●", MOVING: "◐", BAD: "✗", QUIET: "○"}
_PLAIN_SIGNS: Final = {GOOD: "+", MOVING: "~", BAD: "x", QUIET: "-"}
_GUIDES: Final = ("   ", "│  ", "└─ ", "├─ ")
_PLAIN_GUIDES: Final = ("    ", "|   ", "`-- ", "|-- ")
LONG: Final = 60
"""Longer messages are not repeated."""


@dataclass(frozen=True, slots=True)
class Node:
    """One row: name, state as a colour and a word, detail, and the rows below it."""

    name: Text
    colour: str
    state: str
    detail: Text
    below: list[Node] = field(default_factory=list)
    cause: FailureReason | None = None
    """Printed after the detail; abbreviated if printed in a row above."""


def tree(nodes: Sequence[Node], *, ascii_only: bool) -> Table:
    """Return rows as aligned columns: name with guides, state, detail."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    printed: set[str] = set()
    signs = _PLAIN_SIGNS if ascii_only else _SIGNS
    for branch, node in _rows(nodes, ()):
        state = Text(f"{signs[node.colour]} {node.state}", style=node.colour)
        grid.add_row(_name(node, branch, ascii_only=ascii_only), state, _detail(node, printed))
    return grid


def _rows(nodes: Sequence[Node], branch: Branch) -> Iterator[tuple[Branch, Node]]:
    for number, node in enumerate(nodes, 1):
        path = (*branch, number == len(nodes))
        yield path, node
        yield from _rows(node.below, path)


def _name(node: Node, branch: Branch, *, ascii_only: bool) -> Text:
    space, line, last, other = _PLAIN_GUIDES if ascii_only else _GUIDES
    if len(branch) == 1:
        return node.name
    lead = "".join(space if ended else line for ended in branch[1:-1])
    return Text.assemble((lead + (last if branch[-1] else other), QUIET), node.name)


def _detail(node: Node, printed: set[str]) -> Text:
    if node.cause is None:
        return node.detail
    message = " ".join(node.cause.message.split())
    again = len(message) > LONG and message in printed
    printed.add(message)
    text = ("as above", QUIET) if again else (message, "")
    return Text.assemble(node.detail, "  " if node.detail else "", (node.cause.reason, "bold"), "  ", text)
