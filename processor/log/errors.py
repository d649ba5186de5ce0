"""What can be wrong with a log."""


class LogError(Exception):
    """The log cannot be used; the text says what to do."""


class LogUnavailable(LogError):
    """The log cannot take a write now (disk full, I/O error); trying again later may succeed."""


class FormatError(LogError):
    """The log was written by a newer program."""


class PartitionMismatch(LogError):
    """The log has another number of partitions than asked for."""


class DamagedRecord(LogError):
    """A record's checksum does not match what is stored: it is named, and never counted."""

    def __init__(self, topic: str, partition: int, offset: int, reason: str = "its checksum does not match") -> None:
        super().__init__(f"record {topic}:{partition}:{offset} is damaged: {reason}")
        self.topic = topic
        self.partition = partition
        self.offset = offset


class LogBroken(LogUnavailable):
    """The log's files must not be used any more in the life of this process: end it, and recover at the next start."""


class RecoveryNeeded(LogError):
    """The log has to be recovered first, and another process has it open."""


class HistoryMismatch(LogError):
    """Pieces of state do not belong to one history: the text names them and says what to do."""


class Locked(LogError):
    """Another process holds the lock."""
