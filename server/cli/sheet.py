"""Tables of commands.

A terminal gets tables that wrap; a pipe or a file gets lines of tab-separated fields, CSV or JSON. Nothing is cut.
"""

import csv
import io
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from processor.core.visible import HIDDEN, escape, visible
from server.cli.output import say

NARROWEST: Final = 12
"""Least cells of a text column where a table has to be narrow."""
FORMULA: Final = ("=", "+", "-", "@")
"""How a cell begins that a spreadsheet may run."""


def terminal(*, err: bool = False) -> Console:
    """Return a console that does not interpret markup."""
    return Console(stderr=err, markup=False, emoji=False, highlight=False)


class Column(NamedTuple):
    """A column of a `Sheet`."""

    title: str
    kind: Literal["text", "whole", "number"] = "text"
    """`text` may wrap, `whole` does not, and `number` does not and is right-aligned."""


Cell = str | int | None
"""A cell of a table: text, a count, or nothing (an empty field in a pipe)."""


class Sheet:
    """A table for a terminal, a pipe or a file; rich can draw it.

    A terminal that is wide enough gets a table with borders, in which text wraps. On a narrower one each row is its
    first cell on a line and the others below it, with their titles. A pipe or a file gets lines of tab-separated
    fields: the titles, then the rows, with integers without separators, and escapes for tabs, line breaks, control
    characters and the backslash; `notes` and the row of sums go to standard error then.
    """

    def __init__(self, *columns: Column, nothing: str = "none") -> None:
        self._columns = columns
        self._nothing = nothing
        self.notes: list[str] = []
        """Lines to print below the table."""
        self._rows: list[tuple[Cell, ...]] = []
        self._sums: tuple[Cell, ...] | None = None

    def add(self, *cells: Cell) -> None:
        """Add a row, a cell a column."""
        self._rows.append(cells)

    def set_sums(self, *cells: Cell) -> None:
        """Set the last row: the sums of all rows, including those that are not shown."""
        self._sums = cells

    def print(self) -> None:
        """Print the table on standard output."""
        if sys.stdout.isatty():
            terminal().print(self)
            return
        titles = tuple(column.title for column in self._columns)
        sys.stdout.write("".join("\t".join(map(_field, cells)) + "\n" for cells in (titles, *self._rows)))
        sys.stdout.flush()
        if self._sums is not None:
            first, *others = zip(titles, self._sums, strict=True)
            parts = (f"{title} {cell}" for title, cell in others if cell not in {None, ""})
            say(f"{first[1]}: {', '.join(parts)}", err=True)
        say(*self.notes, err=True)

    def print_csv(self) -> None:
        """Print the titles, the rows and the sums as CSV (RFC 4180), and the notes on standard error.

        Fields are those of a pipe; a text that a spreadsheet would run as a formula has a `'` before it.
        """
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(column.title for column in self._columns)
        for cells in (*self._rows, *([self._sums] if self._sums is not None else [])):
            rows.writerow(_safe(cell, column) for cell, column in zip(cells, self._columns, strict=True))
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
        say(*self.notes, err=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table for a terminal of this width."""
        rows = [[self._shown(cell, console.encoding) for cell in cells] for cells in self._rows]
        sums = None if self._sums is None else [self._shown(cell, console.encoding) for cell in self._sums]
        if self._width([*rows, *([sums] if sums else [])]) <= options.max_width:
            yield self._table(rows, sums)
        else:
            yield self._list(rows, sums, options.max_width)
        for note in self.notes:
            yield from _folded(to_text(note, console.encoding), options.max_width)

    def _shown(self, cell: Cell, encoding: str) -> Text:
        if cell is None:
            return Text(self._nothing)
        return to_text(f"{cell:,}" if isinstance(cell, int) else cell, encoding)

    def _width(self, rows: Sequence[Sequence[Text]]) -> int:
        """Return the least width, in cells, of the table with borders."""
        width = 3 * len(self._columns) + 1
        for number, column in enumerate(self._columns):
            widest = max([cell_len(column.title), *(row[number].cell_len for row in rows)])
            width += min(widest, NARROWEST) if column.kind == "text" else widest
        return width

    def _table(self, rows: Sequence[Sequence[Text]], sums: Sequence[Text] | None) -> Table:
        table = Table(show_footer=sums is not None)
        for number, column in enumerate(self._columns):
            table.add_column(
                Text(column.title),
                footer=Text() if sums is None else sums[number],
                justify="right" if column.kind == "number" else "left",
                overflow="fold",
                no_wrap=column.kind != "text",
            )
        for row in rows:
            table.add_row(*row)
        return table

    def _list(self, rows: Sequence[Sequence[Text]], sums: Sequence[Text] | None, width: int) -> Group:
        lines: list[Text] = []
        for row in rows:
            lines += self._record(row, width)
        if sums is not None:
            lines += self._record(sums, width)
        return Group(*lines)

    def _record(self, row: Sequence[Text], width: int) -> list[Text]:
        """Yield one row: its first cell, then the others after their titles, as many on a line as fit."""
        lines = _folded(row[0].copy(), width)
        lines[0].stylize("bold")
        line = Text()
        for column, cell in zip(self._columns[1:], row[1:], strict=True):
            if not cell.plain:
                continue
            item = Text.assemble((f"{column.title} ", "dim"), cell)
            if line and 2 + line.cell_len + 2 + item.cell_len > width:
                lines += _indented(line, width)
                line = Text()
            line = Text("  ").join([line, item]) if line else item
        return lines + (_indented(line, width) if line else [])


def to_text(text: str, encoding: str = "utf-8") -> Text:
    """Return `text` as it is shown, never as markup; escapes of characters that cannot be shown are highlighted."""
    shown = Text()
    start = 0
    for found in HIDDEN.finditer(text):
        shown.append(_encodable(text[start : found.start()], encoding)).append(escape(found[0]), "reverse")
        start = found.end()
    return shown.append(_encodable(text[start:], encoding))


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _field(cell: Cell) -> str:
    return "" if cell is None else visible(str(cell).replace("\\", "\\\\"))


def _safe(cell: Cell, column: Column) -> str:
    field = _field(cell)
    return f"'{field}" if column.kind != "number" and field.startswith(FORMULA) else field


def _folded(text: Text, width: int) -> list[Text]:
    """Return lines of at most `width` cells that keep all characters, blanks included."""
    ends = accumulate(map(len, chop_cells(text.plain, max(width, 2))))
    lines = list(text.divide(list(ends)[:-1]))
    for line in lines:
        line.no_wrap, line.overflow = True, "ignore"
    return lines


def _indented(text: Text, width: int) -> list[Text]:
    folded = _folded(text, width - 2)
    lines = [Text("  ").append_text(line) for line in folded]
    for line in lines:
        line.no_wrap, line.overflow = True, "ignore"
    return lines
