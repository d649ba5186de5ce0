"""What rows give back, and how it is shown: medians, spreads, ratios."""

import statistics
from typing import Final

from msgspec import Struct, field
from rich import box
from rich.console import Console
from rich.table import Table

Figures = dict[str, float]
"""What one run measured: name -> value. The names are the columns' and the details'."""

RATE: Final = "events/s"
CPU: Final = "CPU "
"""Before the name of a process: its µs of CPU an event."""
ELSEWHERE: Final = "of the machine's CPU spent elsewhere, %"


class Row(Struct):
    """All runs of one row."""

    name: str
    title: str
    runs: list[Figures] = field(default_factory=list)
    failure: str | None = None
    note: str = ""

    def median(self, figure: str) -> float | None:
        """The median of one figure over the runs."""
        values = self._values(figure)
        return statistics.median(values) if values else None

    def _values(self, figure: str) -> list[float]:
        return [run[figure] for run in self.runs if figure in run]

    def figures(self) -> list[str]:
        """The names of all figures, in the order in which they first came."""
        return list(dict.fromkeys(name for run in self.runs for name in run))

    def shown(self, figure: str) -> str:
        """The median and, if there is one, the spread from the least to the greatest."""
        values = self._values(figure)
        if not values:
            return ""
        median = _number(statistics.median(values))
        return median if len(values) == 1 else f"{median} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def show(console: Console, conditions: dict[str, str], rows: list[Row], baselines: dict[str, float]) -> None:
    """Print everything, in tables that Markdown reads too; `baselines`: name -> the rate to compare with."""
    table = Table("condition", "", box=box.MARKDOWN)
    for name, value in conditions.items():
        table.add_row(name, value)
    console.print(table)
    rated = [row for row in rows if row.median(RATE) is not None]
    if rated:
        _rates(console, rated, baselines)
    for row in rows:
        _details(console, row)


def _rates(console: Console, rows: list[Row], baselines: dict[str, float]) -> None:
    ratios = [f"x {name}" for name in baselines]
    table = Table("row", "events/s: median (least to most)", "CPU, µs an event", *ratios, box=box.MARKDOWN)
    for row in rows:
        rate = row.median(RATE) or 0.0
        spent = [f"{name.removeprefix(CPU)} {row.median(name):.1f}" for name in row.figures() if name.startswith(CPU)]
        shown = row.shown(RATE) if row.failure is None else "FAILED"
        table.add_row(row.title, shown, ", ".join(spent), *(f"{rate / each:.1f}" for each in baselines.values()))
    console.print(table)


def _details(console: Console, row: Row) -> None:
    if row.failure is not None:
        console.print(f"\n{row.title}: FAILED: {row.failure}", style="bold red")
    details = [name for name in row.figures() if name != RATE and not name.startswith(CPU)]
    if details:
        table = Table(f"{row.title}, {len(row.runs)} run(s)", "median (least to most)", box=box.MARKDOWN)
        for name in details:
            table.add_row(name, row.shown(name))
        console.print(table)
    if row.note:
        console.print(f"\n{row.title}: {row.note}", soft_wrap=True)
