"""What has become visible in the store behind a position: one step of a live tail."""

from server.explore.cursor import stamped
from server.explore.event_json import MEMBERS, encode_events, events_of
from server.explore.questions import NewEventsQuestion
from server.explore.row_scan import RowScan
from server.explore.snapshot import ALWAYS, Snapshot


def answer_new_events(snapshot: Snapshot, question: NewEventsQuestion) -> bytes:
    """Return the JSON of `NewEvents`: the newest of the events behind the position, in ascending order of time.

    Raises `Refused`, `Stopped`, `SegmentGone`.
    """
    reached = dict(snapshot.bounds)
    seen = reached if question.position is None else question.position
    # A store that is built anew may not be as far yet as the client has been.
    position = {each: max(reached.get(each, 0), seen.get(each, 0)) for each in sorted({*reached, *seen})}
    events, skipped = [], 0
    if any(offset > seen.get(each, 0) for each, offset in position.items()):
        with RowScan(snapshot.behind(seen), question.project, question.filters, ALWAYS) as scan:
            found = scan.first("desc", question.limit)
            if found:
                events = events_of(scan.table(found[::-1], MEMBERS))
                skipped = (scan.count(None) or 0) - len(found)
    members = {"events": encode_events(events), "skipped": skipped, "position": position}
    return stamped(snapshot, members)
