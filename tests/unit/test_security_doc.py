"""docs/security.md names a test for every threat: they have to be there."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = [
    line.split("|")
    for line in (ROOT / "docs" / "security.md").read_text().partition("## Threats")[2].splitlines()
    if line.startswith("|")
][2:]


def test_every_threat_has_a_test_and_every_test_is_there() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(ROWS) > 20
    for row in ROWS:
        named = re.findall(r"`(test_\w+)`", row[3])
        assert named, row
        assert set(named) <= there, set(named) - there
