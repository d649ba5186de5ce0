"""The address of the server that runs on a data directory: noted by its supervisor, read by commands."""

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from processor.log.file_lock import holder_of

LOCK: Final = "serve.lock"
"""The file of the data directory that a server locks while it runs."""
FILE: Final = "server.json"

_LOCAL: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what is listened on, not listening
"""A wildcard address -> the loopback address to connect to."""


class _Note(Struct):
    pid: int
    url: str


def note(data_dir: Path, scheme: str, bind: str) -> None:
    """Note that this process, which holds `LOCK`, serves HTTP at `bind`. Does nothing if the disk is full."""
    host, _, port = bind.rpartition(":")
    raw = msgspec.json.encode(_Note(os.getpid(), f"{scheme}://{_LOCAL.get(host, host)}:{port}"))
    new = data_dir / f"{FILE}.new"
    with contextlib.suppress(OSError):
        new.write_bytes(raw)
        new.replace(data_dir / FILE)


def find(data_dir: Path) -> str | None:
    """Return the URL of the server that runs on a data directory and is ready; None if there is none."""
    try:
        noted = msgspec.json.decode((data_dir / FILE).read_bytes(), type=_Note)
    except (OSError, msgspec.MsgspecError):
        return None
    return noted.url if holder_of(data_dir / LOCK) == noted.pid else None
