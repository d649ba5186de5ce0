"""Draws what `python -m tests.bench.growth` measured: `python -m tools.chart growth.json docs/images/growth.svg`.

Above: events a second over the events in the log, as the log was filled (line) and in the timed stretches (points, with
the spread of their runs). Below: memory of the processes over time, without pages of files. Plain SVG, by hand: two
charts are no reason for a library.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from tests.bench.growth import Report, rates

WIDTH: Final = 820
HEIGHT: Final = 640
LEFT: Final = 70
RIGHT: Final = 730
PANELS: Final = ((56, 280), (382, 585))
"""Top and bottom of both, in pixels."""
COLOURS: Final = {"worker": "#b45309", "api": "#1d4ed8", "supervisor": "#6b7280"}
INK: Final = "#1f2937"
FAINT: Final = "#e5e7eb"
MIDDLE: Final = "#9ca3af"
CSS: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2937}.title{font-size:14px;font-weight:600}.unit{fill:#6b7280}"
)


@dataclass(frozen=True)
class Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; a value beyond the axis lies at its end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values along the axis; powers of ten on a logarithmic one."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [10.0**power for power in powers]
        step = step_for(self.high - self.low)
        return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def step_for(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that a span has four to ten of it."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return power * max(factor for factor in (1, 2, 5) if power * factor <= span / 4)


def short(value: float) -> str:
    """150000 -> 150 k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], colour: str, width: float = 1.5) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'


def frame(title: str, across: Axis, up: Axis, across_unit: str, up_unit: str) -> list[str]:
    """Grid, ticks and titles of a panel."""
    top, bottom = up.end, up.start
    found = [text(LEFT - 50, top - 30, title, kind="title"), text(LEFT - 50, top - 12, up_unit, kind="unit")]
    for tick in up.ticks():
        found += [line([(LEFT, up.at(tick)), (RIGHT, up.at(tick))], FAINT, 1)]
        found += [text(LEFT - 8, up.at(tick) + 4, short(tick), "end")]
    for tick in across.ticks():
        found += [line([(across.at(tick), bottom), (across.at(tick), bottom + 5)], INK, 1)]
        found += [text(across.at(tick), bottom + 20, short(tick), "middle")]
    found += [line([(LEFT, bottom), (RIGHT, bottom)], INK, 1)]
    return [*found, text((LEFT + RIGHT) / 2, bottom + 38, across_unit, "middle", "unit")]


def throughput(report: Report) -> list[str]:
    """The upper panel."""
    samples = [sample for sample in report.samples if sample.rate and not sample.slowed]
    timed = rates(report)
    sizes = [sample.events for sample in samples]
    most = max([sample.rate for sample in samples] + [rate for each in timed.values() for rate in each])
    across = Axis(min([*sizes, *timed]) / 2, max([*sizes, *timed]) * 1.2, LEFT, RIGHT, logarithmic=True)
    up = Axis(0, most * 1.1, PANELS[0][1], PANELS[0][0])
    found = frame("Throughput as the log grows", across, up, "events in the log", "events/s")
    found += [line([(across.at(sample.events), up.at(sample.rate)) for sample in samples], MIDDLE, 1)]
    for size, each in timed.items():
        x, middle = across.at(size), statistics.median(each)
        found += [line([(x, up.at(min(each))), (x, up.at(max(each)))], COLOURS["api"], 2)]
        found += [f'<circle cx="{x:.1f}" cy="{up.at(middle):.1f}" r="4.5" fill="{COLOURS["api"]}"/>']
        found += [text(x, up.at(max(each)) - 10, short(round(middle, -2)), "middle")]
    return found


def memory(report: Report) -> list[str]:
    """The lower panel."""
    samples = report.samples
    across = Axis(0, max(samples[-1].seconds / 60, 0.1), LEFT, RIGHT)
    most = max(found.anon for sample in samples for found in sample.memory.values())
    up = Axis(0, most * 1.15, PANELS[1][1], PANELS[1][0])
    title = "Memory of the processes, a constant number of rows"
    found = frame(title, across, up, "minutes", "MiB, without pages of files")
    for role in samples[-1].memory:
        points = [(across.at(sample.seconds / 60), up.at(sample.memory[role].anon)) for sample in samples]
        found += [line(points, COLOURS[role], 2), text(RIGHT + 6, points[-1][1] + 4, role)]
    return found


def draw(report: Report) -> str:
    """The picture."""
    inside = "\n".join([*throughput(report), *memory(report)])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    return f'{head}\n<style>{CSS}</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n{inside}\n</svg>\n'


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("python -m tools.chart growth.json PICTURE.svg", file=sys.stderr)
        return 2
    report = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Report)
    Path(arguments[1]).write_text(draw(report))
    print(arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
