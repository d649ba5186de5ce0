"""The role `query`: answers the questions of all API processes of this host, in a process with bounds of its own.

Nothing but questions depends on it: it may run out of memory, hang or crash, and its parent starts it again.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeVar

import msgspec

from processor import open_files
from processor.background import step_back
from processor.core.clock import SECOND
from processor.event_store import skips
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.first_build import BuildReport
from processor.event_store.manifest import Segment
from processor.event_store.scrub_round import Round, age, read_rounds
from processor.log.address import LogAddress
from processor.log.data_directory import make_data_directory
from processor.log.errors import Locked
from processor.log.file_lock import FileLock
from processor.settings import Settings
from processor.structured_log import get_logger
from processor.wall_clock import now
from server.errors import Refused
from server.explore import dispatch, wire
from server.explore.completeness import Completeness
from server.explore.engine import Engine, SegmentGone, Stopped, unreadable
from server.explore.event_export import Export, open_export
from server.explore.lanes import Lane, Places, busy
from server.explore.query_bounds import QueryBounds, QueryGuard
from server.explore.questions import BY_ID, ExportQuestion, NewEventsQuestion, Question, StatusQuestion
from server.explore.segment_files import SegmentFiles, SegmentIds
from server.explore.snapshot import Snapshot, building_json
from server.explore.store_follower import StoreFollower, StoreState

LOCK: Final = "query.lock"
"""The file of the data directory that the query process locks while it runs: there is one a data directory."""
SPILL: Final = "query-spill"
"""The folder of the data directory for what does not fit into memory. Emptied at the start."""

NICENESS: Final = 10
"""Ingest and the tables go first."""

COLLECT_AFTER: Final = (20_000, 20, 50)
"""For `gc.set_threshold`. With Python's default (700, 10, 10) collections took 0.3 of the 1.1 s of a trace of 50,000
spans: its objects live until it is answered."""
SWITCH: Final = 0.0005
"""Seconds after which a question that computes in Python lets another one go on. A short question takes the interpreter
dozens of times, and waits so long each time that a long one has it."""

BY_ID_SLOTS: Final = 3
BY_ID_RUNNING: Final = 2
"""Of them, of one project."""
LIVE_SLOTS: Final = 1
HEAVY_SLOTS: Final = 3
"""Questions that run at once, of different projects: a long one of one project does not keep the others waiting."""
WAITING: Final = 8
"""Questions of a project that may wait in the heavy lane."""
WAITING_BY_ID: Final = 64
LARGE: Final = 128 << 10
"""Bytes of an answer whose question keeps its place while the client reads it, for `PROMPT` at most: of smaller ones
`MAX_CONNECTIONS` fit into memory."""
PROMPT: Final = 2.0
"""Seconds after which what a client has not read of a large answer is set aside on the disk, for the next question."""
MOST_SET_ASIDE: Final = 512 << 20
"""Bytes of all answers there, of a project no more than are free. Questions of more keep their places until their
clients have read."""
EXPORTS: Final = 2
"""Exports at once; of a project one."""
EXPORT_SHARE: Final = 600.0
"""Seconds for which an export has its place where another project waits for one: with slow clients two of them would
keep all others out for ever."""
EXPORT_PATIENCE: Final = 10.0
"""Seconds that an export waits for a place."""

PATIENCE: Final = 5.0
"""Seconds that a question waits until the store contains the position of `after`."""
START_PATIENCE: Final = 5.0
"""Seconds that a question waits for a process that has just been started and reads the manifests."""
START_OF_STORE: Final = 20.0
"""Seconds after the start of this process in which a store that starts beside it may not have made its directory."""
STALLED: Final = 120.0
"""Seconds after which an answer ends whose client reads nothing."""
MAX_CONNECTIONS: Final = 1024
RETRIES: Final = 3
"""Snapshots that are tried, where compaction deletes files between the snapshot and the reading."""
STOP_PATIENCE: Final = 8.0
"""Seconds that this process has to end, as a worker has: without a supervisor it would wait for ever for a question
that hangs."""
SCRUB_EVERY: Final = 5.0
"""Seconds between two looks how far the check of the store's files is."""

T = TypeVar("T")


class Followed(Protocol):
    """What is known of the store and the log: see `StoreFollower`."""

    @property
    def state(self) -> StoreState: ...
    @property
    def completeness(self) -> Completeness: ...
    @property
    def read_all(self) -> threading.Event: ...
    @property
    def behind(self) -> Mapping[int, int]: ...
    @property
    def building(self) -> BuildReport | None: ...


class QueryServer:
    """Answers questions on connections. All methods belong to one event loop."""

    def __init__(
        self,
        directory: Path,
        engine: Engine,
        follower: Followed,
        clock: Callable[[], int],
        open_index: Callable[[Path, Segment], SegmentIds] = dispatch.open_index,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._follower = follower
        self._clock = clock
        self._began = time.monotonic()
        self._files = SegmentFiles(directory, open_index)
        self._heavy = Lane(HEAVY_SLOTS, 1, WAITING)
        self._by_id = Lane(BY_ID_SLOTS, BY_ID_RUNNING, WAITING_BY_ID)
        self._live = Lane(LIVE_SLOTS, 1, WAITING_BY_ID)
        self._exports = Places(EXPORTS, EXPORT_SHARE, EXPORT_PATIENCE)
        slots = HEAVY_SLOTS + BY_ID_SLOTS + LIVE_SLOTS + EXPORTS
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="question")
        self._changed = asyncio.Event()
        self._connections = 0
        self._rounds: list[Round] = []
        self._skips = 0
        self._looked_at_rounds = float("-inf")
        self.running: set[Engine] = set()
        """Engines of the questions that run now."""
        self.set_aside: Counter[str] = Counter()
        """Project -> bytes of answers on the disk, whose clients read slowly."""

    # --- what the store has ------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Look at the follower's state again."""
        self._files.forget_all_but(self._follower.state.segments)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Wait until the store's state meets a condition; return whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not condition():
                    await self._changed.wait()
        return condition()

    async def _be_ready(self, question: Question) -> None:
        """Wait for what the answer has to contain. Raises `Refused`."""
        if not await self._until(self._follower.read_all.is_set, START_PATIENCE):
            raise Refused("unavailable", "The query process reads what is in the event store; ask again", retry_after=2)
        if not self._directory.is_dir():
            raise self._without_directory()

        def contains() -> bool:
            reached = self._follower.state.reached
            return all(reached.get(partition, 0) > offset for partition, offset in question.after.items())

        if not await self._until(contains, PATIENCE):
            raise Refused("not_yet_visible", "The event store does not contain that position yet", retry_after=1)

    def _without_directory(self) -> Refused:
        """Return why there is no directory: nothing was ever stored and the store may be starting, or it is missing."""
        has_files = any(each.has_files for each in self._follower.state.segments)
        if not has_files and time.monotonic() - self._began < START_OF_STORE:
            return Refused("unavailable", "The event store is being started; ask again", retry_after=1)
        return Refused(
            "event_store_missing",
            "This server does not see the event store's directory (SPENDSTREAM_STORE_DIR); the store makes it",
            retry_after=5,
        )

    def _snapshot(self, engine: Engine) -> Snapshot:
        state = self._follower.state
        at, as_of = self._clock(), self._follower.completeness.as_of(state.reached, state.arrivals)
        lag, building = max(at - as_of, 0), self._follower.building
        return Snapshot(
            engine, self._files, state.segments, state.reached, as_of=min(as_of, at), lag=lag, building=building
        )

    def _status(self) -> bytes:
        """Return the JSON of `StoreStatus`, which waits for nothing. Raises `Refused` as long as nothing is known."""
        followed = self._follower
        if not followed.read_all.is_set():
            raise Refused("unavailable", "The query process reads what is in the event store; ask again", retry_after=2)
        at, state = self._clock(), followed.state
        lag = max(at - followed.completeness.as_of(state.reached, state.arrivals), 0) / SECOND
        building = None if followed.building is None else building_json(followed.building)
        found = {
            "lagSeconds": lag,
            "lagMessages": followed.behind,
            "building": building,
            "scrubbed": self._scrubbed(at),
            "skips": self._skips,
        }
        return msgspec.json.encode(found)

    def _scrubbed(self, at: int) -> dict[str, Any]:
        """Return what the store's check of its files has written down, as of `SCRUB_EVERY` seconds ago at most. What
        else the store has written down is read along with it."""
        if time.monotonic() - self._looked_at_rounds > SCRUB_EVERY:
            self._looked_at_rounds = time.monotonic()
            with contextlib.suppress(OSError):  # what is known stays
                storage = DirectoryStorage(self._directory)
                self._rounds, self._skips = read_rounds(storage), skips.counted(storage)
        return {"damaged": sum(each.damaged for each in self._rounds), "ageSeconds": age(self._rounds, at)}

    # --- connections -------------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the question of one connection."""
        self._connections += 1
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or never asked
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(PATIENCE):
            question = await wire.read_question(reader)
        answering = asyncio.ensure_future(self._answer(question, writer))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            while not answering.done() and not gone.done():
                await asyncio.wait({answering, gone}, timeout=wire.HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    writer.write(wire.pack(wire.Alive()))
        finally:
            gone.cancel()
            answering.cancel()
            await asyncio.wait({answering})
        if not answering.cancelled():
            answering.result()

    async def _answer(self, question: Question, writer: asyncio.StreamWriter) -> None:
        try:
            if self._connections > MAX_CONNECTIONS:
                raise busy("The server answers as many questions as it can; ask again")
            if isinstance(question, StatusQuestion):
                writer.write(wire.pack(wire.AnswerHead()))
                await _send(writer, _pieces(memoryview(self._status())))
                writer.write(wire.pack(wire.End()))
                return
            await self._be_ready(question)
            if isinstance(question, ExportQuestion):
                await self._export(question, writer)
            else:
                await self._ask(question, writer)
        except Stopped:
            return
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - a fault of one answer must not end the others
            writer.write(wire.pack(wire.Refusal.of(_refused(error, question))))
        async with asyncio.timeout(STALLED):
            await writer.drain()

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _ask(self, question: Question, writer: asyncio.StreamWriter) -> None:
        async with self._lane(question).turn(question.project):
            async with self._forked(self._engine.timeout) as engine:
                engine.start()
                answer = await self._work(engine, lambda: self._in_time(engine, question))
            writer.write(wire.pack(wire.AnswerHead()))
            pieces = _pieces(memoryview(answer))
            if len(answer) > LARGE:  # of these there are no more in memory than questions run
                sent = await _send_for(writer, pieces, PROMPT)
                aside = await self._put_aside(question.project, memoryview(answer)[sent:])
                if aside is None:
                    await _send(writer, pieces)
                pieces, answer = iter(()), b""
            else:
                aside = None
        await (_send(writer, pieces) if aside is None else self._send_aside(writer, question.project, aside))
        writer.write(wire.pack(wire.End()))

    async def _put_aside(self, project: str, rest: memoryview) -> IO[bytes] | None:
        """Put the rest of an answer into a file without a name; None: there is none, or no room for it."""
        held, size = self.set_aside, len(rest)
        if not size or held[project] + size > MOST_SET_ASIDE - held.total():
            return None
        held[project] += size
        try:
            return await asyncio.to_thread(_written, self._engine.spill, rest)
        except BaseException as error:
            self._end_aside(project, size)
            if isinstance(error, OSError):
                return None
            raise

    def _end_aside(self, project: str, size: int) -> None:
        self.set_aside[project] -= size
        if not self.set_aside[project]:
            del self.set_aside[project]

    async def _send_aside(self, writer: asyncio.StreamWriter, project: str, aside: IO[bytes]) -> None:
        size = os.fstat(aside.fileno()).st_size
        try:
            while piece := await asyncio.to_thread(aside.read, wire.CHUNK):
                await _send(writer, iter([piece]))
        finally:
            self._end_aside(project, size)
            aside.close()

    def _lane(self, question: Question) -> Lane:
        if isinstance(question, NewEventsQuestion):
            return self._live
        return self._by_id if isinstance(question, BY_ID) or dispatch.names_one(question) else self._heavy

    def _in_time(self, engine: Engine, question: Question) -> bytes:
        """Answer, in a thread of the pool."""
        for attempt in range(RETRIES):
            try:
                return dispatch.answer(engine, self._snapshot(engine), question)
            except SegmentGone:
                if attempt + 1 == RETRIES:
                    raise
                engine.release()
                time.sleep(wire.HEARTBEAT / 10)  # until the replacement's manifest has been read
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _forked(self, seconds: float | None) -> AsyncIterator[Engine]:
        engine = self._engine.fork(seconds)
        self.running.add(engine)
        try:
            yield engine
        finally:
            self.running.discard(engine)
            engine.close()

    async def _work(self, engine: Engine, work: Callable[[], T]) -> T:
        """Run in a thread. A cancelled task waits for the thread to stop: its place is not free before."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            engine.stop()
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise

    async def _export(self, question: ExportQuestion, writer: asyncio.StreamWriter) -> None:
        async with self._exports.turn(question.project), self._forked(None) as engine:
            export: Export = await self._work(engine, lambda: open_export(self._snapshot(engine), question))
            try:
                writer.write(wire.pack(wire.AnswerHead(export.rows)))
                pieces: Iterator[bytes] = iter(export.pieces)
                while piece := await self._work(engine, lambda: next(pieces, b"")):
                    for start in range(0, len(piece), wire.CHUNK):
                        writer.write(wire.pack(wire.Chunk(piece[start : start + wire.CHUNK])))
                        async with asyncio.timeout(STALLED):
                            await writer.drain()
                writer.write(wire.pack(wire.End()))
            finally:
                export.close()

    async def close(self) -> None:
        """End all questions."""
        for engine in self.running:
            engine.stop()
        await asyncio.to_thread(self._threads.shutdown)


def _refused(error: Exception, question: Question) -> Refused:
    """Return what the client is told of an error, and log what is a fault of ours."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, SegmentGone):
        get_logger().warning("query.segment_gone", file=str(error))
        return Refused("unavailable", "The event store was being reorganized; ask again", retry_after=1)
    get_logger().error("query.failed", question=type(question).__name__, exc_info=error)
    if isinstance(error, UnicodeDecodeError):  # pyarrow reads texts that are none, which only a damaged file has
        return unreadable()
    return Refused("internal", "The query process failed to answer; its log says more")


def _pieces(answer: memoryview) -> Iterator[bytes]:
    return (bytes(answer[start : start + wire.CHUNK]) for start in range(0, len(answer), wire.CHUNK))


async def _send(writer: asyncio.StreamWriter, pieces: Iterator[bytes]) -> None:
    """Send pieces of an answer, as fast as the client reads. Raises `TimeoutError` if it reads nothing."""
    for piece in pieces:
        writer.write(wire.pack(wire.Chunk(piece)))
        async with asyncio.timeout(STALLED):
            await writer.drain()


async def _send_for(writer: asyncio.StreamWriter, pieces: Iterator[bytes], seconds: float) -> int:
    """Send pieces for so many seconds; return how many bytes of them are on their way, the rest are still to come."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for piece in pieces:
                writer.write(wire.pack(wire.Chunk(piece)))
                sent += len(piece)
                await writer.drain()
    return sent


def _written(folder: Path, data: memoryview) -> IO[bytes]:
    """Return a file without a name that has these bytes, to be read from its start. Raises `OSError`."""
    made = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is returned
    try:
        made.write(data)
        made.seek(0)
    except BaseException:
        made.close()
        raise
    return made


# --- the role --------------------------------------------------------------------------------------------------------


async def run(settings: Settings, bounds: QueryBounds) -> None:
    """Answer questions until SIGTERM or SIGINT. Raises `LogError` and `OSError`.

    Where another query process serves the data directory, waits until that one has ended. The process ends within
    `STOP_PATIENCE` of the signal, whatever it waits for.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            late = threading.Timer(STOP_PATIENCE, _end_late)  # the event loop's end waits for its threads, too
            late.daemon = True
            late.start()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, end)
    step_back(NICENESS)
    sys.setswitchinterval(SWITCH)
    open_files.raise_limit()
    make_data_directory(settings.data_dir)
    async with AsyncExitStack() as stack:
        lock = FileLock(settings.data_dir / LOCK)
        stack.callback(lock.close)
        if not await _acquire(lock, stop):
            return
        spill = settings.data_dir / SPILL
        _empty(spill)
        engine = Engine(settings.segments_dir, spill, bounds.memory, bounds.threads, bounds.timeout)
        stack.callback(engine.close)
        address = LogAddress.of(settings)
        log = await asyncio.to_thread(address.open)
        partitions = log.partitions
        log.close()
        notifier = _Notifier(loop)
        follower = StoreFollower(address, partitions, now, notifier)
        server = QueryServer(settings.segments_dir, engine, follower, now)
        notifier.server = server
        follower.start()
        stack.push_async_callback(asyncio.to_thread, follower.stop)
        stack.push_async_callback(server.close)
        guard = asyncio.ensure_future(QueryGuard(bounds, server.running, spill).run())
        stack.callback(guard.cancel)
        listening = await asyncio.start_unix_server(server.serve, sock=wire.listen(settings.data_dir))
        stack.callback((settings.data_dir / wire.SOCKET).unlink, missing_ok=True)
        stack.callback(listening.close)
        gc.freeze()  # these objects stay: collections need not walk them again
        gc.set_threshold(*COLLECT_AFTER)
        get_logger().info("query.ready", memory=bounds.memory, threads=bounds.threads, timeout=bounds.timeout)
        print(json.dumps({"event": "ready", "role": "query"}), flush=True)  # noqa: T201 - the ready line
        await stop.wait()


def _end_late() -> None:
    get_logger().warning("query.killed", after=STOP_PATIENCE)
    os._exit(0)


class _Notifier:
    """Passes on, into the event loop, that the store has changed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.server: QueryServer | None = None

    def __call__(self) -> None:
        if self.server is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended before the follower
                self._loop.call_soon_threadsafe(self.server.notify)


async def _acquire(lock: FileLock, stop: asyncio.Event) -> bool:
    """Wait until this is the data directory's only query process; False: it has been told to stop."""
    said = False
    while not stop.is_set():
        try:
            lock.acquire("another query process serves the data directory")
        except Locked as error:
            if not said:
                get_logger().info("query.waits", why=str(error))
                said = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        else:
            return True
    return False


def _empty(folder: Path) -> None:
    """Delete what an earlier process has left in its spill folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for each in os.scandir(folder):
        if each.is_file(follow_symlinks=False):
            Path(each.path).unlink(missing_ok=True)
