"""What came of one run of a row, also as a line of JSON: what `tests.chaos.table` makes docs/reliability.md from."""

import json
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Report:
    """What came of one run."""

    row: str
    seed: int
    kills: int = 0
    """Failures that were brought about."""
    events: int = 0
    acknowledged: int = 0
    retries: int = 0
    differences: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    """Seconds after a failure until events acknowledged after it were in the tables, for each that was measured."""
    seconds: float = 0.0
    skipped: str = ""
    """Why it could not be run here."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing was lost, nothing counted twice, and all kills were done."""
        return not self.skipped and not self.differences and self.acknowledged == self.events

    def line(self) -> str:
        """JSON, with the day and the commit."""
        found = {
            "row": self.row,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit(),
            "seed": self.seed,
            "kills": self.kills,
            "events": self.events,
            "acknowledged": self.acknowledged,
            "retries": self.retries,
            "exact": self.is_exact,
            "differences": [line[:300] for line in self.differences[:5]],
            "recoveries": [round(seconds, 2) for seconds in self.recoveries],
            "seconds": round(self.seconds, 1),
            "skipped": self.skipped,
        }
        return json.dumps(found)

    def append_to(self, path: Path) -> None:
        """Add the line to a file."""
        with path.open("a") as file:
            file.write(self.line() + "\n")


@cache
def commit() -> str:
    """The commit that is checked out, as the table names it."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
