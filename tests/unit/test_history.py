"""The verdict over the pieces of a partition: a model that loses parts, and what must hold whatever it lost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables.history import (
    ACKNOWLEDGED,
    CLAIMS,
    EVENTS,
    Facts,
    Loss,
    OffsetRange,
    digest_of,
    judge,
    unrecorded,
    void_ranges,
)
from processor.core.tables.table_rows import NEVER, UNKNOWN, Progress


def progress_at(offset: int, **others: Any) -> Progress:
    if offset == NEVER:
        return Progress(b"p")
    given_ = {"digest": 7, "claimed": offset, "events": 10 * (offset + 1), "rows": 5, **others}
    return Progress(b"p", offset, 1, **given_)


def facts(offset: int = 99, **others: Any) -> Facts:
    """A partition that was applied up to `offset`, whose pieces all fit."""
    progress = others.pop("progress", progress_at(offset))
    fit: dict[str, Any] = {
        "first": 0,
        "end": offset + 1,
        "committed": offset + 1,
        "progress": progress,
        "found": "same",
        "rows": max(progress.rows, 0),
        "events": max(progress.events, 0),
        "events_of_hours": max(progress.events, 0),
        "claims_first": 0,
        "reach": progress.claimed,
        "ids": max(progress.events, 0),
        "foreign": None,
    }
    return Facts(**{**fit, **others})


def test_what_fits_is_gone_on_with() -> None:
    verdict = judge(facts())
    assert (verdict.is_fine, verdict.resume) == (True, 100)
    assert judge(facts(end=150)).resume == 100
    assert judge(facts(committed=None)).resume == 100, "the group's offsets expire; the progress does not"
    assert judge(facts(committed=70)).resume == 70
    assert judge(facts(NEVER, end=0, committed=None, found="unknown", reach=NEVER)).resume == 0
    assert judge(facts(NEVER, end=30, committed=0, found="unknown", reach=NEVER)).resume == 0


def test_what_was_written_before_there_was_a_digest_is_believed() -> None:
    old = Progress(b"p", 99, 1)
    assert (old.digest, old.events) == (UNKNOWN, UNKNOWN)
    verdict = judge(facts(progress=old, rows=3, events=7, events_of_hours=7, ids=7, reach=99, found="unknown"))
    assert (verdict.is_fine, verdict.resume) == (True, 100)


@pytest.mark.parametrize("count", ["rows", "events", "events_of_hours"])
def test_rows_that_are_missing_are_computed_anew(count: str) -> None:
    verdict = judge(facts(**{count: 4}))
    assert (verdict.rebuild_rows, verdict.rebuild_claims, verdict.target) == (True, False, 99)
    assert "events before 3 are gone" in (judge(facts(**{count: 4}, first=3)).refuse or "")
    assert judge(facts(**{count: 4}, first=3, base=2)).rebuild_rows, "a checkpoint stands for those before 3"
    assert judge(facts(**{count: 4}, holes=[OffsetRange(5, 6)])).refuse
    assert judge(facts(**{count: 4}, holes=[OffsetRange(5, 6)], first=10, base=9)).rebuild_rows


def test_without_any_rows_the_claims_and_the_group_say_how_far_to_go() -> None:
    nothing = {"found": "unknown", "rows": 0, "events": 0, "events_of_hours": 0, "ids": 500}
    verdict = judge(facts(NEVER, end=120, committed=70, reach=99, **nothing))
    assert (verdict.rebuild_rows, verdict.target) == (True, 99)
    assert judge(facts(NEVER, end=120, committed=110, reach=99, **nothing)).target == 109
    assert judge(facts(NEVER, end=120, committed=110, first=5, reach=99, **nothing)).refuse


def test_claims() -> None:
    assert judge(facts(reach=80)).resume == 81, "what they lack is claimed again"
    assert judge(facts(reach=80, ids=810)).resume == 81
    assert judge(facts(reach=80, first=90)).refuse
    for lacking in ({"claims_first": 4}, {"ids": 999}, {"reach": NEVER}):
        verdict = judge(facts(**lacking))
        assert (verdict.rebuild_claims, verdict.rebuild_rows, verdict.target) == (True, True, 99)
    assert judge(facts(claims_first=4, progress=progress_at(99, claims_from=4))).is_fine
    assert judge(facts(ids=999, first=1)).refuse
    [loss] = judge(facts(claims_first=4, first=1)).losses  # the index has them all
    assert (loss.topic, loss.start, loss.end, loss.ids) == (CLAIMS, 0, 4, 0)
    known = [Loss(90, 100, True, "", EVENTS)]
    [loss] = judge(facts(ids=950, first=1, lost=known)).losses
    assert (loss.topic, loss.ids) == (CLAIMS, 50)
    assert judge(facts(ids=950, first=1, lost=[*known, loss])).is_fine


def test_events_that_are_gone() -> None:
    verdict = judge(facts(first=120, end=150))
    assert verdict.losses == [Loss(100, 120, False, "deleted before a worker had read them")]
    assert verdict.resume == 120
    again = judge(facts(first=120, end=150, lost=verdict.losses))
    assert (again.is_fine, again.resume) == (True, 120)
    assert [(loss.start, loss.end, loss.counted) for loss in judge(facts(holes=[OffsetRange(3, 5)])).losses] == [
        (3, 5, True)
    ]
    assert judge(facts(first=50, end=150, found="same")).is_fine, "retention behind the worker is no loss"


def test_a_log_that_lost_its_end() -> None:
    verdict = judge(facts(end=80, found="missing"))
    assert [(loss.start, loss.end, loss.counted) for loss in verdict.losses] == [(80, 100, True)]
    assert (verdict.cut, verdict.fill_to) == (80, 101)
    verdict = judge(facts(end=80, found="missing", reach=109, committed=105))
    assert [(loss.start, loss.end, loss.counted) for loss in verdict.losses] == [(80, 100, True), (100, 110, False)]
    assert verdict.fill_to == 111
    # it has grown again
    assert judge(facts(end=300, found="other")).cut == 99
    verdict = judge(facts(end=300, found="other", regrown=60))
    assert (verdict.cut, verdict.fill_to) == (60, 101)
    assert judge(facts(end=300, reach=120, foreign=110)).cut == 110
    # once it is reported nothing is reported twice
    assert judge(facts(end=300, found="other", regrown=60, lost=verdict.losses)).losses == []


ranges = st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))
losses = st.builds(
    lambda at, counted, topic: Loss(at[0], at[1], counted, "", topic),
    ranges,
    st.booleans(),
    st.sampled_from([EVENTS, CLAIMS, ACKNOWLEDGED]),
)


@given(st.lists(losses, max_size=4), st.lists(losses, max_size=4))
def test_what_is_reported_once_is_not_reported_again(found: list[Loss], recorded: list[Loss]) -> None:
    def covered(some: list[Loss]) -> set[tuple[str, int]]:
        return {(loss.topic, offset) for loss in some for offset in range(loss.start, loss.end)}

    new = unrecorded(found, recorded)
    assert covered(new) == covered(found) - covered(recorded)
    assert unrecorded(found, [*recorded, *new]) == []
    void = {offset for each in void_ranges(found) for offset in range(*each)}
    assert void == {o for topic, o in covered([loss for loss in found if not loss.counted]) if topic == EVENTS}


@given(
    applied=st.integers(0, 40),
    first=st.integers(0, 60),
    events=st.integers(0, 80),
    claimed_ahead=st.integers(0, 10),
    committed=st.none() | st.integers(0, 60),
)
def test_no_offset_is_passed_over(
    applied: int, first: int, events: int, claimed_ahead: int, committed: int | None
) -> None:
    """Whatever the ends and beginnings: each offset up to where reading goes on is counted, reported, or read again."""
    end = max(first, events)
    found = "unknown" if applied < first else "same" if applied < end else "missing"
    state = facts(applied, first=first, end=end, found=found, reach=applied + claimed_ahead, committed=committed)
    verdict = judge(state)
    if verdict.refuse is not None:
        return
    lost = {offset for loss in verdict.losses if loss.topic == EVENTS for offset in range(loss.start, loss.end)}
    if verdict.cut is not None:
        assert verdict.fill_to is not None
        known = max(applied, state.reach, (committed or 0) - 1)
        assert verdict.fill_to > known, "new events would get offsets that were used before"
        assert lost == set(range(verdict.cut, known + 1))
        return
    assert verdict.resume <= max(applied + 1, first)
    assert set(range(applied + 1, max(verdict.resume, applied + 1))) <= lost
    assert not any(offset in lost for offset in range(verdict.resume, end))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_digests_are_numbers_that_every_reader_takes(one: bytes, two: bytes) -> None:
    assert 0 <= digest_of(None, one) < 2**63
    assert (digest_of(None, one) == digest_of(None, two)) == (one == two)
    assert digest_of(b"padding", None) != digest_of(None, None)
