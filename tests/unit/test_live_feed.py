"""The feed on real tables: whatever breaks off and wherever it goes on, a subscriber's table ends as the view's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import Sums, encode_key, encode_value
from processor.view.view import SMALL, View
from processor.view.view_follower import Arrivals
from server.alerts.budgets import Reached
from server.errors import Refused
from server.live import frame_maker, resume_token
from server.live.feed import Feed
from server.live.frames import Frame, SharedFrames, Ticks
from server.live.subscription import Subscription
from server.tenancy.keys import Key, make_key, new_secret
from tests.support.examples import examples
from tests.support.patience import PATIENCE
from tests.support.tables import NOON, Records, Usage, Worker

IDENTITY = "fa4e"
KEY = make_key(new_secret(), at=0)

Table = dict[str | None, RowSums]


class WatchedFeed(Feed):
    """A feed that says whether its next tick is on its way."""

    def is_waiting(self) -> bool:
        return self._timer is not None


class Process:
    """One API process: a view, as far as it has read the changelog, and its feed."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.view = View()
        self.arrivals = Arrivals(self.view)
        self.feed = WatchedFeed(self.view, self.arrivals, IDENTITY)
        self._read = [0] * len(worker.log)

    def see(self, count: int | None = None) -> None:
        """Take in `count` records more of each partition; None: all there are."""
        for partition, changelog in enumerate(self.worker.changelog):
            start = self._read[partition]
            records: Records = changelog[start : None if count is None else start + count]
            self._read[partition] += len(records)
            self.view.apply(partition, records)
        self.arrivals.notify()

    def table(self, users: Sequence[str] = (), project: str = "default") -> Table:
        """What a subscriber has to have."""
        numbered = [
            number for number, name in self.view.next_people(project, None, 10**6) if not users or name in users
        ]
        return dict(self.view.people(project, numbered))


class Client:
    """A subscriber that keeps a table, and reads one frame for each permit."""

    def __init__(self, users: Sequence[str] = (), key: Key = KEY) -> None:
        self.users = users
        self.key = key
        self.table: Table = {}
        self.token: str | None = None
        self.frames: list[Frame | None] = []
        self.permits = asyncio.Semaphore(0)
        self.subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    async def connect(self, process: Process) -> None:
        await self.drop()
        self.subscription = await process.feed.open("secret", lambda: self.key, {}, self.users, self.token)
        self._task = asyncio.create_task(self._run(process, self.subscription))

    async def _run(self, process: Process, subscription: Subscription) -> None:
        async with contextlib.aclosing(process.feed.frames(subscription)) as frames:
            while True:
                await self.permits.acquire()
                frame = await anext(frames)
                assert not isinstance(frame, Reached)
                self.frames.append(frame)
                if frame is None:
                    continue
                assert len(frame.rows) <= frame_rows()
                if frame.snapshot:
                    self.table.clear()
                self.table.update(dict(frame.rows))
                self.token = frame.token

    async def drop(self) -> None:
        """Break off, wherever it is."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def has_read_all(self) -> bool:
        return self.subscription is not None and self.subscription.is_waiting


def frame_rows() -> int:
    rows: int = vars(frame_maker)["FRAME_ROWS"]
    return rows


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for but the condition
            await asyncio.sleep(0.001)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small frames and no waiting."""
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "feed.INTERVAL": 0.0,
        "feed.BEHIND": 0.0,
        "frame_maker.FRAME_ROWS": 2,
        "frame_maker.BLOCK": 4,
    }.items():
        monkeypatch.setattr(f"server.live.{name}", value)


@asynccontextmanager
async def following(process: Process, **options: Any) -> AsyncIterator[Client]:
    client = Client(**options)
    client.permits = asyncio.Semaphore(10**6)
    await client.connect(process)
    try:
        yield client
    finally:
        await client.drop()


async def settled(process: Process, client: Client) -> None:
    """Wait until the client has all there is."""
    await asyncio.sleep(0.01)
    await until(lambda: client.has_read_all and not process.feed.is_waiting())
    await until(lambda: client.has_read_all)


# --- the whole of it -------------------------------------------------------------------------------------------------

USERS = [None, "u1", "u2", "u3", "u4", "u5", "ü6"]

usages = st.tuples(st.integers(0, 80), st.sampled_from(USERS), st.sampled_from(["m1", "m2"]), st.integers(0, 3)).map(
    lambda of: Usage(of[0], of[1], model=of[2], at=NOON - of[3] * 10**11, cost=of[0])
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(usages, min_size=1, max_size=5), st.sampled_from(["default", "other"])),
        st.tuples(st.just("see"), st.integers(0, 1), st.none() | st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(0, 2), st.integers(1, 3)),
        st.tuples(st.just("drop"), st.integers(0, 2), st.integers(0, 1)),
    ),
    max_size=40,
)


@examples(40)
@given(steps)
def test_a_table_ends_as_the_views_whatever_breaks_off(steps: list[tuple[Any, Any, Any]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        asyncio.run(_play(steps))


async def _play(steps: list[tuple[Any, Any, Any]]) -> None:
    worker = Worker(2)
    processes = [Process(worker), Process(worker)]
    clients = [Client(), Client(), Client(users=("u1", "u5", "never"))]
    for client in clients:
        await client.connect(processes[0])
    for kind, one, other in steps:
        if kind == "send":
            worker.send(one, project=other)
            worker.work_all()
        elif kind == "see":
            processes[one].see(other)
        elif kind == "read":
            for _ in range(other):
                clients[one].permits.release()
        else:
            await clients[one].connect(processes[other])
        for _ in range(8):
            await asyncio.sleep(0)
    for process in processes:
        process.see()
    for client in clients:
        for _ in range(10_000):
            client.permits.release()
    for client in clients:
        await until(partial(_agree, client, processes[0]))
        assert client.table == processes[0].table(client.users)
        await client.drop()
    assert [process.feed.subscribers for process in processes] == [0, 0]


def _agree(client: Client, process: Process) -> bool:
    return client.has_read_all and client.table == process.table(client.users)


# --- snapshots -------------------------------------------------------------------------------------------------------


async def test_a_project_without_events_has_an_empty_snapshot_and_then_its_first_user() -> None:
    process = Process(Worker())
    async with following(process) as client:
        await until(lambda: client.frames)
        (frame,) = client.frames
        assert frame is not None
        assert (frame.snapshot, frame.rows, frame.as_of) == (True, [], 0)
        process.worker.send([Usage(1, "u1", cost=7)])
        process.worker.work_all()
        process.see()
        await until(lambda: len(client.frames) == 2)
        frame = client.frames[1]
        assert frame is not None
        assert not frame.snapshot
        assert frame.rows == [("u1", RowSums(1, 0, 512, 128, 0, 7, 0, NOON, NOON))]


async def test_a_large_snapshot_goes_on_as_updates_and_is_resumed_inside(small: None) -> None:
    worker = Worker(2)
    process, other = Process(worker), Process(worker)
    worker.send([Usage(n, user) for n, user in enumerate([None, *(f"u{n}" for n in range(10))])])
    worker.work_all()
    process.see()
    client = Client()
    await client.connect(process)
    for _ in range(3):
        client.permits.release()
    await until(lambda: len(client.frames) == 3)
    kinds = [(frame.snapshot, [row.user_id for row in frame.rows]) for frame in client.frames if frame]
    assert kinds == [(True, [None, "u0"]), (False, ["u1", "u2"]), (False, ["u3", "u4"])]
    await client.drop()

    worker.send([Usage(50, "u2"), Usage(51, "u44")])  # one before and one behind the place where it broke off
    worker.work_all()
    client.permits = asyncio.Semaphore(100)
    await client.connect(other)  # which has not seen anything yet
    await asyncio.sleep(0.02)
    assert len(client.frames) == 3, "a view that is behind waits"
    other.see()
    await until(lambda: client.table == other.table())
    later = [(frame.snapshot, [row.user_id for row in frame.rows]) for frame in client.frames[3:] if frame]
    assert later[:4] == [(False, ["u44", "u5"]), (False, ["u6", "u7"]), (False, ["u8", "u9"]), (False, later[3][1])]
    assert set(later[3][1]) == {"u2", "u44"}
    await client.drop()


async def test_many_users_are_looked_up_in_a_thread() -> None:
    process = Process(Worker())
    count = SMALL + 500

    def flush(offset: int, users: range) -> None:
        keys = {encode_key(0, "user", "default", f"u{n:05d}", 1, "openai", "m", "e"): n for n in users}
        rows: Records = [(key, encode_value(Sums(key, offset, offset + 1, cost=n))) for key, n in keys.items()]
        process.view.apply(0, [*rows, (b'[0,"progress"]', b"[%d,1]" % offset)])
        process.arrivals.notify()

    flush(0, range(count))
    async with following(process) as client:
        await until(lambda: len(client.table) == count)
        assert [frame.snapshot for frame in client.frames if frame] == [True, False, False]
        flush(1, range(10, count))
        await until(lambda: client.table == process.table())
        token = client.token
        await client.drop()
        flush(2, range(100, count))
        client.frames.clear()
        await client.connect(process)
        await until(lambda: client.table == process.table())
        assert sum(len(frame.rows) for frame in client.frames if frame) == count - 100, "only who changed since"
        assert token is not None
        assert resume_token.decode(token).position == {0: 1}


# --- updates ---------------------------------------------------------------------------------------------------------


def feed_in(process: Process, *events: Usage, project: str = "default") -> None:
    process.worker.send(events, project=project)
    process.worker.work_all()
    process.see()


async def test_nothing_is_sent_twice_and_nothing_of_others(small: None) -> None:
    process = Process(Worker(2))
    feed_in(process, Usage(1, "a"), Usage(2, "b"))
    async with following(process) as client, following(process, users=["b", "z"]) as filtered:
        await until(lambda: client.has_read_all and filtered.has_read_all)
        client.frames.clear()
        filtered.frames.clear()
        feed_in(process, Usage(3, "theirs"), project="other")
        await settled(process, client)
        feed_in(process, Usage(1, "a"))  # a duplicate changes nothing
        await settled(process, client)
        assert client.frames == []
        feed_in(process, Usage(4, "a"))
        await until(lambda: client.table == process.table())
        await settled(process, client)
        assert [[row.user_id for row in frame.rows] for frame in client.frames if frame] == [["a"]]
        assert filtered.frames == []
        feed_in(process, Usage(5, "z"), Usage(6, "a"))
        await until(lambda: filtered.table == process.table(["b", "z"]))
        assert [[row.user_id for row in frame.rows] for frame in filtered.frames if frame] == [["z"]]
        await until(lambda: client.table == process.table())
        await settled(process, client)
        token = client.token
        await client.drop()
        client.frames.clear()
        client.permits = asyncio.Semaphore(100)
        await client.connect(process)
        await settled(process, client)
        assert client.frames == []
        assert client.token == token


async def test_rows_of_a_flush_that_is_not_whole_yet_are_not_claimed(small: None) -> None:
    worker = Worker()
    process = Process(worker)
    feed_in(process, Usage(1, "a"))
    async with following(process) as client:
        await settled(process, client)
        before = client.token
        worker.send([Usage(2, "a"), Usage(3, "b"), Usage(4, "c")])
        worker.work_all()
        client.frames.clear()
        for _ in range(3):
            process.see(1)
            await asyncio.sleep(0.01)
            assert client.frames == []
            assert client.token == before
        process.see()
        await until(lambda: client.table == process.table())
        assert client.token is not None
        assert resume_token.decode(client.token).position == process.view.held()


async def test_who_loses_a_part_of_an_update_gets_it_again(small: None) -> None:
    process = Process(Worker(2))
    feed_in(process, *(Usage(n, f"u{n}") for n in range(2)))
    client = Client()
    await client.connect(process)
    client.permits.release()
    await until(lambda: client.frames)
    feed_in(process, *(Usage(10 + n, f"u{n}") for n in range(7)))
    client.permits.release()
    client.permits.release()
    await until(lambda: len(client.frames) == 3)
    assert len(client.table) < 7
    client.permits = asyncio.Semaphore(100)
    await client.connect(process)
    await until(lambda: client.table == process.table())
    await client.drop()


async def test_a_token_ahead_of_the_last_tick_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(Worker(2))
    feed_in(process, Usage(1, "a"))
    async with following(process) as other:
        await until(lambda: other.has_read_all)
        monkeypatch.setattr("server.live.feed.INTERVAL", 1000.0)
        feed_in(process, Usage(2, "a"))
        await until(lambda: other.table == process.table())
        feed_in(process, Usage(3, "a"), Usage(4, "b"))  # there will be no tick for that
        assert other.subscription is not None
        token = resume_token.encode(IDENTITY, other.subscription.binding, process.view.held())
        ahead = Client()
        ahead.token = token
        ahead.permits.release()
        await ahead.connect(process)
        await until(lambda: ahead.has_read_all)
        assert ahead.frames == []
        assert ahead.subscription is not None
        assert ahead.subscription.mark.position == process.view.held()
        await until(lambda: other.table == process.table())
        await ahead.drop()


async def test_a_slow_reader_gets_merged_rows_not_a_queue(small: None) -> None:
    process = Process(Worker())
    feed_in(process, Usage(1, "a"))
    slow = Client()
    await slow.connect(process)
    slow.permits.release()
    async with following(process) as quick:
        await until(lambda: slow.frames and quick.frames)
        for n in range(2, 90):
            feed_in(process, Usage(n, "a"))
            await until(lambda: quick.table == process.table())
        assert len(slow.frames) == 1
        for _ in range(10):
            slow.permits.release()
        await until(lambda: slow.table == process.table())
        await settled(process, slow)
        assert len(slow.frames) == 2, "one row for 88 changes, although more ticks have passed than are remembered"
    await slow.drop()


async def test_subscribers_at_the_same_tick_share_their_frames() -> None:
    process = Process(Worker())
    feed_in(process, Usage(1, "a"), Usage(2, "b"))
    async with following(process) as one, following(process) as two, following(process, users=["a"]) as other:
        await until(lambda: one.has_read_all and two.has_read_all and other.has_read_all)
        feed_in(process, Usage(3, "a"))
        await until(lambda: all(client.table["a"].requests == 2 for client in (one, two, other)))
        assert one.frames == two.frames
        assert all(mine is theirs for mine, theirs in zip(one.frames, two.frames, strict=True))
        assert other.frames[-1] is not one.frames[-1]


async def test_updates_come_at_most_every_quarter_of_a_second() -> None:
    process = Process(Worker())
    feed_in(process, Usage(0, "a"))
    loop = asyncio.get_running_loop()
    async with following(process) as client:
        await until(lambda: client.has_read_all)
        began = loop.time()
        n, before = 0, len(client.frames)
        while loop.time() - began < 1.1 or len(client.frames) == before:
            n += 1
            feed_in(process, Usage(n, "a"))
            await asyncio.sleep(0.01)
        assert len(client.frames) - before <= 1 + (loop.time() - began) // 0.25
        await until(lambda: client.table == process.table())


async def test_a_user_whose_rows_are_gone_is_told_of() -> None:
    process = Process(Worker())
    feed_in(process, Usage(1, "a"))
    (key,) = [key for key, value in process.worker.changelog[0] if b'"user"' in key]
    async with following(process) as client:
        await until(lambda: client.has_read_all)
        process.view.apply(0, [(key, None), (b'[0,"progress"]', b"[7,1]")])
        process.arrivals.notify()
        await until(lambda: len(client.frames) == 2)
        assert client.table == {"a": RowSums()}


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "users", "key"),
    [
        ("beef", (), KEY),
        (IDENTITY, ("a",), KEY),
        (IDENTITY, (), make_key(new_secret(), at=0, project="other")),
    ],
)
async def test_a_token_of_something_else_begins_anew(identity: str, users: tuple[str, ...], key: Key) -> None:
    process = Process(Worker())
    feed_in(process, Usage(1, "a"))
    async with following(process) as client:
        await until(lambda: client.frames)
        token = client.token
    assert token is not None
    binding, position = resume_token.decode(token).binding, resume_token.decode(token).position
    again = Client(users, key)
    again.token = resume_token.encode(identity, binding, {**position, 0: 10**6})
    again.permits.release()
    await again.connect(process)
    await until(lambda: again.frames)
    assert again.frames[0] is not None
    assert again.frames[0].snapshot
    assert again.table == process.table(project=key.project)
    await again.drop()


@pytest.mark.parametrize(
    ("params", "users", "token", "reason", "message"),
    [
        ({}, [], "nonsense", "bad_request", "Last-Event-ID is not one that this server gave out"),
        (
            {"model": "m"},
            [],
            None,
            "bad_request",
            "unknown parameter 'model'; known are user_id, lastEventId",
        ),
        ({"projectId": "other"}, [], None, "forbidden", "projectId is not the project of this API key"),
        ({}, [""], None, "bad_request", "user_id must be given at most 100 times"),
        ({}, ["a"] * 101, None, "bad_request", "user_id must be given at most 100 times"),
    ],
)
async def test_what_cannot_be_subscribed_to(
    params: dict[str, str], users: list[str], token: str | None, reason: str, message: str
) -> None:
    with pytest.raises(Refused, match=message) as caught:
        await Process(Worker()).feed.open("secret", lambda: KEY, params, users, token)
    assert caught.value.reason == reason


async def test_a_subscription_can_wait_for_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.live.feed.PATIENCE", 0.01)
    process = Process(Worker())
    with pytest.raises(Refused) as caught:
        await process.feed.open("secret", lambda: KEY, {}, (), None, f"{IDENTITY}_0-0")
    assert caught.value.reason == "not_yet_visible"
    feed_in(process, Usage(1, "a"))
    await process.feed.open("secret", lambda: KEY, {}, (), None, f"{IDENTITY}_0-0")


# --- ends ------------------------------------------------------------------------------------------------------------


class Lock:
    """A key that can be taken away."""

    refused: Refused | None = None
    asked = 0

    def check(self) -> Key:
        self.asked += 1
        if self.refused is not None:
            raise self.refused
        return KEY


async def test_the_end_of_a_key_ends_its_subscriptions_and_no_others() -> None:
    process, lock = Process(Worker()), Lock()

    async def listen() -> Refused:
        subscription = await process.feed.open("theirs", lock.check, {}, (), None)
        with pytest.raises(Refused) as caught:
            async for _ in process.feed.frames(subscription):
                pass
        return caught.value

    async with following(process) as other:
        listeners = [asyncio.create_task(listen()) for _ in range(20)]
        await until(lambda: process.feed.subscribers == 21 and other.has_read_all)
        asked = lock.asked
        await asyncio.sleep(1.0)
        assert lock.asked - asked <= 4, "one look for all subscribers with the same key"
        lock.refused = Refused("unauthenticated", "Invalid API key")
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*listeners) == [lock.refused] * 20
        assert process.feed.subscribers == 1
        assert other.has_read_all


async def test_a_check_that_fails_ends_its_own_subscriptions_only() -> None:
    """Whether the key is still valid is not known then; and the keys of all others are looked at as before."""
    process, lock = Process(Worker()), Lock()

    def broken() -> Key:
        if process.feed.subscribers:
            raise RuntimeError("of the test")
        return KEY

    theirs = process.feed.frames(await process.feed.open("theirs", broken, {}, (), None))
    assert await anext(theirs) is not None
    other = process.feed.frames(await process.feed.open("other", lock.check, {}, (), None))
    assert await anext(other) is not None
    with pytest.raises(Refused) as caught:
        await anext(theirs)
    assert caught.value.reason == "internal"
    lock.refused = Refused("unauthenticated", "Invalid API key")
    with pytest.raises(Refused) as caught:
        await anext(other)
    assert caught.value is lock.refused


async def test_subscribers_that_wait_for_a_write_together_do_not_exceed_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.live.feed.MAX_SUBSCRIBERS", 2)
    process = Process(Worker())
    opened = [await process.feed.open("secret", lambda: KEY, {}, (), None) for _ in range(3)]
    *first, last = [process.feed.frames(subscription) for subscription in opened]
    for frames in first:
        assert await anext(frames) is not None
    with pytest.raises(Refused, match="no more subscribers"):
        await anext(last)
    for frames in first:
        await frames.aclose()
    assert process.feed.subscribers == 0


async def test_a_snapshot_that_fails_is_made_anew_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(Worker())
    subscriptions = [await process.feed.open("secret", lambda: KEY, {}, (), None) for _ in range(2)]
    find, failures = View.people, [RuntimeError("of the test")]

    def failing(view: View, *arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return find(view, *arguments)

    monkeypatch.setattr(View, "people", failing)
    process.worker.send([Usage(1)])
    process.worker.work_all()
    process.see()
    first, second = [process.feed.frames(subscription) for subscription in subscriptions]
    with pytest.raises(RuntimeError, match="of the test"):
        await anext(first)
    frame = await anext(second)
    assert isinstance(frame, Frame)
    assert len(frame.rows) == 1
    await second.aclose()


async def test_one_that_does_not_read_is_ended_too() -> None:
    process, lock = Process(Worker()), Lock()
    subscription = await process.feed.open("theirs", lock.check, {}, (), None)

    async def stuck() -> None:
        async with contextlib.aclosing(process.feed.frames(subscription)) as frames:
            async for _ in frames:
                await asyncio.Event().wait()  # a client that never reads

    task = asyncio.create_task(stuck())
    await until(lambda: process.feed.subscribers == 1)
    lock.refused = Refused("unauthenticated", "Invalid API key")
    await until(task.done)
    assert task.cancelled()
    assert process.feed.subscribers == 0


async def test_one_whose_client_has_gone_ends_without_a_word() -> None:
    process = Process(Worker())
    gone = False
    subscription = await process.feed.open("secret", lambda: KEY, {}, (), None, None, lambda: gone)
    frames = process.feed.frames(subscription)
    assert await anext(frames) is not None
    end = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    gone = True
    with pytest.raises(StopAsyncIteration):
        await end
    assert process.feed.subscribers == 0


async def test_a_server_that_stops_says_so_and_takes_no_more() -> None:
    process = Process(Worker())
    late = await process.feed.open("secret", lambda: KEY, {}, (), None)
    subscription = await process.feed.open("secret", lambda: KEY, {}, (), None)
    frames = process.feed.frames(subscription)
    assert await anext(frames) is not None
    end = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    process.feed.close()
    for ended in (end, anext(process.feed.frames(late))):
        with pytest.raises(Refused) as caught:
            await ended
        assert caught.value.reason == "unavailable"
    with pytest.raises(Refused, match="takes no more subscribers"):
        await process.feed.open("secret", lambda: KEY, {}, (), None)


async def test_long_silences_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.live.feed.HEARTBEAT", 0.2)
    monkeypatch.setattr("server.live.feed.CHECK_EVERY", 0.05)
    process = Process(Worker())
    async with following(process) as client:
        await until(lambda: client.frames.count(None) == 2)
        token = client.token
        await client.drop()
        assert token is not None
        client.token = resume_token.encode(IDENTITY, resume_token.decode(token).binding, {0: 5})
        client.frames.clear()
        await client.connect(process)
        await until(lambda: client.frames == [None, None])


# --- the parts -------------------------------------------------------------------------------------------------------


def users(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def test_ticks_are_remembered_as_far_as_there_is_room() -> None:
    ticks = Ticks(5, history=4)
    assert ticks.since(4) is None
    assert ticks.since(5) == []
    ticks.add(6, users(1, 2))
    ticks.add(8, users(2, 3))
    assert ticks.since(5) == [1, 2, 3]
    assert ticks.since(6) == ticks.since(7) == [2, 3]
    assert ticks.since(8) == []
    ticks.add(9, users(9))
    assert ticks.since(5) is None
    assert ticks.since(6) == [2, 3, 9]
    ticks.forget(11)
    assert ticks.since(10) is None
    assert ticks.since(11) == []
    for tick in range(12, 12 + 65):
        ticks.add(tick, users())
    assert ticks.since(11) is None


async def test_frames_are_made_once_for_each_pair_of_ticks() -> None:
    shared = SharedFrames()
    made: list[asyncio.Future[list[Frame]]] = []

    def make() -> asyncio.Future[list[Frame]]:
        made.append(asyncio.get_running_loop().create_future())
        return made[-1]

    first = shared.get(1, 2, make)
    assert shared.get(1, 2, make) is first
    assert shared.get(0, 2, make) is not first
    assert shared.get(1, 3, make) is not first
    assert len(made) == 3
