"""Read and write files of lines. They are written as gzip if their name ends in .gz, and read as gzip if they begin
like it; `-` is standard input or output."""

import errno
import fcntl
import glob
import os
import re
import signal
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, cast

from isal import igzip

from processor.core.events.content_coding import GZIP
from processor.core.events.export_line import MAX_LINE
from server.cli.output import TerminalLines
from server.cli.progress import Show

STEP: Final = 1000
"""Lines between two updates of the progress."""

_BOM: Final = b"\xef\xbb\xbf"
_READ: Final = 64 * 1024
"""Bytes read from a file together."""
_INFLATED: Final = 1024 * 1024
"""Bytes that come out of one call of the decompressor."""


class Damaged(Exception):
    """A file cannot be read to its end; the text says why."""


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(name: str) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name whole, or not at all. Raises `OSError`.

    On a terminal, where the lines are for reading, control characters in them are escaped.

    Until then it is a draft beside it, `.NAME.PID.part`, locked (flock) by its writer. The writer removes it when it
    ends, also by SIGTERM and SIGHUP; a draft that a killed process has left is removed by the next writer of NAME.
    """
    if name == "-":
        file = cast("IO[bytes]", TerminalLines()) if sys.stdout.isatty() else sys.stdout.buffer
        yield file
        sys.stdout.flush()
        return
    path = Path(name)
    _remove_stale(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _signals_raise():
        try:
            with os.fdopen(_open_draft(draft), "wb") as file:
                if path.suffix == ".gz":
                    with _gzip(file) as packed:
                        yield packed
                else:
                    yield file
                file.flush()
                os.fsync(file.fileno())
                draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _open_draft(draft: Path) -> int:
    """Make the draft and lock it. Repeat if another process removed it before it was locked."""
    while True:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if not _lock(descriptor) or _is_at(descriptor, draft):
            return descriptor
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the drafts of `path` whose writers are gone: no process holds their lock."""
    is_draft = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.part").fullmatch
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not is_draft(draft.name):
            continue
        with suppress(OSError):
            descriptor = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _lock(descriptor) and _is_at(descriptor, draft):
                    draft.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file; False if another process has it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """True if the open file is the one of that name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


class _Signalled(BaseException):
    """A signal that would have ended the process at once."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the block, then end the process. No effect outside of the main thread."""
    caught: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        caught.append(signum)
        if len(caught) == 1:  # a second one must not disturb the cleaning up
            raise _Signalled

    replaced = []
    with suppress(ValueError):
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) == signal.SIG_DFL:
                signal.signal(signum, note)
                replaced.append(signum)
    try:
        yield
    finally:
        for signum in replaced:
            signal.signal(signum, signal.SIG_DFL)
        if caught:
            os.kill(os.getpid(), caught[0])


def _gzip(file: IO[bytes]) -> IO[bytes]:
    make: Any = igzip.GzipFile  # published with types, but not for its constructor
    return cast("IO[bytes]", make(filename="", mode="wb", fileobj=file))


# --- reading ---------------------------------------------------------------------------------------------------------


def until_damaged(name: str, show: Show, damage: list[str]) -> Iterator[bytes]:
    """Yield the lines of a file as far as it can be read; append to `damage` why it ends early."""
    try:
        yield from lines(name, show)
    except (OSError, Damaged) as error:
        damage.append(str(error) or repr(error))


def lines(name: str, show: Show) -> Iterator[bytes]:
    """Yield the lines of a file without line ends; `show` counts bytes of the file. Skips a byte order mark.

    A line that is longer than any valid one is cut, but not below the allowed length. Raises `OSError`, and `Damaged`
    after the last byte that can be read.
    """
    if name == "-":
        yield from _lines(sys.stdin.buffer, packed=False)
        return
    path = Path(name)
    total = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for number, line in enumerate(_lines(file, packed=path.suffix == ".gz")):
            if number % STEP == 0:
                show(file.tell(), total)
            yield line
    show(total, total)


def _lines(file: Any, *, packed: bool) -> Iterator[bytes]:
    """Yield lines; with `packed` the file must be gzip, otherwise it may be."""
    read = getattr(file, "read1", file.read)  # returns what is available, without waiting for the full count
    first = read(_READ)
    while 0 < len(first) < len(_BOM) and (more := read(_READ)):
        first += more
    is_gzip = first.startswith(GZIP)
    if packed and not is_gzip:
        raise Damaged("it is not a gzip file, though its name ends in .gz")
    pieces = _pieces(first, read)
    for number, line in enumerate(_split(_inflated(pieces) if is_gzip else pieces)):
        yield line if number else line.removeprefix(_BOM)


def _pieces(first: bytes, read: Any) -> Iterator[bytes]:
    while first:
        yield first
        first = read(_READ)


def _split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest, is_skipping = b"", False
    damage: Damaged | None = None
    try:
        for piece in pieces:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                if not is_skipping:
                    yield line.rstrip(b"\r")
                is_skipping = False
            if len(rest) > MAX_LINE:
                if not is_skipping:
                    yield rest[: MAX_LINE + 1]
                rest, is_skipping = b"", True
    except Damaged as error:
        damage = error
    if rest and not is_skipping:
        yield rest.rstrip(b"\r")
    if damage is not None:
        raise damage


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip members one after the other, to the last readable byte. Raises `Damaged`.

    Uses zlib: isal holds back a byte where the data is cut off.
    """
    stream = zlib.decompressobj(31)
    for piece in pieces:
        data = piece
        while data:
            if stream.eof:
                data = data.lstrip(b"\0")  # padding
                if not data:
                    break
                if len(data) < len(GZIP):
                    data += next(pieces, b"")
                if not data.startswith(GZIP):
                    raise Damaged("something follows the end of the gzip data")
                stream = zlib.decompressobj(31)
            before = stream.copy()
            try:
                yield stream.decompress(data, _INFLATED)
            except zlib.error as error:
                yield from _up_to_damage(before, data)
                raise Damaged(f"its gzip data is damaged ({error})") from None
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
    if not stream.eof:
        with suppress(zlib.error):
            yield stream.flush()
        raise Damaged("it is cut off: its gzip data has no end")


def _up_to_damage(stream: Any, data: bytes) -> Iterator[bytes]:
    """Yield what comes out before the byte at which the decompressor fails."""
    with suppress(zlib.error):
        for at in range(len(data)):
            yield stream.decompress(data[at : at + 1])
