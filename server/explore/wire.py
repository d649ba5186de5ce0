"""What API processes and the query process send each other over its Unix socket.

A frame is its length in four bytes, big-endian, and its body. One connection has one question: the API process sends
its JSON, and the query process sends frames of msgpack: `Alive` about once a second until there is something else, then
`AnswerHead`, `Chunk` and `End`, or at any moment `Refusal`. Whoever closes the connection ends the question.
"""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from server.errors import Reason, Refused
from server.explore.questions import Question

SOCKET: Final = "query.sock"
"""In the data directory: every process that sees the log there finds it, in whatever container it runs. It goes with
the query process; one that was left by `kill -9` is replaced at the next start."""

MAX_QUESTION: Final = 1 << 20
"""Bytes of a question; parameters of a request are far shorter."""
CHUNK: Final = 256 * 1024
"""Bytes of one piece of an answer."""
MAX_FRAME: Final = 16 << 20
"""Bytes of a frame of an answer."""

HEARTBEAT: Final = 1.0
"""Seconds between two `Alive`."""


class Alive(Struct, tag=0, array_like=True):
    """The question waits, or is being worked on."""


class AnswerHead(Struct, tag=1, array_like=True):
    """The answer begins; `rows`: how many events an export has, where that is known exactly."""

    rows: int | None = None


class Chunk(Struct, tag=2, array_like=True):
    """A piece of the answer."""

    data: bytes


class End(Struct, tag=3, array_like=True):
    """The answer is whole."""


class Refusal(Struct, tag=4, array_like=True):
    """There is no answer, or no more of it."""

    reason: str
    message: str
    retry_after: int | None
    details: bytes
    """A JSON object."""

    @classmethod
    def of(cls, refused: Refused) -> "Refusal":
        """Return the frame of a refusal."""
        return cls(refused.reason, refused.message, refused.retry_after, msgspec.json.encode(refused.details))

    def refused(self) -> Refused:
        """Return the refusal to be raised."""
        details: dict[str, Any] = msgspec.json.decode(self.details)
        return Refused(cast(Reason, self.reason), self.message, retry_after=self.retry_after, details=details)


Frame = Alive | AnswerHead | Chunk | End | Refusal

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Frame).decode
_decode_question: Final = msgspec.json.Decoder(Question).decode


def pack(frame: Frame) -> bytes:
    """Return a frame with its length."""
    return _framed(_encode(frame))


def pack_question(question: Question) -> bytes:
    """Return the frame of a question."""
    return _framed(msgspec.json.encode(question))


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Return the next frame. Raises `ConnectionError` for the end of the connection and for what is no frame."""
    try:
        found: Frame = _decode(await _body(reader, MAX_FRAME))
    except msgspec.MsgspecError as error:
        raise ConnectionError(f"the query process sent what is no frame: {error}") from error
    return found


async def read_question(reader: asyncio.StreamReader) -> Question:
    """Return the question of a connection. Raises `ConnectionError`."""
    try:
        found: Question = _decode_question(await _body(reader, MAX_QUESTION))
    except msgspec.MsgspecError as error:
        raise ConnectionError(f"what was sent is no question: {error}") from error
    return found


async def _body(reader: asyncio.StreamReader, most: int) -> bytes:
    try:
        size = int.from_bytes(await reader.readexactly(4))
        if size > most:
            raise ConnectionError(f"a frame of {size} bytes; {most} are the most")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the connection has ended") from error


# --- the socket ------------------------------------------------------------------------------------------------------


class SocketAddress:
    """The address of the socket in a data directory. It is valid while the object is open.

    A Unix socket's path has at most 107 bytes; on Linux any directory can be named in fewer.
    """

    def __init__(self, data_dir: Path) -> None:
        """Raises `OSError` if there is no such directory."""
        self._fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = Path(f"/proc/self/fd/{self._fd}") if sys.platform.startswith("linux") else data_dir
        self.path = str(folder / SOCKET)

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *raised: object) -> None:
        os.close(self._fd)


def listen(data_dir: Path) -> socket.socket:
    """Return the listening socket of the query process, in place of an earlier one. Raises `OSError`."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (data_dir / SOCKET).unlink(missing_ok=True)
        with SocketAddress(data_dir) as path:
            made.bind(path)
        (data_dir / SOCKET).chmod(0o600)
        made.listen(256)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
