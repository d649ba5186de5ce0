"""Damage done to an embedded log behind the product's back, and what a test needs to tell it."""

from contextlib import closing

import apsw

from processor.core.tables import dedupe
from processor.ids.index_checkpoint import Covered
from processor.log.embedded.log import OFFSET_BITS, Log
from processor.log.records import TopicPartition
from processor.log.topics import CLAIMS


def flip(log: Log, tp: TopicPartition, offset: int) -> None:
    """Flip bits in the middle of a record's value, or of its key if it has no value."""
    at = (log.number(tp) << OFFSET_BITS) + offset
    with closing(apsw.Connection(str(log.path))) as db:
        [(key, value)] = db.execute("SELECT key, value FROM record WHERE id = ?", (at,)).fetchall()
        column, found = ("key", key) if value is None else ("value", value)
        assert isinstance(found, bytes)
        middle = len(found) // 2
        changed = found[:middle] + bytes([found[middle] ^ 0x11]) + found[middle + 1 :]
        db.execute(f"UPDATE record SET {column} = ? WHERE id = ?", (changed, at))


def empty(log: Log, topic: str, partition: int, *, whole: bool = False) -> None:
    """Delete all records of a partition; `whole`: also all that says that there is one."""
    number = log.number(TopicPartition(topic, partition))
    with closing(apsw.Connection(str(log.path))) as db:
        db.execute("DELETE FROM record WHERE id >> ? = ?", (OFFSET_BITS, number))
        if whole:
            db.execute("DELETE FROM partition WHERE number = ?", (number,))


def covered(log: Log, number: int, ids: int) -> Covered:
    """What an id index says that has `ids` ids, and all claims that the log has of a partition."""
    [*_, last] = log.read(TopicPartition(CLAIMS, number), 0)
    return Covered(last.offset + 1, dedupe.digest_of_claims(last.value or b""), ids)
