"""Up to which arrival the log has what API processes of all hosts have stamped, by their statements.

Each states once a second, and before its first event, what it has stamped and not appended yet. So the least of what
the newest statements say bounds all of them, once every statement of a moment has been read; one that an earlier
release has made says nothing of it, and is taken to have appended within `UNSAID`.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from processor.core.clock import SECOND
from processor.leases.lease_messages import DELIVERY, TTL, Statement, decode_statement
from processor.log.errors import LogError, LogUnavailable
from processor.log.records import Record, TopicPartition
from processor.log.tail import Tail
from processor.log.topics import STATEMENTS

STATED: Final = TopicPartition(STATEMENTS, 0)

SILENT: Final = TTL + DELIVERY
"""Seconds without a statement after which an API process is gone, and nothing of it is on its way any more."""

PATIENCE: Final = 5.0

UNSAID: Final = SECOND
"""Microseconds within which an API process of an earlier release is taken to have appended what it has stamped."""


class _Heard(NamedTuple):
    arrived: int
    """`Statement.arrived`."""
    at: float
    """When it was made, or came (monotonic seconds)."""


class StatedArrivals:
    """Follows the statements. For one thread at a time."""

    def __init__(
        self, follow: Callable[[], Tail], clock: Callable[[], int], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`follow` gives a tail of `STATED` from its beginning; `clock` the present in microseconds."""
        self._follow = follow
        self._clock = clock
        self._monotonic = monotonic
        self._tail: Tail | None = None
        self._heard: dict[bytes, _Heard] = {}
        self._read_at = float("-inf")
        """The moment (monotonic seconds) from before which everything was read, at the last look."""

    def before(self) -> int:
        """Return the latest arrival of which all is in the log, at its ends that are asked for from now on.

        Blocks for a moment, at first until all statements have been read, for up to `PATIENCE` seconds. Raises
        `LogUnavailable` while they cannot be; 0: nothing is known yet.
        """
        deadline = self._monotonic() + PATIENCE
        while (read_at := self._read()) == float("-inf") and self._monotonic() < deadline:
            pass
        now, at = self._monotonic(), self._clock()
        self._heard = {name: each for name, each in self._heard.items() if now - each.at < SILENT}
        unread = now - read_at  # what was stated since is not known, and may be the first statement of a process
        stated = (each.arrived - 1 if each.arrived else at - UNSAID for each in self._heard.values())
        return max(0, min([at - round(unread * SECOND), *stated])) if unread < SILENT else 0

    def _read(self) -> float:
        """Read what there is; return the moment (monotonic seconds) from before which everything was."""
        try:
            tail = self._tail = self._tail or self._follow()
            for _, records in tail.poll():
                for record in records:
                    self._hear(record)
            self._read_at = tail.known_at(STATED)
            return self._read_at
        except LogError as error:
            self.close()
            raise LogUnavailable(str(error)) from None

    def _hear(self, record: Record) -> None:
        name = record.key or b""
        try:
            statement = None if record.value is None else decode_statement(record.value)
        except ValueError:  # of a later release
            statement = Statement(0, 0, 0, [])
        if statement is None or statement.leaving:
            self._heard.pop(name, None)
            return
        age = max(self._clock() - record.at, 0) / SECOND
        # By the clock of another host, which may be wrong; but it has come since everything was read the last time.
        self._heard[name] = _Heard(statement.arrived, max(self._monotonic() - age, self._read_at))

    def close(self) -> None:
        """Forget what was read; the next call reads all of it again."""
        self._heard.clear()
        self._read_at = float("-inf")
        if self._tail is not None:
            self._tail.close()
            self._tail = None
