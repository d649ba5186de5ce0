"""The first key of a new log."""

from collections.abc import Sequence

from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import DIRECTORY
from server.keys import Directory, Key, Project, key_record, make_key, new_secret, project_record

HOME = TopicPartition(DIRECTORY, 0)


def read_directory(log: LogWriter) -> Directory:
    """All keys and organisations as they are now."""
    directory = Directory()
    position = 0
    while records := log.read(HOME, position):
        for record in records:
            directory.apply(record.key, record.value)
        position = records[-1].offset + 1
    return directory


def write(log: LogWriter, record: tuple[bytes, bytes | None], at: int) -> None:
    """Append one record to the directory; every process sees it within moments. Durable on return."""
    write_all(log, [record], at)


def write_all(log: LogWriter, records: Sequence[tuple[bytes, bytes | None]], at: int) -> None:
    """Append some; see `write`."""
    log.append([Append(HOME, records)], at)


def write_key(log: LogWriter, directory: Directory, key: Key, at: int) -> None:
    """Append a new key, after its project if the directory has no record of that."""
    project = Project(key.project, key.organization, at)
    if directory.project(key.project) is None:
        write(log, project_record(project), at)
    write(log, key_record(key), at)


def ensure_key(log: LogWriter, given: str | None, at: int, *, make: bool) -> str | None:
    """See to the bootstrap key; returns a key only if it was made up here (`make`, and the directory is empty).

    A `given` key is created once; if it is known already, revoked or not, nothing happens.
    """
    directory = read_directory(log)
    if given is not None:
        if directory.find(given) is None:
            write_key(log, directory, make_key(given, at=at), at)
        return None
    if not make or directory.all_keys():
        return None
    secret = new_secret()
    write_key(log, directory, make_key(secret, at=at), at)
    return secret
