"""`python -m tests.chaos.table RESULTS... docs/reliability.md`: the tables of the document, from lines of results.

The lines are what `python -m tests.chaos --results FILE` appends. What stands in the document between two markers is
written anew; nothing in it is copied by hand.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.chaos import kafka_rows, otlp, power
from tests.chaos.rows import ROWS

BEGIN: Final = "<!-- table: {name} -->"
END: Final = "<!-- end of table -->"

HEAD: Final = (
    "| row | what happens | date | commit | runs | events | failures | sent again | result | "
    "back after, median / max |\n"
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: |"
)

Result = Mapping[str, Any]


def table(titles: Mapping[str, str], results: Sequence[Result]) -> str:
    """One line for each row; those without a run say so."""
    lines = [_line(name, title, [one for one in results if one["row"] == name]) for name, title in titles.items()]
    return "\n".join([HEAD, *lines])


def _line(name: str, title: str, runs: Sequence[Result]) -> str:
    done = [run for run in runs if not run["skipped"]]
    if not done:
        why = f"skipped: {runs[0]['skipped']}" if runs else "not run"
        return f"| {name} | {title} | | | 0 | | | | {why} | |"
    exact = sum(run["exact"] for run in done)
    result = "exact" if exact == len(done) else f"**{len(done) - exact} of {len(done)} runs differ**"
    recoveries = [seconds for run in done for seconds in run["recoveries"]]
    back = f"{median(recoveries):.1f} / {max(recoveries):.1f} s" if recoveries else ""
    sums = [f"{sum(run[column] for run in done):,}" for column in ("acknowledged", "kills", "retries")]
    cells = [_range(done, "date"), _range(done, "commit"), str(len(done)), *sums, result, back]
    return f"| {name} | {title} | " + " | ".join(cells) + " |"


def _range(runs: Sequence[Result], column: str) -> str:
    return ", ".join(dict.fromkeys(run[column] for run in runs))


def put_in(document: str, name: str, text: str) -> str:
    """The document with a new table of that name."""
    begin = BEGIN.format(name=name)
    before, _, rest = document.partition(begin)
    if not rest:
        raise ValueError(f"the document has no {begin}")
    return f"{before}{begin}\n{text}\n{END}{rest.partition(END)[2]}"


def read(paths: Iterable[Path]) -> list[Result]:
    """All lines of the files."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def main(*paths: str) -> None:
    """Write both tables into the last of `paths`, from the results in the others."""
    *files, document = map(Path, paths)
    results = read(files)
    text = document.read_text()
    titles = {name: row.title for name, row in ROWS.items()} | {"power": power.TITLE, "otlp": otlp.TITLE}
    text = put_in(text, "embedded", table(titles, results))
    text = put_in(text, "kafka", table({name: row.title for name, row in kafka_rows.ROWS.items()}, results))
    document.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
