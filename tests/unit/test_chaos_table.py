import json
from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.table import put_in, read, table

TITLES = {"a": "kill", "b": "other", "c": "mount"}


def run(path: Path, **values: object) -> None:
    report = Report("a", 1, kills=2, events=10, acknowledged=10)
    for name, value in values.items():
        setattr(report, name, value)
    report.append_to(path)


def test_a_line_for_each_row_from_its_runs(tmp_path: Path) -> None:
    path = tmp_path / "results"
    run(path, recoveries=[1.0, 2.0], retries=3)
    run(path, recoveries=[6.0])
    run(path, row="c", skipped="no root")
    results = read([path])
    day, commit = results[0]["date"], results[0]["commit"]
    assert table(TITLES, results).splitlines()[2:] == [
        f"| a | kill | {day} | {commit} | 2 | 20 | 4 | 3 | exact | 2.0 / 6.0 s |",
        "| b | other | | | 0 | | | | not run | |",
        "| c | mount | | | 0 | | | | skipped: no root | |",
    ]


@pytest.mark.parametrize("wrong", [{"differences": ["total: 1, not 2"]}, {"acknowledged": 9}])
def test_a_run_that_is_not_exact_cannot_hide_among_others(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "results"
    run(path)
    run(path, **wrong)
    assert "**1 of 2 runs differ**" in table(TITLES, read([path]))
    assert [json.loads(line)["exact"] for line in path.read_text().splitlines()] == [True, False]


def test_only_the_table_of_that_name_is_written_anew() -> None:
    document = "x\n<!-- table: a -->\nold\n<!-- end of table -->\ny\n<!-- table: b -->\nkept\n<!-- end of table -->\n"
    found = put_in(document, "a", "new")
    assert found == document.replace("old", "new")
    assert put_in(found, "a", "new") == found
    with pytest.raises(ValueError, match="table: c"):
        put_in(document, "c", "new")
