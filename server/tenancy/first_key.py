"""The first key of a new log."""

from processor.log.port import LogWriter
from server.tenancy.directory import Directory, key_record, project_record
from server.tenancy.directory_log import read_directory, write
from server.tenancy.keys import Key, Project, make_key, new_secret


def write_key(log: LogWriter, directory: Directory, key: Key, at: int) -> None:
    """Append a new key, after its project if the directory has no record of that."""
    project = Project(key.project, key.organization, at)
    if directory.project(key.project) is None:
        write(log, project_record(project), at)
    write(log, key_record(key), at)


def ensure_key(log: LogWriter, given: str | None, at: int, *, make: bool) -> str | None:
    """Create the first key of a log: the `given` one, or with `make` a random one if the directory has no keys.

    Return the secret only if it was made here. A `given` key that is known already, revoked or not, stays as it is.
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
