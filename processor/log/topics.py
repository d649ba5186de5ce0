"""The topics of the log, by name."""

from typing import Final, NamedTuple

PREFIX: Final = "spendstream."
"""The prefix of all names. On Kafka a setting may replace it (`KafkaAccess.wire`)."""

EVENTS: Final = "spendstream.events"
"""Accepted events, many to a message, partitioned by event_id."""

ROWS: Final = "spendstream.rows"
"""Changelog of the tables (compacted): one record a row, keyed; same partitions as the events."""

CLAIMS: Final = "spendstream.claims"
"""The ids each flush claimed; same partitions as the events."""

DEAD_LETTERS: Final = "spendstream.dead-letters"
"""Messages that could not be processed, with the reason; same partitions as the events."""

CHECKPOINTS: Final = "spendstream.checkpoints"
"""The rows as of the last event that retention may have deleted (compacted); same partitions as the events."""

USERS: Final = "spendstream.users"
"""The users' rows over all time (compacted), for consumers that read Kafka: there only, with as many partitions."""

DIRECTORY: Final = "spendstream.directory"
"""Organizations and keys (compacted); one partition."""

STATEMENTS: Final = "spendstream.lease-statements"
"""The needs of API processes for quotas (compacted, by API process); one partition. Only on Kafka, like `LEASES`."""

LEASES: Final = "spendstream.leases"
"""What API processes may use of the quotas (compacted, by API process); one partition, written by one grantor."""

SEGMENTS: Final = "spendstream.segments"
"""Manifests of the event store's segments (compacted, by segment); one partition."""

PARTITIONED: Final = (EVENTS, ROWS, CLAIMS, DEAD_LETTERS, CHECKPOINTS)
PARTITIONED_ON_KAFKA: Final = (*PARTITIONED, USERS)
SINGLE: Final = (DIRECTORY, SEGMENTS)
"""Topics of one partition."""

SINGLE_ON_KAFKA: Final = (*SINGLE, STATEMENTS, LEASES)

LATER: Final = frozenset({SEGMENTS})
"""Topics that logs of earlier versions do not have: they are added, empty, when such a log is opened."""

COMPACTED: Final = frozenset({ROWS, CHECKPOINTS, DIRECTORY, USERS, STATEMENTS, LEASES, SEGMENTS})

GROUP: Final = "spendstream"
"""The consumer group of the worker."""

STORE_GROUP: Final = "spendstream-store"
"""The consumer group of the event store."""


class EventConsumer(NamedTuple):
    """A consumer of the events, for which retention waits; its group's committed offsets say how far it has read."""

    group: str
    patience: int | None
    """Microseconds past their time for which retention keeps events that it has not committed; None: for ever."""


EVENT_CONSUMERS: Final = (EventConsumer(GROUP, None),)
"""All consumers of the events that are always switched on. Retention waits for the slowest of them, and of those that a
setting switches on (`processor.app`)."""

STORE_PATIENCE: Final = 7 * 24 * 3600 * 1_000_000
"""Microseconds for which retention waits for an event store that is switched on."""
