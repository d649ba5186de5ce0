"""The errors of a log."""


class LogError(Exception):
    """The log cannot be used; the text says what to do."""


class LogUnavailable(LogError):
    """The log cannot be written or read now (disk full, I/O error, no broker); a retry may succeed."""


class FormatError(LogError):
    """The log was written by a newer program."""


class PartitionMismatch(LogError):
    """The log has another number of partitions than the settings."""


class DamagedRecord(LogError):
    """The checksum of a record does not match: it is reported, and never counted."""

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        reason: str = "its checksum does not match",
        name: str | None = None,
    ) -> None:
        """`name` is what the log calls the topic, see `LogReader.name_of`; None: as the program does."""
        self.name = topic if name is None else name
        super().__init__(f"record {self.name}:{partition}:{offset} is damaged: {reason}")
        self.reason = reason
        self.topic = topic
        self.partition = partition
        self.offset = offset


class LogBroken(LogUnavailable):
    """The log's files must not be used by this process any more: it has to end, and the next start recovers."""


class RecoveryNeeded(LogError):
    """The log has to be recovered first, and another process has it open."""


class HistoryMismatch(LogError):
    """Events, rows, claims and ids do not belong to one history: the text says which, and what to do."""


class Locked(LogError):
    """Another process holds the lock."""
