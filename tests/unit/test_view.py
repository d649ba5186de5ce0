import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import reduce
from threading import Thread
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import DAY, HOUR, KINDS, Kind, window_start
from processor.core.tables.row_sums import RowSums, Totals
from processor.core.tables.table_rows import Sums, decode_key, encode_key, encode_value
from processor.view.listing import Listing
from processor.view.query import Range
from processor.view.view import UserRow, View
from processor.view.view_follower import Arrivals
from server.reads.params import parse_users
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Records, Usage, Worker


def usages() -> st.SearchStrategy[Usage]:
    return st.builds(
        Usage,
        id=st.integers(0, 30),
        user=st.sampled_from([None, "u1", "u2", "ü3"]),
        at=st.integers(NOON - 2 * DAY, NOON + DAY),
        provider=st.sampled_from(["openai", "custom"]),
        model=st.sampled_from(["m1", "m2"]),
        environment=st.sampled_from(["production", "test"]),
        input_tokens=st.integers(0, 2**53 - 1),
        output_tokens=st.integers(0, 9),
        cached_tokens=st.integers(0, 9),
        cost=st.integers(0, 10**18),
        error=st.booleans(),
        unpriced=st.booleans(),
        latency=st.sampled_from([0, 0, 1, 77, 255]),
    )


requests = st.tuples(
    st.lists(usages(), min_size=1, max_size=6),
    st.sampled_from(["p1", "p2"]),
    st.sampled_from([0, 1, 59 * 60, 3 * 3600, 5 * 86_400, 40 * 86_400]),  # seconds to the next arrival
    st.booleans(),  # flush after it
)


def sums_of(events: Iterable[Usage]) -> RowSums:
    """What a row says, the slow way."""
    found = list(events)
    return RowSums(
        len(found),
        sum(event.error for event in found),
        sum(event.input_tokens for event in found),
        sum(event.output_tokens for event in found),
        sum(event.cached_tokens for event in found),
        sum(event.cost for event in found),
        sum(event.unpriced for event in found),
        min(event.at for event in found),
        max(event.at for event in found),
    )


def added_up(rows: Iterable[RowSums]) -> RowSums:
    return reduce(RowSums.merge, rows)


def listed(view: View, project: str, **params: str) -> Listing:
    """All users of a project, without a thread."""
    query = parse_users(project, {"limit": "1000", **params})
    return view.filtered(query, view.dims(project)) if query.is_filtered else view.all_time(query)


@given(partitions=st.integers(1, 3), sent=st.lists(requests, max_size=12), again=st.booleans())
def test_view_equals_a_recomputation_from_the_events(
    partitions: int, sent: list[tuple[list[Usage], str, int, bool]], again: bool
) -> None:
    worker, view = Worker(partitions), View()
    unique: dict[tuple[str, int], Usage] = {}
    arrivals: Counter[tuple[str, Kind, int]] = Counter()
    copies: Counter[tuple[str, Kind, int]] = Counter()
    now = NOON
    for events, project, pause, flush in sent:
        now += pause * 1_000_000
        for event in events:
            first = unique.setdefault((project, event.id), event) is event
            for kind in KINDS:
                (arrivals if first else copies)[project, kind, window_start(kind, now)] += 1
        worker.send(events, arrival=now, project=project, organization=project, key=f"key-{project}")
        if flush:
            for partition, records in enumerate(worker.work_all()):
                view.apply(partition, records)
    for partition, records in enumerate(worker.work_all()):
        view.apply(partition, records)
        if again:  # the whole changelog once more leads to the same state
            view.apply(partition, worker.changelog[partition])

    for project in ("p1", "p2"):
        mine = [event for (owner, _), event in unique.items() if owner == project and not event.span]
        users, totals, size, _ = listed(view, project)
        expected = {user: sums_of(e for e in mine if e.user == user) for user in {event.user for event in mine}}
        assert dict(users) == expected
        assert {user: added_up(sums for _, sums in view.user(project, user)) for user, _ in users} == expected
        assert totals == (sums_of(mine).totals() if mine else Totals())
        assert size == len(users)
        assert listed(view, project, end="9999-12-31") == Listing(users, totals, size, False)

        rows = [row for user in expected for row in view.user(project, user)]
        dims = {
            (dim.at, dim.provider, dim.model, dim.environment): added_up(more for of, more in rows if of is dim)
            for dim in view.dims(project)
        }
        assert dims == {
            key: sums_of(e for e in mine if (e.at // DAY, e.provider, e.model, e.environment) == key)
            for key in {(e.at // DAY, e.provider, e.model, e.environment) for e in mine}
        }
        hours = {tuple(found)[:4]: found.sums for found in view.hours(project)}
        assert hours == {
            key: sums_of(e for e in mine if (e.at // HOUR, e.provider, e.model, e.environment) == key)
            for key in {(e.at // HOUR, e.provider, e.model, e.environment) for e in mine}
        }
        names = view.dim_values(project)
        assert names.days == {event.at // DAY for event in mine}
        assert names.models == {event.model for event in mine}
        assert names.environments == {event.environment for event in mine}
        of_project = [decode_key(key) for key in {key for changelog in worker.changelog for key, _ in changelog}]
        of_project = [each for each in of_project if each[2][:1] == (project,)]
        summed = sum(what in ("user", "hour", "latency") for _, what, _ in of_project)
        assert view.rows_of_all_kinds(project) == summed
        there = sorted({parts[1:] for _, what, parts in of_project if what == "user"}, key=repr)
        missing = [(user, day + 1000, *rest) for user, day, *rest in there]
        shown = view.has_users_rows(project, cast("list[UserRow]", [*there, *missing]))
        assert shown == [True] * len(there) + [False] * len(missing)
        for event in mine:
            at_hour = event.at // HOUR, event.provider, event.model, event.environment
            assert view.has_hour(project, at_hour)
            assert not view.has_hour(project, (at_hour[0] + 10_000, *at_hour[1:]))
        for wanted in (Range(None, None), Range(NOON // HOUR, None)):
            measured: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
            for event in mine:
                if event.latency and event.at // HOUR in wanted:
                    measured[event.provider, event.model][event.latency] += 1
            assert view.latencies(project, wanted) == measured
        for kind, start in {key[1:] for key in (*arrivals, *copies) if key[0] == project}:
            for scope, owner in (("org", project), ("key", f"key-{project}")):
                window = view.window("org" if scope == "org" else "key", owner, kind, start)
                assert window.unique == arrivals[project, kind, start]
                assert window.duplicates == copies[project, kind, start]
                if kind == "month" and scope == "org":
                    assert view.charged(owner, start) == window
    end = {partition: offset for partition, offset in worker.log_end().items() if offset >= 0}
    assert view.position == end
    assert view.contains(end)
    assert not view.contains({0: end.get(0, -1) + 1})


def test_rows_beside_users_may_be_deleted() -> None:
    view = View()
    hour = encode_key(0, "hour", "p", 1, "openai", "m", "e")
    month = encode_key(0, "window", "org", "o", "month", 0)
    minute = encode_key(0, "window", "org", "o", "minute", 60)
    view.apply(0, [(hour, b"[1,1,0,0,0,0,0,0,5,5]"), (month, b"[1,3,2,1]"), (minute, b"[1,3,2,1]")])
    assert view.charged("o", 0).unique == view.window("org", "o", "minute", 60).unique == 3
    view.apply(0, [(key, None) for key in (hour, month, minute)])
    assert view.charged("o", 0).unique == view.window("org", "o", "minute", 60).unique == 0
    assert view.hours("p") == []
    view.apply(0, [(minute, None)])
    assert len(view) == 0


GOOD = encode_value(Sums(b"", 1, 1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"nope", GOOD, "not a row key"),
        (b"[]", GOOD, "not a row key"),
        (b'[0,"user"]', GOOD, "not a row key"),
        (b'[0,"user","p","u"]', GOOD, "not a row of the changelog"),
        (b'[0,"user","p","u",1,"openai","m","e",2]', GOOD, "not a row of the changelog"),
        (b'[0,"moon"]', GOOD, "unknown kind of row"),
        (b'[1,"progress"]', b"[1,1]", "a row of partition 1 in partition 0"),
        (encode_key(0, "user", "p", "u", 1, "openai", "m", "e"), b"[1]", "not a row of the changelog"),
        (encode_key(0, "user", "p", "u", 1, "openai", "m", "e"), b"{", "not a row of the changelog"),
        (encode_key(0, "user", "p", "u", 1, "openai", "m", "e"), b"", "not a row of the changelog"),
        (encode_key(0, "user", "p", "u", 1, "openai", "m", "e"), GOOD[:-1], "not a row of the changelog"),
        (encode_key(0, "user", "p", "u", 1, "openai", "m", "e"), GOOD + GOOD, "not a row of the changelog"),
        (encode_key(0, "hour", "p", "u", 1, "openai", "m", "e"), GOOD, "not a row of the changelog"),
        (encode_key(0, "window", "org", "o", "month"), b"[1,1,1,1]", "not a row of the changelog"),
        (encode_key(0, "window", "org", "o", "month", 0), b"[1,1,1]", "not a row of the changelog"),
        (encode_key(0, "moon"), None, "unknown kind of row"),
    ],
)
def test_records_of_another_format_are_refused_and_change_nothing(
    key: bytes, value: bytes | None, message: str
) -> None:
    view = View()
    with pytest.raises(ValueError, match=message):
        view.apply(0, [(key, value)])
    assert len(view) == 0
    assert listed(view, "p") == Listing([], Totals(), 0, False)


@pytest.mark.slow
def test_the_live_count_of_a_month_only_grows_while_it_is_read() -> None:
    view = View()
    key = encode_key(0, "window", "org", "o", "month", 0)

    def follow() -> None:
        for unique in range(1, 2000):
            view.apply(0, [(key, b"[1,%d,0,0]" % unique)])

    follower = Thread(target=follow)
    seen = [0]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)  # by the usual 5 ms it would be ten seconds of looks at the same number
    try:
        follower.start()
        while follower.is_alive():
            seen.append(view.charged("o", 0).unique)
        follower.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == sorted(seen)
    assert seen[-1] < 2000


def test_progress_cannot_be_deleted() -> None:
    view = View()
    view.apply(0, [(b'[0,"progress"]', b"[1,1]")])
    with pytest.raises(ValueError, match="progress of partition 0"):
        view.apply(0, [(b'[0,"progress"]', None)])


@pytest.mark.parametrize("small", [0, 2000])
def test_a_reader_sees_totals_that_agree_with_the_users_while_rows_change(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.view.view.SMALL", small)
    monkeypatch.setattr("processor.view.view.CHUNK", 256)
    keys = [encode_key(0, "user", "p", f"u{user}", 1, "openai", "m", "e") for user in range(3 * 256)]

    def flush(requests: int) -> Records:
        return [(key, encode_value(Sums(key, requests, requests))) for key in keys]

    def follow() -> None:
        for requests in range(1, 20):
            view.apply(0, flush(requests))

    view = View()
    query = parse_users("p", {"limit": "1000"})
    follower = Thread(target=follow)
    follower.start()
    looks = 0
    while follower.is_alive():
        found = view.all_time(query)
        assert sum(sums.requests for _, sums in found.users) == found.totals.requests
        looks += 1
    follower.join()
    assert looks > 0
    assert view.all_time(query).totals.requests == 19 * len(keys)


def test_as_of_never_goes_back() -> None:
    view = View()
    view.mark_current(5)
    view.mark_current(3)
    assert view.as_of == 5


async def test_waiting_for_a_position() -> None:
    view = View()
    arrivals = Arrivals(view)
    heard: list[int] = []
    arrivals.listen(lambda: heard.append(1))
    assert await arrivals.wait_for({}, 0)
    assert not await arrivals.wait_for({0: 3}, 0.01)

    near = asyncio.create_task(arrivals.wait_for({0: 3}, PATIENCE))
    far = asyncio.create_task(arrivals.wait_for({0: 3, 1: 0}, PATIENCE))
    gone = asyncio.create_task(arrivals.wait_for({0: 3}, PATIENCE))
    await asyncio.sleep(0)
    gone.cancel()
    for offset in (2, 3):
        view.apply(0, [(b'[0,"progress"]', b"[%d,1]" % offset)])
        arrivals.notify()
        await asyncio.sleep(0.01)
        assert near.done() == (offset == 3)
    assert await near
    assert not far.done()
    view.apply(1, [(b'[1,"progress"]', b"[9,1]")])
    asyncio.get_running_loop().call_soon_threadsafe(arrivals.notify)
    assert await far
    assert heard == [1, 1, 1]
    with pytest.raises(asyncio.CancelledError):
        await gone


def test_what_an_answer_is_of_does_not_go_back_unless_the_clock_does() -> None:
    view = View()
    for at, shown in ((NOON, NOON), (NOON - 1, NOON), (NOON + 100 * DAY, NOON + 100 * DAY), (NOON + 1, NOON + 1)):
        view.mark_current(at)
        assert view.as_of == shown
