"""DuckDB, and the only module that knows it: runs SELECT statements with bounds on memory, threads, disk and time.

External access is off but for the segments' and the spill directory, no extension is installed or loaded, and the
configuration is locked. Values reach a statement as parameters only, never as text.
"""

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb

from processor.structured_log import get_logger
from server.errors import Refused

MIB: Final = 1 << 20

RESERVED: Final = 320 * MIB
"""Bytes of the process's memory that are not DuckDB's: programs (130 MiB), the interpreter, footers, row groups
that are being read, the answer."""
LEAST: Final = 0.4
"""DuckDB's share of the memory at least."""

MAX_SPILL: Final = 4 << 30
"""Bytes that all questions may have on disk at a time."""

FETCH: Final = 2048
"""Rows of a batch."""

ADVICE: Final = (
    "ask for a shorter time (start, end), add a filter, group by a field with fewer values, or ask for one trace, "
    "session or user"
)

AGAIN: Final = "ask again, which goes on behind what was added up so far"
"""The same for a question that keeps what it has read."""

Row = tuple[Any, ...]

_numbers: Final = itertools.count()
"""For the names of tables: only the connection that has registered one sees it, and no other has one of its name."""


class Stopped(Exception):
    """The client has gone: nobody waits for the answer."""


class SegmentGone(Exception):
    """A file is missing that the snapshot names: compaction or retention has deleted it meanwhile."""


class Engine:
    """Answers one question at a time, on a connection of its own; `fork` makes another one of the same database.

    `rows` and `batches` may be called from one thread at a time; `stop` from any.
    """

    def __init__(
        self, directory: Path, spill: Path, memory: int = 1 << 30, threads: int = 1, timeout: float | None = 10.0
    ) -> None:
        """Open the database. `memory` is the process's bound in bytes, `timeout` that of a question in seconds.

        Makes the spill directory. Raises `OSError`.
        """
        self.directory = directory
        self.spill = spill
        spill.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = _open(directory, spill, memory, threads)
        self._begin(self._database.cursor(), timeout)

    def _begin(self, connection: duckdb.DuckDBPyConnection, timeout: float | None) -> None:
        self._connection = connection
        self.timeout = timeout
        self._refusal: Refused | None = None
        self._is_stopped = False
        self._deadline: float | None = None
        self._sources: list[str] = []
        self.goes_on = False
        """Whether the question goes on where it was when it is asked again."""

    def fork(self, timeout: float | None) -> "Engine":
        """Return an engine for another question, with a connection of its own; `close` it."""
        made = object.__new__(Engine)
        made.directory, made.spill = self.directory, self.spill
        made._database = self._database
        made._begin(self._database.cursor(), timeout)
        return made

    def close(self) -> None:
        """Close the connection."""
        self.release()
        self._connection.close()

    # --- bounds ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the question's time; without it each statement has that time for itself."""
        self._deadline = None if self.timeout is None else time.monotonic() + self.timeout

    def overdue(self) -> float:
        """Return for how many seconds the question has run beyond its time; negative: it has not, or has no bound."""
        return -1.0 if self._deadline is None else time.monotonic() - self._deadline

    def check(self) -> None:
        """Raise `Stopped` or `Refused` if the question has to end. Cheap; for work between two statements."""
        if self._refusal is not None:
            raise self._refusal
        if self._is_stopped:
            raise Stopped
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise self._too_long()

    def stop(self, refusal: Refused | None = None) -> None:
        """End the question from another thread: with `refusal`, or with `Stopped`."""
        if refusal is None:
            self._is_stopped = True
        elif self._refusal is None:
            self._refusal = refusal

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopped or self._refusal is not None

    def interrupt(self) -> None:
        """Interrupt the statement that runs now; one that begins in this moment may not notice."""
        self._connection.interrupt()

    def _too_long(self) -> Refused:
        advice = f"{AGAIN}, or {ADVICE}" if self.goes_on else ADVICE
        return Refused("query_too_heavy", f"The question took longer than {self.timeout:g} s; {advice}")

    # --- statements --------------------------------------------------------------------------------------------------

    def rows(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a SELECT whose `?` stand for `params`.

        Raises `Refused` (query_too_heavy, disk_full), `Stopped` and `SegmentGone`.
        """
        with self._running():
            found: list[Row] = self._connection.execute(sql, list(params)).fetchall()
            return found

    def batches(self, sql: str, params: Sequence[Any] = (), size: int = FETCH) -> Iterator[list[Row]]:
        """Yield the rows of a SELECT, `size` at a time. Read all before the next statement; raises as `rows`."""
        with self._running():
            result = self._connection.execute(sql, list(params))
            found: list[Row] = result.fetchmany(size)
        while found:
            yield found
            with self._running():
                found = result.fetchmany(size)

    def table(self, sql: str, params: Sequence[Any] = ()) -> Any:
        """Return all rows of a SELECT as a `pyarrow.Table`; raises as `rows`."""
        with self._running():
            return self._connection.sql(sql, params=list(params)).to_arrow_table()

    def register(self, table: Any) -> str:
        """Make a `pyarrow.Table` known to statements, until `release`; return its name there."""
        name = f"arrow_{next(_numbers)}"
        self._connection.register(name, table)
        self._sources.append(name)
        return name

    def release(self, name: str | None = None) -> None:
        """Forget a table, or all of them."""
        names = [*self._sources] if name is None else [name]
        for each in names:
            self._connection.unregister(each)
            self._sources.remove(each)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run a piece of a statement within the bounds."""
        self.check()
        deadline = self._deadline
        if deadline is None and self.timeout is not None:
            deadline = time.monotonic() + self.timeout
        number = _interrupter.add(self, deadline)
        try:
            yield
        except duckdb.Error as error:
            raise self._meaning(error) from error
        finally:
            _interrupter.remove(number)

    def _meaning(self, error: duckdb.Error) -> Exception:
        if isinstance(error, duckdb.InterruptException):
            if self._refusal is not None:
                return self._refusal
            return Stopped() if self._is_stopped else self._too_long()
        text = str(error)
        if isinstance(error, duckdb.OutOfMemoryException):
            return Refused("query_too_heavy", f"The question needs more memory than it may use; {ADVICE}")
        if isinstance(error, duckdb.IOException):
            if "No space left" in text:
                return Refused(
                    "disk_full", "The disk has no room for what the question has to set aside", retry_after=5
                )
            if "No such file" in text or "No files found" in text:
                return SegmentGone(text)
            if "Too many open files" in text:
                return too_many_files()
        if isinstance(error, duckdb.IOException) or _is_of_a_file(error):
            get_logger().error("query.unreadable", error=text)
            return unreadable()
        return error


def _is_of_a_file(error: duckdb.Error) -> bool:
    """Return whether DuckDB could not make sense of a file: what is in it, or what its library for Parquet says, which
    has no type of its own."""
    return type(error) is duckdb.Error or (isinstance(error, duckdb.InvalidInputException) and ".parquet" in str(error))


def unreadable(name: str = "") -> Refused:
    """Return the refusal of a question for which a file cannot be read; `name` is that of the file, if it is known."""
    named = f": {name}" if name else ""
    text = f"A file of the event store is damaged or cannot be read{named}; `spendstream verify` says more"
    return Refused("unavailable", text, retry_after=30)


def too_many_files() -> Refused:
    """Return the refusal of a question that cannot open a file as too many are open."""
    text = "The questions under way have as many files open as there may be (ulimit -n); ask again"
    return Refused("queries_busy", text, retry_after=2)


def _open(directory: Path, spill: Path, memory: int, threads: int) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:")
    allowed = [f"{each.absolute()}/" for each in (directory, spill)]
    settings: Mapping[str, Any] = {
        "memory_limit": f"{max(memory - RESERVED, int(LEAST * memory)) // MIB}MiB",
        "threads": threads,
        "temp_directory": str(spill.absolute()),
        "max_temp_directory_size": f"{MAX_SPILL // MIB}MiB",
        "TimeZone": "UTC",
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
        "allowed_directories": allowed,
        "enable_external_access": False,
        "lock_configuration": True,
    }
    for name, value in settings.items():
        database.execute(f"SET {name} = {_literal(value)}")
    return database


def _literal(value: Any) -> str:
    """Write one of our own settings; no value of a question comes here."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


class _Interrupter:
    """A thread that interrupts the statements whose time is over, and those of questions that were stopped.

    It does so again and again until a statement has ended: DuckDB forgets an interrupt that comes as one begins.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._entries: dict[int, tuple[Engine, float | None]] = {}
        self._count = 0
        self._thread: threading.Thread | None = None

    def add(self, engine: Engine, deadline: float | None) -> int:
        """Interrupt a statement once its question is stopped, or at `deadline` (monotonic seconds), until `remove`."""
        with self._lock:
            self._count += 1
            self._entries[self._count] = engine, deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="query-interrupter", daemon=True)
                self._thread.start()
            self._lock.notify()
            return self._count

    def remove(self, number: int) -> None:
        """Let the statement be."""
        with self._lock:
            del self._entries[number]

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._entries:
                    self._lock.wait()
                now = time.monotonic()
                for engine, deadline in self._entries.values():
                    if engine.is_stopped or (deadline is not None and deadline <= now):
                        engine.interrupt()
            time.sleep(_LOOK)


_LOOK: Final = 0.02
"""Seconds between two looks."""
_interrupter: Final = _Interrupter()
