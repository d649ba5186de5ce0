"""What can be wrong with a log."""


class LogError(Exception):
    """The log cannot be used; the text says what to do."""


class LogUnavailable(LogError):
    """The log cannot take a write now (disk full, I/O error); trying again later may succeed."""


class FormatError(LogError):
    """The log was written by a newer program."""


class PartitionMismatch(LogError):
    """The log has another number of partitions than asked for."""


class Locked(LogError):
    """Another process holds the lock."""
