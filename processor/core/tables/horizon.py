"""The horizon: the instant up to which windows of arrivals may be closed. A clock that is wrong for less than a day
cannot move it.

Deleting by the largest arrival ever seen would be unsafe: a few seconds of a clock that is months ahead would close
every window, those of leases included. So the horizon is an arrival that is a day of *running time* old, which is time
in which the owner of the partition ran and read its clock; and it is at most what that clock has shown at every reading
since, so an arrival from the day after tomorrow closes nothing before that day. It is a row of the changelog, written
together with what it has closed, so that a restart and another owner continue with it.
"""

from typing import Final

import msgspec
from msgspec import Struct

from processor.core.clock import DAY, HOUR, MINUTE
from processor.core.tables import table_rows
from processor.core.tables.table_rows import NEVER, WindowKind

AGE: Final = DAY
"""Running time after which an arrival may close windows, in microseconds."""

LEASE_AGE: Final = 33 * DAY
"""The same for leases: more than a month, so that they live for theirs whatever any arrival says."""

NOTED: Final = 5 * MINUTE
"""The running time that a restart may lose, in microseconds."""


class Sample(Struct, array_like=True, gc=False):
    """What was seen in a span of running time."""

    since: int
    until: int
    """Both in microseconds of running time."""
    clock: int
    """The earliest time that the clock has shown."""
    arrival: int
    """The largest arrival until its end, of all time."""


class Aging:
    """The samples of the last `age` of running time, one for each `step`, and one older one."""

    def __init__(self, age: int, step: int, samples: list[Sample]) -> None:
        self._age = age
        self._step = step
        self.samples = samples

    def add(self, running: int, clock: int, arrival: int) -> None:
        """Take in what is seen at a moment of running time, which goes on from call to call."""
        last = self.samples[-1] if self.samples else None
        if last is None or running - last.since >= self._step:
            self.samples.append(Sample(running, running, clock, arrival))
        else:
            last.until = running
            last.clock = min(last.clock, clock)
            last.arrival = max(last.arrival, arrival)
        while len(self.samples) > 1 and self.samples[1].until <= running - self._age:
            del self.samples[0]

    def old(self) -> int:
        """The largest arrival that is old enough, but no more than what the clock has shown ever since; 0: none is."""
        if self.samples[0].until > self.samples[-1].until - self._age:
            return 0
        return min(self.samples[0].arrival, *(sample.clock for sample in self.samples))


class Horizon:
    """A row of a partition's tables: what its windows may be closed by. It only goes forward."""

    def __init__(self, key: bytes, numbers: list[int] | None = None, changelog: int = NEVER) -> None:
        """`numbers`: of a row that is read back. Raises `ValueError` for those of another format."""
        self.key = key
        self.changelog = changelog
        self.dirty = 1 if numbers is None else 0
        """1 while the row waits for the next flush."""
        head, samples = _parsed(numbers or [0, 0, 0, 0, 0])
        self.windows, self.leases, self.earlier, self.running = head
        self._days = Aging(AGE, HOUR, samples[0])
        self._months = Aging(LEASE_AGE, DAY, samples[1])
        self._noted = self.running
        self._ticked: int | None = None
        self.retained = 0
        """Retention may go by it: the same as `windows`, but 0 until it was found by this owner of the partition."""

    @classmethod
    def of_earlier(cls, key: bytes, watermark: int) -> "Horizon":
        """For rows that an earlier version has written, which closed windows and leases by the largest arrival ever."""
        made = cls(key)
        made.windows = made.earlier = watermark
        return made

    @classmethod
    def of_events(cls, base: "Horizon", newest: int, clock: int) -> "Horizon":
        """For tables whose own is gone and that are made again from their events, on top of those that `base` is of.

        `newest` is the arrival of the newest event, which counts no further than the `clock` of now.
        """
        made = cls.of_earlier(base.key, max(base.windows, min(newest, clock)))
        made.leases = base.leases
        return made

    def value(self) -> list[int]:
        """The numbers of the row, see `tables`."""
        samples = [number for sample in self._days.samples for number in _numbers(sample)]
        more = [number for sample in self._months.samples for number in _numbers(sample)]
        return [self.windows, self.leases, self.earlier, self.running, len(self._days.samples), *samples, *more]

    def encode(self) -> bytes:
        """The row's value in the changelog."""
        return msgspec.json.encode(self.value())

    def tick(self, monotonic: int, clock: int, arrival: int) -> bool:
        """Take in a reading of the owner's clocks and the largest arrival ever; returns whether more may be closed.

        `monotonic` is a clock of this process that is never set.
        """
        if self._ticked is not None:
            self.running += max(monotonic - self._ticked, 0)
        self._ticked = monotonic
        self._days.add(self.running, clock, arrival)
        self._months.add(self.running, clock, arrival)
        self.retained = self._days.old()
        windows, leases = max(self.windows, self.retained), max(self.leases, self._months.old())
        is_further = (windows, leases) != (self.windows, self.leases)
        if is_further or self.running - self._noted >= NOTED:
            self.windows, self.leases, self._noted, self.dirty = windows, leases, self.running, 1
        return is_further

    def closes(self, kind: WindowKind, start: int) -> bool:
        """True for a window that counts nothing more, and whose row may be gone."""
        return table_rows.is_expired(kind, start, self.leases if kind == "lease" else self.windows)

    def may_lack(self, kind: WindowKind, start: int) -> bool:
        """True for a window whose row may be gone, or lack what an earlier version did not count."""
        return self.closes(kind, start) or (kind == "lease" and table_rows.is_expired(kind, start, self.earlier))


def _numbers(sample: Sample) -> tuple[int, int, int, int]:
    return sample.since, sample.until, sample.clock, sample.arrival


def _parsed(numbers: list[int]) -> tuple[list[int], tuple[list[Sample], list[Sample]]]:
    head, rest = numbers[:4], numbers[5:]
    days = numbers[4] if len(numbers) > 4 else -1
    if days < 0 or len(rest) % 4 or days > len(rest) // 4:
        raise ValueError("not the numbers of a horizon")
    samples = [Sample(*rest[start : start + 4]) for start in range(0, len(rest), 4)]
    return head, (samples[:days], samples[days:])
