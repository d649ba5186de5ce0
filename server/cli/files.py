"""Files of lines, gzip-compressed if their name ends in .gz; `-` is standard input or output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from isal import igzip, isal_zlib

from processor.core.portable import MAX_LINE
from server.cli.output import TerminalLines
from server.cli.progress import Show

_IsalError: Final = cast("type[Exception]", isal_zlib.error)  # its stub calls it an instance

STEP: Final = 1000
"""Lines between two looks at how far a file has been read."""


@contextmanager
def writing(name: str) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name whole, or not at all. Raises `OSError`.

    On a terminal, where the lines are for reading, control characters in them are escaped.
    """
    if name == "-":
        file = cast("IO[bytes]", TerminalLines()) if sys.stdout.isatty() else sys.stdout.buffer
        yield file
        sys.stdout.flush()
        return
    path = Path(name)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if path.suffix == ".gz":
                with _gzip(file, "wb") as packed:
                    yield packed
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def until_damaged(name: str, show: Show, damage: list[str]) -> Iterator[bytes]:
    """The lines of a file as far as it can be read; why it ends early goes to `damage`."""
    try:
        yield from lines(name, show)
    except (OSError, EOFError, _IsalError) as error:
        damage.append(str(error) or repr(error))


def lines(name: str, show: Show) -> Iterator[bytes]:
    """The lines of a file without their ends, as they come; `show` counts bytes of the file.

    Of a line longer than any there can be only the beginning comes, more of it than is allowed.
    """
    if name == "-":
        yield from _split(sys.stdin.buffer)
        return
    path = Path(name)
    total = path.stat().st_size
    with path.open("rb") as file:
        opened = _gzip(file, "rb") if path.suffix == ".gz" else file
        for number, line in enumerate(_split(opened)):
            if number % STEP == 0:
                show(file.tell(), total)
            yield line
    show(total, total)


def _gzip(file: IO[bytes], mode: str) -> IO[bytes]:
    make: Any = igzip.GzipFile  # published with types, but not for its constructor
    return cast("IO[bytes]", make(filename="", mode=mode, fileobj=file))


def _split(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 2):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 2)
        yield line.rstrip(b"\r\n")
