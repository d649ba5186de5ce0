"""Power cuts in short: what was not made durable is lost, torn or out of order. `make chaos` has the row `power`."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.power import run_power


@pytest.mark.parametrize(
    "how",
    [{"lives": 3, "failing": 0.0}, {"lives": 2, "failing": 1.0, "keep": ("nothing",)}],
    ids=["cuts", "an fsync fails before each cut"],
)
async def test_what_was_acknowledged_outlives_power_cuts(tmp_path: Path, how: dict[str, Any]) -> None:
    seed = random.SystemRandom().randrange(10**6)
    told: list[str] = []
    report = await run_power(seed=seed, events=1_000, directory=tmp_path, say=told.append, **how)
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.is_exact, f"seed {seed}: {told}: {report.differences[:10]}"
