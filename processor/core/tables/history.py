"""Decide whether the pieces of a partition's state belong to one history: facts in, verdict out.

The events, the rows, the claims and the committed offset are stored separately, and each can lose its beginning
(retention), its end (a broker that stopped without a flush) or records in the middle (manual deletion). The rows'
progress says how far the others must reach (`processor.core.tables.table_rows.Progress`). What follows from that is
decided here, and done in `processor.state.recovery`.

Offsets without another word are those of the events topic. A range is [start, end).
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

import xxhash
from msgspec import Struct

from processor.core.tables.table_rows import NEVER, UNKNOWN, Progress

EVENTS: Final = "events"
CLAIMS: Final = "claims"
DIRECTORY: Final = "directory"
ACKNOWLEDGED: Final = "acknowledged"
"""The events as an API process reports them that acknowledged them: it does not know which of them were counted."""

Found = Literal["same", "other", "missing", "unknown"]
"""What stands at the offset of the progress: the message whose digest it has, another one, or none. `unknown`: there is
no digest to compare with, or nothing was applied, or the message is older than what is kept."""


class OffsetRange(NamedTuple):
    """Offsets from `start` on, before `end`."""

    start: int
    end: int

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and self.start <= offset < self.end


class Loss(NamedTuple):
    """Records that are gone, or messages that stand at an offset that was used before."""

    start: int
    end: int
    counted: bool
    """Whether the tables contain what these records said."""
    reason: str
    topic: str = EVENTS
    """`EVENTS`, or the topic that the offsets are of."""
    ids: int = 0
    """How many ids are not known any more, though their events are counted: a copy sent again would count again."""


class Facts(Struct, frozen=True, kw_only=True):
    """What a start finds in one partition."""

    first: int
    """The first event that is kept."""
    end: int
    """The next offset that an append to the events gets."""
    committed: int | None
    """The next offset to read, by the workers' group."""
    progress: Progress
    found: Found
    """At the offset of the progress."""
    rows: int
    """Rows that were read back, of all kinds."""
    events: int
    """Unique events in the rows of users."""
    events_of_hours: int
    claims_first: int
    """The first offset of the claims log that is kept; if there is none, its end."""
    reach: int
    """The last source offset that the claims log claims ids for; `NEVER`: it claims none."""
    ids: int
    """In the id index."""
    foreign: int | None
    """The first offset beyond the progress whose claims are not those of the message that stands there, or of none."""
    regrown: int | None = None
    """The first offset up to the progress at which a message stands that was not applied, where that was looked for."""
    holes: Sequence[OffsetRange] = ()
    """Ranges up to the progress in which messages are missing, as far as that can be told."""
    base: int = NEVER
    """The offset up to which a sealed checkpoint stands for events that retention has deleted."""
    lost: Sequence[Loss] = ()
    """What was recorded before."""


class Verdict(Struct, frozen=True, kw_only=True):
    """What has to be done, in the order of the fields."""

    refuse: str | None = None
    """Why the partition cannot be brought, and what to do."""
    losses: Sequence[Loss] = ()
    """To be recorded, before anything else is written."""
    cut: int | None = None
    """The events were cut off at this offset and may have grown again since: what stands from there on before `fill_to`
    has to be appended once more, beyond it."""
    fill_to: int | None = None
    """Where the events must end at least before anything new may be acknowledged."""
    rebuild_claims: bool = False
    """Claims are missing: compute rows and claims anew from all events."""
    rebuild_rows: bool = False
    """Rows are missing: compute them anew, up to `target`."""
    target: int = NEVER
    resume: int = 0
    """The next offset to read, if nothing else is to be done."""

    @property
    def is_fine(self) -> bool:
        """Whether nothing has to be done but to continue reading at `resume`."""
        return not (self.refuse or self.losses or self.rebuild_rows or self.rebuild_claims) and self.cut is None


RESTORE: Final = (
    "restore what is missing from a backup, or export the events that are left into a new log (spendstream export, "
    "spendstream import)"
)


def digest_of(key: bytes | None, value: bytes | None) -> int:
    """64 bits that tell a message from others that might stand at its offset."""
    return xxhash.xxh3_64_intdigest((key or b"") + b"\0" + (value or b"")) >> 1  # a signed number for all readers


def is_padding(value: bytes | None) -> bool:
    """Whether a record of the events topic says nothing: it only moves the end (`Verdict.fill_to`)."""
    return value is None


def judge(facts: Facts) -> Verdict:
    """Compare the pieces of one partition."""
    progress = facts.progress
    applied = progress.offset
    known = max(applied, facts.reach, (facts.committed or 0) - 1) + 1
    losses = [Loss(hole.start, hole.end, counted=True, reason="missing in the log") for hole in facts.holes]
    cut = _cut_at(facts, known)
    if cut is not None:
        losses += _cut_off(cut, applied, known)
        return Verdict(losses=unrecorded(losses, facts.lost), cut=cut, fill_to=known + 1)
    rows_are_missing = _rows_are_missing(facts, known)
    if applied + 1 < facts.first and not (applied == NEVER and rows_are_missing):
        losses.append(Loss(applied + 1, facts.first, counted=False, reason="deleted before a worker had read them"))
    losses = unrecorded(losses, facts.lost)
    target = applied if applied != NEVER else min(known, facts.end) - 1
    resume = min(applied + 1, applied + 1 if facts.committed is None else facts.committed)
    is_behind = NEVER < facts.reach < progress.claimed
    if is_behind:  # the claims lost their end: what they lack is claimed again
        resume = min(resume, facts.reach + 1)
        if resume < facts.first:
            return _without_events(facts, "claims")
    if not is_behind and _claims_are_missing(facts):
        if _can_replay(facts, NEVER):
            return Verdict(losses=losses, rebuild_claims=True, rebuild_rows=True, target=target)
        loss = _lost_claims(facts)
        if loss is None:
            return _without_events(facts, "claims")
        losses += unrecorded([loss], facts.lost)
    if rows_are_missing:
        if not _can_replay(facts, facts.base):
            return _without_events(facts, "rows")
        return Verdict(losses=losses, rebuild_rows=True, target=target)
    return Verdict(losses=losses, resume=max(resume, facts.first))


def unrecorded(losses: Iterable[Loss], recorded: Sequence[Loss]) -> list[Loss]:
    """Those parts of `losses` that no recorded loss of the same topic covers."""
    found = []
    for loss in losses:
        parts = [OffsetRange(loss.start, loss.end)]
        for other in recorded:
            if other.topic == loss.topic and other.ids >= loss.ids:
                parts = [
                    piece
                    for part in parts
                    for piece in (
                        OffsetRange(part.start, min(part.end, other.start)),
                        OffsetRange(max(part.start, other.end), part.end),
                    )
                    if piece.start < piece.end
                ]
        found += [loss._replace(start=part.start, end=part.end) for part in parts]
    return found


def void_ranges(lost: Iterable[Loss]) -> list[OffsetRange]:
    """Ranges of events whose claims are no claims: no table contains what they stood for."""
    return [OffsetRange(loss.start, loss.end) for loss in lost if loss.topic == EVENTS and not loss.counted]


def _cut_at(facts: Facts, known: int) -> int | None:
    """The first offset from which on the events are not those that were counted or claimed; None: they are."""
    found = [offset for offset in (facts.foreign, facts.regrown) if offset is not None]
    if facts.end < known:
        found.append(facts.end)
    if facts.found == "other":
        found.append(facts.progress.offset)
    return min(found, default=None)


def _cut_off(cut: int, applied: int, known: int) -> Iterable[Loss]:
    reason = "the log lost its end"
    if cut <= applied:
        yield Loss(cut, applied + 1, counted=True, reason=reason)
    if max(cut, applied + 1) < known:
        yield Loss(max(cut, applied + 1), known, counted=False, reason=reason)


def _rows_are_missing(facts: Facts, known: int) -> bool:
    progress = facts.progress
    if progress.offset == NEVER:
        return known > 0
    if progress.events == UNKNOWN:
        return False
    return (facts.rows, facts.events, facts.events_of_hours) != (progress.rows, progress.events, progress.events)


def _claims_are_missing(facts: Facts) -> bool:
    progress = facts.progress
    if facts.claims_first > progress.claims_from:
        return True
    if progress.claimed > facts.reach:  # it claims none at all
        return True
    return progress.events + progress.spans > facts.ids + sum(loss.ids for loss in facts.lost)


def _lost_claims(facts: Facts) -> Loss | None:
    """The loss, where it can be gone on with: the index has all ids, or the events that are gone were reported."""
    progress = facts.progress
    missing = max(progress.events + progress.spans - facts.ids, 0)
    start, end = progress.claims_from, max(facts.claims_first, progress.claims_from + 1)
    if not missing:
        return Loss(start, end, counted=True, reason="only this worker's id index has these ids", topic=CLAIMS)
    if any(loss.counted and loss.topic == EVENTS for loss in facts.lost) or facts.holes:
        return Loss(start, end, counted=True, reason="lost with the events they were for", topic=CLAIMS, ids=missing)
    return None


def _can_replay(facts: Facts, base: int) -> bool:
    """Whether all events behind `base` are there that the tables contain."""
    if base + 1 < facts.first:
        return False
    gone = [
        *facts.holes,
        *(OffsetRange(loss.start, loss.end) for loss in facts.lost if loss.counted and loss.topic == EVENTS),
    ]
    return not any(each.end > base + 1 for each in gone)


def _without_events(facts: Facts, what: str) -> Verdict:
    gone = f"before {facts.first}" if facts.first > 0 else "that they were computed from"
    return Verdict(
        refuse=f"records of the {what} are missing, and events {gone} are gone, too: the tables cannot be computed "
        f"anew, and to go on would count or show wrong sums. Stop all processes and {RESTORE}"
    )
