"""Summaries of row groups that are kept."""

import random
from pathlib import Path
from sys import getsizeof
from typing import Any

import pytest

from server.explore import session_sums
from server.explore.kept_summaries import FIXED, KeptSummaries, SummaryKey
from server.explore.questions import Filters, Times
from server.explore.version_sums import read_versions
from tests.support.event_store import NOON, StoreDirectory, make_row


def key(segment: str, group: int = 0) -> SummaryKey:
    """Return the key of a row group."""
    return SummaryKey(segment, group, "default", ("sums", None))


def test_the_least_recently_used_is_forgotten() -> None:
    kept = KeptSummaries(3 * (FIXED + 100))
    for segment in "abc":
        kept.keep(key(segment), segment, 100)
    assert kept.get(key("a")) == "a"
    kept.keep(key("d"), "d", 100)
    assert [kept.get(key(segment)) for segment in "abcd"] == ["a", None, "c", "d"]
    assert kept.bytes == 3 * (FIXED + 100)


def test_one_takes_the_place_of_an_earlier_one() -> None:
    kept = KeptSummaries(2 * (FIXED + 100))
    kept.keep(key("a"), "first", 100)
    kept.keep(key("a"), "second", 50)
    assert kept.get(key("a")) == "second"
    assert kept.bytes == FIXED + 50
    kept.keep(key("a"), "too large", 10_000)
    assert kept.get(key("a")) is None
    assert kept.bytes == 0


def test_those_of_other_segments_are_forgotten() -> None:
    kept = KeptSummaries()
    for segment in "ab":
        for group in range(2):
            kept.keep(key(segment, group), (segment, group), 10)
    kept.keep_only(["b", "c"])
    assert [kept.get(key("a", group)) for group in range(2)] == [None, None]
    assert [kept.get(key("b", group)) for group in range(2)] == [("b", 0), ("b", 1)]
    assert kept.bytes == 2 * (FIXED + 10)


def bytes_of(made: Any, seen: set[int]) -> int:
    """Return what a summary takes with all that it is made of, each object once."""
    if id(made) in seen or made is None:
        return 0
    seen.add(id(made))
    found = getsizeof(made) + int(getattr(made, "nbytes", 0))
    if isinstance(made, dict):
        return found + sum(bytes_of(part, seen) for pair in made.items() for part in pair)
    if isinstance(made, tuple | frozenset):
        return found + sum(bytes_of(part, seen) for part in made)
    return found


def assert_as_large_as_said(kept: KeptSummaries) -> None:
    seen: set[int] = set()
    taken = sum(bytes_of(summary, seen) for summary, _ in kept._items.values())  # noqa: SLF001
    assert 10_000 < taken <= kept.bytes


@pytest.mark.parametrize("length", [1, 250])
def test_summaries_are_no_larger_than_they_are_said_to_be(tmp_path: Path, length: int) -> None:
    """Texts of four bytes a character among them, and the sessions that were asked for and are not there."""
    rng, store, pad = random.Random(1), StoreDirectory(tmp_path / "events", group_rows=100), "\U0001f642" * length
    names = [f"{pad}{number}" for number in range(90)]
    for _ in range(5):
        store.append(
            [
                make_row(
                    rng,
                    session_id=name,
                    trace_id=f"t{name}",
                    user_id=f"u{name}",
                    model=f"{pad}{rng.randrange(3)}",
                    prompt_hash=f"{pad}{rng.randrange(20)}",
                    eval_scores={f"{pad}{rng.randrange(3)}": rng.random()},
                )
                for name in names
            ]
        )
    engine = store.engine()
    snapshot = store.snapshot(engine)
    for start in range(0, 90, 10):
        asked = [*names[start : start + 10], *(f"{pad}-{start}-{number}" for number in range(50))]
        assert len(session_sums.summed_sessions(snapshot, "default", asked) or ()) == 10
        engine.release()
    assert_as_large_as_said(store.files.summaries)
    for read in (
        lambda: session_sums.first_starts(snapshot, "default", Times(), 1000),
        lambda: read_versions(snapshot, "default", Filters(), Times(NOON - 1, None)),
    ):
        store.files.summaries.keep_only(())
        assert read()
        assert_as_large_as_said(store.files.summaries)
    engine.close()


def test_sessions_that_were_asked_for_are_forgotten_when_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question names others; the answers are those of all rows all the same."""
    monkeypatch.setattr(session_sums, "MOST_ASKED", 50)
    monkeypatch.setattr(session_sums, "FEW", 0)
    store = StoreDirectory(tmp_path / "events", group_rows=100)
    store.append([make_row(session_id=f"s{number % 30}", trace_id=f"t{number}") for number in range(90)])
    engine = store.engine()
    for number in range(40):
        asked = [f"s{(number + each) % 30}" for each in range(3)] + [f"none-{number}-{each}" for each in range(15)]
        found = session_sums.summed_sessions(store.snapshot(engine), "default", asked)
        engine.release()
        assert found is not None
        assert {session: row[4] for session, row in found.items()} == dict.fromkeys(asked[:3], 3)
        ((known, _),) = store.files.summaries._items.values()  # noqa: SLF001
        assert len(known.asked) <= 50
    engine.close()
