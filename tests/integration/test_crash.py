"""`kill -9` at random moments under load, in short; `make chaos` does it at length.

A failure prints its seed: `python -m tests.chaos --only ... --seed ...`, or the constant below, runs it again.
"""

import random
from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.rows import run_row


def told(report: Report) -> str:
    return f"seed {report.seed}: {report}"


async def test_kills_of_every_part_lose_and_repeat_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    report = await run_row(
        "mixed",
        seed=seed,
        events=9_000,
        kills=6,
        data_dir=tmp_path / "data",
        mixed=("worker", "api", "supervisor", "worker", "everything", "sigstop"),
    )
    assert report.kills == 6, told(report)
    assert report.is_exact, told(report)


async def test_a_torn_write_ahead_log_loses_only_what_was_never_acknowledged(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    report = await run_row("torn", seed=seed, events=4_000, kills=2, data_dir=tmp_path / "data")
    assert report.is_exact, told(report)


async def test_kills_around_the_event_store_lose_and_repeat_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    report = await run_row("store", seed=seed, events=6_000, kills=6, data_dir=tmp_path / "data")
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.is_exact, told(report)


async def test_a_store_that_is_further_behind_than_what_it_holds_loses_and_repeats_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    report = await run_row("store-behind", seed=seed, events=2_000, kills=2, data_dir=tmp_path / "data")
    assert report.is_exact, told(report)


@pytest.mark.parametrize("row", ["file", "disk", "clock", "junk"])
async def test_other_faults_in_short(tmp_path: Path, row: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    events = 6_000 if row == "clock" else 2_000  # enough of them that the second fault comes before their end
    report = await run_row(row, seed=seed, events=events, kills=2, data_dir=tmp_path / "data", mixed=(row,))
    if report.skipped:
        pytest.skip(report.skipped)
    assert report.is_exact, told(report)
