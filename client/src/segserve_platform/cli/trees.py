"""Trees for terminals: rows with a state, aligned in columns across levels, in ASCII if the terminal lacks Unicode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from segserve_platform.cli.errors import plain

if TYPE_CHECKING:
    from segserve_operator.core.failure import FailureReason

Branch = tuple[bool, ...]
"""For each level of a row's path, whether it is the last of its siblings."""

GOOD, MOVING, BAD, QUIET = "green", "yellow", "red", "dim"
_SIGNS: Final = {GOOD: "●", MOVING: "◐", BAD: "✗", QUIET: "○"}
_PLAIN_SIGNS: Final = {GOOD: "+", MOVING: "~", BAD: "x", QUIET: "-"}
_GUIDES: Final = ("   ", "│  ", "└─ ", "├─ ")
_PLAIN_GUIDES: Final = ("    ", "|   ", "`-- ", "|-- ")
GAP: Final = 2
LEAST_ROOM: Final = 30
"""Width in which a folded text can still be read."""
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


@dataclass(frozen=True, slots=True)
class _Row:
    name: Text
    state: Text
    detail: Text
    below: str
    """Guides of lines below the row."""


@dataclass(frozen=True, slots=True)
class AlignedTree:
    """Rows as aligned columns: name with guides, state, detail. A detail that is too wide is on lines of its own."""

    rows: Sequence[_Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, states = (max((cell.cell_len for cell in cells), default=0) for cells in self._columns())
        room = options.max_width - names - states - 2 * GAP
        if all(_fits(row.detail, room) for row in self.rows):
            yield self._table()
            return
        for row in self.rows:
            line = Text.assemble(_padded(row.name, names), " " * GAP, _padded(row.state, states), " " * GAP)
            if _fits(row.detail, room):
                first, *others = row.detail.wrap(console, max(room, 1)) or [Text()]  # an empty text has no lines
                lines = [line + first, *(Text(row.below.ljust(line.cell_len), QUIET) + other for other in others)]
            else:
                lead = Text(row.below, QUIET)
                wrapped = row.detail.wrap(console, max(options.max_width - lead.cell_len, 1))
                lines = [line, *(lead + detail for detail in wrapped)]
            for each in lines:
                each.rstrip()
                each.no_wrap, each.overflow = True, "ellipsis"
                yield each

    def _columns(self) -> tuple[list[Text], list[Text]]:
        return [row.name for row in self.rows], [row.state for row in self.rows]

    def _table(self) -> Table:
        grid = Table.grid(padding=(0, GAP))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for row in self.rows:
            grid.add_row(row.name, row.state, row.detail)
        return grid


def _fits(detail: Text, room: int) -> bool:
    """Return whether a detail can be read in a column of `room` cells, on one line or folded between words."""
    longest = max(map(cell_len, detail.plain.split()), default=0)
    return not detail or detail.cell_len <= room or LEAST_ROOM <= room >= longest


def _padded(text: Text, width: int) -> Text:
    padded = text.copy()
    padded.align("left", width)
    return padded


def sign(colour: str, *, ascii_only: bool) -> str:
    """Return the sign that stands for a colour."""
    return (_PLAIN_SIGNS if ascii_only else _SIGNS)[colour]


def tree(nodes: Sequence[Node], *, ascii_only: bool) -> AlignedTree:
    """Return the nodes as a renderable."""
    printed: set[str] = set()
    guides = _PLAIN_GUIDES if ascii_only else _GUIDES
    rows = []
    for branch, node in _rows(nodes, ()):
        state = Text(f"{sign(node.colour, ascii_only=ascii_only)} {node.state}", style=node.colour)
        space, line = guides[:2]
        below = "".join(space if ended else line for ended in branch[1:]) + (line if node.below else space)
        rows.append(_Row(_name(node, branch, ascii_only=ascii_only), state, _detail(node, printed), below))
    return AlignedTree(rows)


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
    message = plain(" ".join(node.cause.message.split()))
    again = len(message) > LONG and message in printed
    printed.add(message)
    text = ("as above", QUIET) if again else (message, "")
    return Text.assemble(node.detail, "  " if node.detail else "", (node.cause.reason, "bold"), "  ", text)
