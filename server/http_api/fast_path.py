"""Usual batches, from the bytes of a connection to the answer, without a request, a task or a stream for each.

All whole batches that a turn of the event loop brings are taken together, and answered from the log's callback. What is
unusual about a batch (another header, a key that is not valid, a refusal, a quota that waits) makes it go to aiohttp as
the same bytes, so that each of those answers is made in one place. docs/decisions/0035.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import structlog
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from processor.core.events import ndjson
from processor.core.events.lines import size_of
from server.errors import Refused
from server.http_api.gate import LENGTH
from server.ingest.inflate import ENCODINGS, Encoding, encoding_of, inflate, kept, refuse_compressed
from server.ingest.intake import MAX_EVENTS, Batch, Incoming, Receipt
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
MAX_HEADS: Final = 1024
"""Heads that are remembered."""

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


class Arrival(NamedTuple):
    """A usual batch whose head has arrived."""

    key: Key
    encoding: Encoding
    hold: Hold
    """What has arrived is reserved in it; given back with the answer."""
    begin: int
    """Where the body begins."""
    end: int
    """How many bytes head and body have."""


class Sender(Protocol):
    """The connection that a batch came by."""

    @property
    def is_there(self) -> bool:
        """False once the client has gone."""
        ...

    def answer(self, response: bytes) -> None:
        """Send the answer to the batch."""
        ...

    def force_close(self) -> None:
        """End the connection."""
        ...

    def leave_fast_path(self, data: bytes) -> None:
        """Have aiohttp take the batch: these are all bytes of it."""
        ...


class _Whole(NamedTuple):
    """A batch that has arrived whole: these are all bytes of it."""

    sender: Sender
    arrival: Arrival
    data: bytes


def _leave(whole: _Whole) -> None:
    """Leave a batch to aiohttp."""
    whole.arrival.hold.close()
    whole.sender.leave_fast_path(whole.data)


class FastPath:
    """The usual batches of one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._heads: dict[bytes, Head | None] = {}
        """By all of a head but the digits of its length; None: not usual."""
        self._waiting: list[_Whole] = []

    def open(self, data: bytes) -> Arrival | None:
        """Look at the first bytes of a request; None: aiohttp has to take it. Of a batch that is usual so far, one more
        request of its key is under way."""
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        length = LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if length is None:
            return None
        size = int(length[1])
        spelling = b"%b*%b" % (data[: length.start(1)], data[length.end(1) : end + 2])
        try:
            head = self._heads[spelling]
        except KeyError:
            head = self._remember(spelling)
        services = self._services
        if head is None or not 0 < size <= MAX_BODY or not services.trust.is_fresh:
            return None
        try:
            key = services.authenticate(head.secret, "ingest")
            hold = services.bodies.begin(key.organization, key.id)
        except Refused:
            return None
        return Arrival(key, head.encoding, hold, end + 4, end + 4 + size)

    def _remember(self, spelling: bytes) -> Head | None:
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        head = self._heads[spelling] = read_head(spelling)
        return head

    def take(self, sender: Sender, arrival: Arrival, data: bytes) -> None:
        """A batch has arrived whole, `data`: it is taken with the others of this turn of the loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append(_Whole(sender, arrival, data))

    def _turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        opened: list[Incoming] = []
        whose: list[_Whole] = []
        size = 0
        for each in waiting:
            incoming = self._open_body(each)
            if incoming is None:
                continue
            opened.append(incoming)
            whose.append(each)
            size += size_of(incoming.batch.records)
            if size > MAX_TEXT:  # so that no more than this is inflated before it counts as under way
                self._take_together(opened, whose)
                opened, whose, size = [], [], 0
        if opened:
            self._take_together(opened, whose)

    def _take_together(self, opened: Sequence[Incoming], whose: Sequence[_Whole]) -> None:
        for is_taken, each in zip(self._services.intake.take_together(opened), whose, strict=True):
            if not is_taken:
                _leave(each)

    def _open_body(self, whole: _Whole) -> Incoming | None:
        """The batch of a request; None: its sender has gone, or it is not usual after all and left to aiohttp."""
        if not whole.sender.is_there:
            whole.arrival.hold.close()
            return None
        try:
            incoming = self._opened(*whole)
        except Exception:  # noqa: BLE001 - aiohttp's way meets it again, logs it and answers 500
            incoming = None
        if incoming is None:
            _leave(whole)
        return incoming

    def _opened(self, sender: Sender, arrival: Arrival, data: bytes) -> Incoming | None:
        """The batch of a request, bounded while it is inflated, with how it is answered; None: it is not usual."""
        services, key = self._services, arrival.key
        if not services.trust.is_fresh:
            return None
        sent = data[arrival.begin :]
        try:
            if arrival.encoding == "identity":
                refuse_compressed(sent)
                text = sent
            else:
                text = inflate(sent, arrival.encoding, MAX_TEXT)
        except Refused:
            return None
        records, lines = ndjson.split(text, MAX_EVENTS)
        batch = Batch("http", "json", records, lines, services.handling_of(key), kept(sent, arrival.encoding, text))

        def done(outcome: Receipt | Refused) -> None:
            arrival.hold.close()
            if isinstance(outcome, Refused):
                services.intake.meters.refused("http", outcome)
            if sender.is_there:
                try:
                    sender.answer(self._response(key, outcome))
                except Exception:  # without an answer the client sends the batch again
                    log.exception("fast_path_answer_failed")
                    sender.force_close()

        return Incoming(key, batch, done)

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
