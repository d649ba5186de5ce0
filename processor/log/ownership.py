"""The log that a data directory belongs to.

Its files (the id index, a worker's name in its group) are about one log only. The embedded log is a file of the
directory itself; for a log on Kafka the directory has that log's identity in `log.id`, written at the first start.
"""

import json
import os
from pathlib import Path
from typing import Final

from processor.log.data_directory import make_data_directory
from processor.log.durable_names import sync_directory
from processor.log.errors import HistoryMismatch

FILE: Final = "log.id"


def check(data_dir: Path, identity: str, name: str) -> None:
    """Raise `HistoryMismatch` unless the directory may be used with the log on Kafka of this `identity`.

    `name` is the address of that log, for the text.
    """
    if (data_dir / "log.db").exists():
        raise HistoryMismatch(
            f"the data directory {data_dir} holds an embedded log (log.db), and {name} is another log: name another "
            "SPENDSTREAM_DATA_DIR, or leave SPENDSTREAM_BROKER out; to move, `spendstream export` the events and "
            "import them there"
        )
    found = _owner(data_dir)
    if found not in (None, identity):
        raise HistoryMismatch(
            f"the data directory {data_dir} belongs to the log {found}, and {name} is the log {identity}: name another "
            "SPENDSTREAM_DATA_DIR, or the SPENDSTREAM_BROKER and SPENDSTREAM_KAFKA_PREFIX of that log. If that log is "
            f"gone for good, remove {data_dir / FILE} and {data_dir / 'index'}: the index is made anew from the log"
        )


def claim(data_dir: Path, identity: str, name: str) -> None:
    """Call `check`, then note that the directory, made if necessary, belongs to that log. Durable on return."""
    check(data_dir, identity, name)
    if not (data_dir / FILE).exists():
        make_data_directory(data_dir)
        _write(data_dir, identity)


def check_embedded(data_dir: Path) -> None:
    """Raise `HistoryMismatch` for a directory that belongs to a log on Kafka, before an embedded log is made there."""
    if (data_dir / FILE).exists() and not (data_dir / "log.db").exists():
        raise HistoryMismatch(
            f"the data directory {data_dir} belongs to the log {_owner(data_dir)} on Kafka: set SPENDSTREAM_BROKER, or "
            f"name another SPENDSTREAM_DATA_DIR. If that log is gone for good, remove {data_dir / FILE} and "
            f"{data_dir / 'index'}"
        )


def _owner(data_dir: Path) -> str | None:
    """Return the identity of the log that the directory belongs to; None if it is not noted."""
    try:
        return (data_dir / FILE).read_text().strip()
    except FileNotFoundError:
        pass
    for path in sorted(data_dir.glob("index/*/checkpoint.json")):  # from versions that did not write that file
        try:
            return str(json.loads(path.read_text())["log"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _write(data_dir: Path, identity: str) -> None:
    new = data_dir / f"{FILE}.{os.getpid()}.new"
    with new.open("w") as file:
        file.write(f"{identity}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(data_dir / FILE)
    sync_directory(data_dir)
