"""Usual batches, from the bytes of a connection to the answer, without a request, a task or a stream for each.

All whole batches that a turn of the event loop brings are taken together, and answered from the log's callback. What is
unusual about a batch (another header, a key that is not valid, a refusal, a quota that waits) makes it go to aiohttp as
the same bytes, so that each of those answers is made in one place. docs/decisions/0035.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from processor.core.events import ndjson
from processor.structured_log import structlog
from server.errors import Refused
from server.http_api.gate import LENGTH
from server.ingest.batch import Batch, Receipt
from server.ingest.inflate import ENCODINGS, Encoding, encoding_of, inflate, kept, refuse_compressed
from server.ingest.intake import MAX_EVENTS
from server.limits.memory_budget import Hold
from server.reads import read_json
from server.services import Services
from server.status import API_HEADERS, NDJSON, POSITION, TABLE, http_body, http_headers, phrase_of
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

MAX_HEAD: Final = 4096
"""Bytes of a head that is usual."""
MAX_BODY: Final = 256 * 1024
"""Bytes of a body that is usual, as sent."""
MAX_TEXT: Final = 1024 * 1024
"""The same when it is inflated."""
ENOUGH: Final = 64 * 1024
"""Bytes of batches that are not kept waiting for others, see `FastPath._turn`."""
TURNS: Final = 16
"""Turns of the loop after which none is."""
MAX_HEADS: Final = 1024
"""Heads that are remembered."""
MAX_DIGITS: Final = 9
"""Of a length, as in `LENGTH`."""

_HEAD: Final = re.compile(rb"POST /v1/ingest HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*\r\n)+")
_FIELD: Final = re.compile(rb"\r\n([^\r\n:]+):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)")
_NEEDED: Final = frozenset({b"host", b"x-api-key", b"content-type", b"content-length"})
_PECULIAR: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"prefer", b"te", b"trailer", b"proxy-connection", b"http2-settings"}
)
"""Headers of which the answer, or where the request ends, depends in other ways than here."""


class Head(NamedTuple):
    """What the head of a usual batch says, besides the length of its body."""

    secret: str
    encoding: Encoding


class KnownHead:
    """A head that was seen before, to recognize it by its bytes."""

    __slots__ = ("before", "behind", "changes", "head", "key")

    def __init__(self, head: Head, before: bytes, behind: bytes) -> None:
        self.head = head
        self.before = before
        """All of it up to the digits of its length."""
        self.behind = behind
        """All behind them, with the blank line."""
        self.key: Key | None = None
        """Its key, as it was found at the number of `changes` of the directory."""
        self.changes = 0


class Arrival:
    """A usual batch, from its head to its answer."""

    __slots__ = (
        "_answer",
        "batch",
        "begin",
        "behind",
        "data",
        "encoding",
        "end",
        "hold",
        "key",
        "missing",
        "parts",
        "patience",
        "sender",
    )

    batch: Batch
    """What it holds, once it is opened."""
    data: bytes
    """All bytes of it, once they are here."""

    def __init__(
        self,
        sender: "Sender",
        key: Key,
        encoding: Encoding,
        hold: Hold,
        begin: int,
        size: int,
        answer: Callable[["Arrival", Receipt | Refused], None],
    ) -> None:
        self.sender = sender
        self.key = key
        self.encoding = encoding
        self.hold = hold
        """What has arrived is reserved in it; given back with the answer."""
        self.begin = begin
        """Where the body begins."""
        self.end = begin + size
        """How many bytes head and body have."""
        self.missing = 0
        """Bytes that are still to come, while the connection waits for them."""
        self.parts: list[bytes] = []
        """What has arrived by then."""
        self.patience: asyncio.TimerHandle | None = None
        """When it waits no longer."""
        self.behind = b""
        """What has arrived behind it."""
        self._answer = answer

    def done(self, outcome: Receipt | Refused, /) -> None:
        """See `Arrived`."""
        self._answer(self, outcome)

    def stop_waiting(self) -> None:
        """Let it take its time: it is here, or has left the fast path."""
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def leave(self) -> None:
        """Leave it to aiohttp, once it is here."""
        self.hold.close()
        self.sender.leave_fast_path(self, self.data)


class Sender(Protocol):
    """The connection that a batch came by."""

    known_head: KnownHead | None
    """The last usual head that came by it."""

    @property
    def is_there(self) -> bool:
        """False once the client has gone."""
        ...

    def answer(self, arrival: Arrival, response: bytes) -> None:
        """Send the answer to the batch."""
        ...

    def force_close(self) -> None:
        """End the connection."""
        ...

    def leave_fast_path(self, arrival: Arrival, data: bytes) -> None:
        """Have aiohttp take the batch: these are all bytes of it."""
        ...


class FastPath:
    """The usual batches of one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._heads: dict[bytes, KnownHead | None] = {}
        """By all of a head but the digits of its length; None: not usual."""
        self._waiting: list[Arrival] = []
        self._size = 0
        """Bytes of them."""
        self._seen = 0
        """How many of these bytes there were in the turn before."""
        self._turns = 0
        """Turns of the loop since the first of them came."""
        self._last: tuple[Key, Receipt, bytes] | None = None
        """The last answer: batches that are taken together often have the same one."""

    def open(self, sender: Sender, data: bytes) -> Arrival | None:
        """Look at the first bytes of a request; None: aiohttp has to take it. Of a batch that is usual so far, one more
        request of its key is under way, and room for these bytes is reserved."""
        known = sender.known_head
        found = None if known is None else _length_in(known, data)
        if known is None or found is None:
            known, found = self._find(data)
            if known is None or found is None:
                return None
            sender.known_head = known
        begin, size = found
        services = self._services
        if not 0 < size <= MAX_BODY or not services.trust.is_fresh:
            return None
        try:
            key = self._key_of(known)
            hold = services.bodies.hold(key.organization, key.id, len(data))
        except Refused:
            return None
        return Arrival(sender, key, known.head.encoding, hold, begin, size, self._answer)

    def _find(self, data: bytes) -> tuple[KnownHead | None, tuple[int, int] | None]:
        """The head that a request begins with, where its body begins, and how long that is."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        length = LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None:
            return None, None
        before, behind = data[: length.start(1)], data[length.end(1) : end + 4]
        spelling = b"%b*%b" % (before, behind[:-2])
        try:
            known = self._heads[spelling]
        except KeyError:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            head = read_head(spelling)
            known = self._heads[spelling] = None if head is None else KnownHead(head, before, behind)
        return known, (end + 4, int(length[1]))

    def _key_of(self, known: KnownHead) -> Key:
        """The key of a head, found anew after each change of the directory. Raises `Refused`."""
        key, changes = known.key, self._services.directory.changes  # the number first: it changes after the keys
        if key is None or known.changes != changes or key.expires is not None:
            key = known.key = self._services.authenticate(known.head.secret, "ingest")
            known.changes = changes
        return key

    def take(self, arrival: Arrival, data: bytes) -> None:
        """A batch has arrived whole, `data`: it is taken with the others of this moment."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        arrival.data = data
        self._waiting.append(arrival)
        self._size += len(data)

    def _turn(self) -> None:
        """Take what has arrived, unless it is little and more has come since the turn before: then others follow.

        Clients that were answered together send their next batches one after the other. Without this the first of them
        was a group and a commit by itself, and all others waited for that. What comes alone waits for one look at the
        sockets, some microseconds.
        """
        if self._seen < self._size < ENOUGH and self._turns < TURNS:
            self._seen = self._size
            self._turns += 1
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self._seen = self._size = self._turns = 0
        waiting, self._waiting = self._waiting, []
        opened: list[Arrival] = []
        size = 0
        is_fresh = self._services.trust.is_fresh
        for each in waiting:
            if not is_fresh:
                each.leave()
                continue
            text_size = self._open_body(each)
            if text_size is None:
                continue
            opened.append(each)
            size += text_size
            if size > MAX_TEXT:  # so that no more than this is inflated before it counts as under way
                self._take_together(opened)
                opened, size = [], 0
        if opened:
            self._take_together(opened)

    def _take_together(self, opened: Sequence[Arrival]) -> None:
        for is_taken, each in zip(self._services.intake.take_together(opened), opened, strict=True):
            if not is_taken:
                each.leave()

    def _open_body(self, arrival: Arrival) -> int | None:
        """Open a batch, bounded while it is inflated, and return how long its text is.

        None: its sender has gone, or it is not usual after all and left to aiohttp."""
        if not arrival.sender.is_there:
            arrival.hold.close()
            return None
        sent, encoding = arrival.data[arrival.begin :], arrival.encoding
        try:
            if encoding == "identity":
                refuse_compressed(sent)
                text = sent
            else:
                text = inflate(sent, encoding, MAX_TEXT)
            records, lines = ndjson.split(text, MAX_EVENTS)
            handling = self._services.handling_of(arrival.key)
            arrival.batch = Batch("http", "json", records, lines, handling, kept(sent, encoding, text))
        except Exception:  # noqa: BLE001 - aiohttp's way meets it again, refuses it or logs it and answers 500
            arrival.leave()
            return None
        return len(text)

    def _answer(self, arrival: Arrival, outcome: Receipt | Refused) -> None:
        """Answer a batch that was taken."""
        arrival.hold.close()
        if isinstance(outcome, Refused):
            self._services.intake.meters.refused("http", outcome)
        sender = arrival.sender
        if not sender.is_there:
            return
        try:
            # One receipt of several batches is of one moment: so is what their key has left.
            last = self._last
            if last is not None and last[0] is arrival.key and last[1] is outcome:
                response = last[2]
            else:
                response = self._response(arrival.key, outcome)
                if isinstance(outcome, Receipt):
                    self._last = arrival.key, outcome, response
            sender.answer(arrival, response)
        except Exception:  # without an answer the client sends the batch again
            log.exception("fast_path_answer_failed")
            sender.force_close()

    def _response(self, key: Key, outcome: Receipt | Refused) -> bytes:
        """The answer as aiohttp would send it."""
        if isinstance(outcome, Refused):
            status, body, headers = TABLE[outcome.reason].http, http_body(outcome), http_headers(outcome)
        else:
            status, body, headers = HTTPStatus.ACCEPTED.value, body_of(outcome), {POSITION: outcome.position}
        limits = self._services.intake.limits(key)
        fields = "".join(
            [f"{name}: {value}\r\n" for each in (API_HEADERS, headers, limits) for name, value in each.items()]
        )
        return (
            f"HTTP/1.1 {status} {phrase_of(status)}\r\n{fields}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n"
        ).encode() + body


def _length_in(known: KnownHead, data: bytes) -> tuple[int, int] | None:
    """Where the body begins and how long it is, if a request begins with a head that is known; None: with another."""
    if not data.startswith(known.before):
        return None
    start = len(known.before)
    stop = data.find(b"\r", start, start + MAX_DIGITS + 1)
    digits = data[start:stop]
    if stop < 0 or not digits.isdigit() or not data.startswith(known.behind, stop):
        return None
    return stop + len(known.behind), int(digits)


def body_of(receipt: Receipt) -> bytes:
    """The body of the answer to a batch that was taken."""
    if not receipt.rejected:
        return b'{"accepted":%d}' % receipt.accepted
    return read_json.encode({"accepted": receipt.accepted, "rejected": receipt.rejected})


def read_head(spelling: bytes) -> Head | None:
    """What a head says, in which something else stands for its length; None if it is not usual.

    In doubt None. What it takes, an HTTP parser has to read in the same way: every field once, nothing folded, no byte
    besides visible ASCII, and nothing that says otherwise than the length where the body ends.
    """
    if _HEAD.fullmatch(spelling) is None:
        return None
    fields = [(name.lower(), value) for name, value in _FIELD.findall(spelling)]
    counts = Counter(name for name, _ in fields)
    if max(counts.values()) > 1 or not counts.keys() >= _NEEDED or counts.keys() & _PECULIAR:
        return None
    values = dict(fields)
    if values[b"content-type"].lower() != NDJSON.encode() or values.get(b"connection", b"keep-alive").lower() not in (
        b"keep-alive",
        b"",
    ):
        return None
    coding = values.get(b"content-encoding", b"").decode("ascii").strip().lower()
    if coding and coding not in ENCODINGS:
        return None
    return Head(values[b"x-api-key"].decode("ascii"), encoding_of(coding))
