"""The tables: the kinds of rows, their keys, and their form in the changelog.

Five kinds of row, all partial (one partition's share; readers add the partials up) and all carrying the last source
offset applied to them, so that applying a message again changes nothing:

    [partition, "user", project, user, day, provider, model, environment]      -> sums
    [partition, "hour", project, hour, provider, model, environment]           -> sums
    [partition, "latency", project, hour, provider, model, environment]        -> [offset, bucket, events, ...]
    [partition, "window", scope, id, kind, start]                              -> counts
    [partition, "progress"]                                                    -> [offset, watermark, ...]
    [partition, "horizon"]                                                     -> [windows, leases, earlier, running, n,
                                                                                   (since, until, clock, arrival), ...]

The horizon is no sum and not of the log: it says which windows may be gone (`processor.core.tables.horizon`); of its
samples the first n are of the last day. Checkpoints (`processor.state.retention`) have, instead of it, how far
retention has come: [partition, "retained"] -> [before, running, first] (`processor.core.tables.retained`).

Keys are JSON. Values are JSON lists, whose integers have no bound; sums that fit have a form of fixed width instead
(`row_bytes`), which costs less to write and next to nothing to read. A reader takes both.

The progress is the last record of every flush. Behind its first two numbers it says what the other pieces of state must
look like if they belong to it (`Progress.record`); a start compares them (`processor.core.tables.history`).
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct, field

from processor.core.clock import DAY, HOUR, MINUTE, Kind
from processor.core.tables import row_bytes
from processor.core.tables.row_sums import SUMS, RowSums

Scope = Literal["org", "key", "lease"]
"""`lease`: what an organization was charged through one API process's lease
(`processor.leases.lease_messages.owner`)."""

WindowKind = Kind | Literal["lease"]
"""`lease` is a month that is not kept for ever: an API process's name lasts as long as its process."""

HOURS_PER_DAY: Final = 24

LATENESS: Final[dict[WindowKind, int]] = {"minute": 2 * HOUR, "hour": 4 * DAY, "day": 64 * DAY, "lease": 33 * DAY}
"""How long a window of arrivals is kept after the horizon has passed its end, in microseconds; months for ever."""

WINDOW_SIZE: Final[dict[WindowKind, int]] = {"minute": MINUTE, "hour": HOUR, "day": DAY, "lease": 31 * DAY}

NEVER: Final = -1
"""The offset of a row that nothing was applied to yet."""

UNKNOWN: Final = -1
"""A number of the progress that whoever wrote it did not know."""


_sums = attrgetter(*SUMS)


class Sums(Struct, gc=False):
    """A row of cost: the members of `RowSums`, which change in place here, with what the row's owner knows of it."""

    key: bytes
    offset: int = NEVER
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    """Picodollars."""
    unpriced: int = 0
    first_seen: int = 0
    """Microseconds since the epoch; meaningless while `requests` is 0."""
    last_seen: int = 0
    changelog: int = NEVER
    """Offset of the row's newest record in the changelog."""
    dirty: int = 0
    """1 while the row waits for the next flush."""

    def value(self) -> list[int]:
        return [self.offset, *_sums(self)]

    def add(self, more: RowSums) -> None:
        """Add up what the row says and `more`, which has requests."""
        self.first_seen = min(self.first_seen, more.first_seen) if self.requests else more.first_seen
        self.last_seen = max(self.last_seen, more.last_seen) if self.requests else more.last_seen
        self.requests += more.requests
        self.errors += more.errors
        self.input_tokens += more.input_tokens
        self.output_tokens += more.output_tokens
        self.cached_tokens += more.cached_tokens
        self.cost += more.cost
        self.unpriced += more.unpriced


class Counts(Struct, gc=False):
    """A tumbling window of arrivals: how many events were charged, and how many copies were not."""

    key: bytes
    offset: int = NEVER
    unique: int = 0
    duplicates: int = 0
    conflicts: int = 0
    changelog: int = NEVER
    open_for: int = NEVER
    """The message being applied, counted by `Tables`, that may still add to this row."""
    dirty: int = 0

    def value(self) -> list[int]:
        return [self.offset, self.unique, self.duplicates, self.conflicts]


class Histogram(Struct, gc=False):
    """The latencies of an hour's unique events (`processor.core.events.latency`)."""

    key: bytes
    offset: int = NEVER
    counts: dict[int, int] = field(default_factory=dict)
    """Bucket -> events; those that were not measured are left out."""
    changelog: int = NEVER

    def value(self) -> list[int]:
        return [self.offset, *(number for pair in sorted(self.counts.items()) for number in pair)]


def histogram_of(value: list[int]) -> dict[int, int]:
    """The counts of a histogram's numbers. Raises `ValueError` if they are not pairs."""
    return dict(zip(value[1::2], value[2::2], strict=True))


class Progress(Struct, gc=False):
    """How far a partition has been applied."""

    key: bytes
    offset: int = NEVER
    watermark: int = 0
    """The latest arrival seen, in microseconds."""
    digest: int = UNKNOWN
    """Of the message at `offset` (`processor.core.tables.history.digest_of`)."""
    claimed: int = NEVER
    """The last source offset that claimed ids: the claims log must reach to it."""
    claims_from: int = 0
    """The offset in the claims log from which on it is complete."""
    events: int = UNKNOWN
    """Unique calls in the rows of users; those of hours have as many."""
    rows: int = UNKNOWN
    """Rows of all kinds, without this one and the horizon."""
    letters: int = UNKNOWN
    """Messages of the partition that are dead letters."""
    spans: int = 0
    """Unique events that are spans: they have claims, and are in no row of users or hours."""
    changelog: int = NEVER
    dirty: int = 0

    def value(self) -> list[int]:
        """What follows from the events alone."""
        return [self.offset, self.watermark]

    def record(self) -> list[int]:
        """The numbers in the changelog. Programs up to log format 3 wrote the first two; the last is there if it is
        not 0."""
        found = [*self.value(), self.digest, self.claimed, self.claims_from, self.events, self.rows, self.letters]
        return [*found, self.spans] if self.spans else found


def progress_of(key: bytes, numbers: Sequence[int], changelog: int = NEVER) -> Progress:
    """The progress that the changelog has as `numbers`. Raises `ValueError` for another form."""
    if len(numbers) not in (2, 7, 8, 9):
        raise ValueError(f"not a row of the changelog: a progress of {len(numbers)} numbers")
    progress = Progress(key, *numbers)  # what an earlier program did not write is not known
    progress.changelog = changelog
    return progress


Row = Sums | Counts | Histogram | Progress

HourKey = tuple[str, int, str, str, str]
"""project, hour, provider, model, environment."""
WindowKey = tuple[Scope, str, WindowKind, int]
"""scope, id of the organization or key, kind of window, its start in microseconds."""


class UserPlace(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The key of a user's row."""

    partition: int
    kind: str
    project: str
    user: str | None
    day: int
    provider: str
    model: str
    environment: str


class HourPlace(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The key of an hour's row."""

    partition: int
    kind: str
    project: str
    hour: int
    provider: str
    model: str
    environment: str


Place = TypeVar("Place")

_encode = msgspec.json.Encoder().encode
_decode_users = msgspec.json.Decoder(list[UserPlace]).decode
_decode_hours = msgspec.json.Decoder(list[HourPlace]).decode
_decode_key = msgspec.json.Decoder(list[Any]).decode
_decode_value = msgspec.json.Decoder(list[int]).decode
_decode_values = msgspec.json.Decoder(list[list[int]]).decode


def encode_key(partition: int, kind: str, *parts: object) -> bytes:
    """The changelog key of a row."""
    return _encode([partition, kind, *parts])


def encode_value(row: Row) -> bytes:
    """The changelog value of a row."""
    if type(row) is Sums:
        try:
            return row_bytes.pack(*row_bytes.members_of(row))
        except row_bytes.Misfit:
            pass
    return _encode(row.record() if type(row) is Progress else row.value())


def decode_key(key: bytes) -> tuple[int, str, tuple[Any, ...]]:
    """(partition, kind, the rest). Raises `ValueError` for a key this version does not know."""
    try:
        partition, kind, *rest = _decode_key(key)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"not a row key: {key[:80]!r} ({error})") from None
    return partition, kind, tuple(rest)


def decode_users(keys: Sequence[bytes]) -> list[UserPlace]:
    """What the keys of users' rows say, all at once. Raises `ValueError` for a key of another form."""
    return _decode_all(_decode_users, keys)


def decode_hours(keys: Sequence[bytes]) -> list[HourPlace]:
    """The same for the keys of hours' rows."""
    return _decode_all(_decode_hours, keys)


def decode_lists(values: Sequence[bytes]) -> list[list[int]]:
    """The numbers of rows that have no fixed width. Raises `ValueError` for a value of another form."""
    return _decode_all(_decode_values, values)


def _decode_all(decode: Callable[[bytes], list[Place]], keys: Sequence[bytes]) -> list[Place]:
    try:
        found = decode(b"[%b]" % b",".join(keys))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a row of the changelog: {error}") from None
    if len(found) != len(keys):
        raise ValueError("not a row of the changelog: several keys in one")
    return found


def decode_value(value: bytes) -> list[int]:
    """The numbers of a row, in the order of its `value`. Raises `ValueError` if they are not a row's."""
    if value[:1] == row_bytes.MARK:
        try:
            return row_bytes.unpack(value)
        except row_bytes.Misfit as error:
            raise ValueError(f"not the numbers of a row: {error}") from None
    return _decode_value(value)


def is_expired(kind: WindowKind, start: int, horizon: int) -> bool:
    """True once `horizon`, an instant, has left a window so far behind that it is no longer kept."""
    lateness = LATENESS.get(kind)
    return lateness is not None and start + WINDOW_SIZE[kind] + lateness <= horizon
