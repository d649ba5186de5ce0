"""Reading the directory topic, and writing to it."""

from collections.abc import Sequence

from processor.log.port import LogReader, LogWriter, scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import DIRECTORY
from server.tenancy.directory import Directory

HOME = TopicPartition(DIRECTORY, 0)


def read_directory(log: LogReader) -> Directory:
    """Read the directory as it is now, for one thread. Blocks. Raises `LogUnavailable`."""
    directory = Directory(is_snapshot=True)
    for record in scan(log, HOME):
        directory.apply(record.key, record.value)
    return directory


def write(log: LogWriter, record: tuple[bytes, bytes | None], at: int) -> None:
    """Append one record to the directory; every process sees it within moments. Durable on return."""
    write_all(log, [record], at)


def write_all(log: LogWriter, records: Sequence[tuple[bytes, bytes | None]], at: int) -> None:
    """Append several records; see `write`."""
    log.append([Append(HOME, records)], at)
