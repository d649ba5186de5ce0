"""The export of spans, the same for both APIs: read a request, decide on its spans, have intake make them durable.

Knows neither HTTP nor gRPC: the body of a request comes in, an `Answer` goes out, and a refused one raises `Refused`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import structlog
from msgspec import Struct

from server.errors import Refused
from server.ingest.intake import Batch, Intake, Receipt
from server.otlp import json_spans, protobuf_spans
from server.otlp.content import Content
from server.otlp.event import Context, Reading, context_of, event_of, reading_of
from server.otlp.kinds import Kind, drop_reason, kind_of
from server.otlp.spans import BadRequest, BadSpan, Encoding, Request, Span
from server.otlp.tree import Node, Tree
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

Which = Literal["genai", "all"]
"""Which spans are kept: those of the conventions for models, or all."""

MAX_RETRY_AFTER: Final = 5
"""Seconds: exporters give up after ten in all, and drop what they hold for an answer that asks for more."""
PART: Final = 512
"""Events that are handed on at once: the batch of an exporter by default."""
PART_BYTES: Final = 2 * 1024 * 1024
TURN: Final = 128
"""Spans that are read in one turn of the event loop."""
REMEMBERED: Final = 2 * 1024 * 1024
"""Bytes of a body up to which its spans are read once; those of a larger one are read again when their turn comes, so
that a request never stands in memory as objects."""
SPAN_BYTES: Final = 256
"""What is held of a span while its request is looked at."""

_OPEN: Final[dict[Encoding, Callable[[bytes], Request]]] = {
    "protobuf": protobuf_spans.open_request,
    "json": json_spans.open_request,
}


class Answer(Struct, frozen=True):
    """The answer to a request all of whose good spans are durable."""

    position: str
    rejected: int
    """Spans that were not taken."""
    message: str
    """Why the first of them was not; empty: none was rejected."""


class Kept(Struct, gc=False):
    """A span that becomes an event."""

    place: int
    """Among all spans of the request that could be read."""
    raw: Any
    reading: Reading | None
    """None: it is read again."""
    kind: Kind
    context: Context


class Survey:
    """The spans of a request: which are kept, how they hang together, what is wrong with the others."""

    def __init__(self, which: Which, content: Content) -> None:
        self.nodes: list[Node] = []
        self.kept: list[Kept] = []
        self.dropped: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.first_fault = ""
        self._which = which
        self._content = content

    async def run(self, request: Request, *, remember: bool) -> None:
        """Look at every span."""
        count, spans = 0, len(request)
        for group in request.groups:
            context = context_of(group.origin, self._content, spans)
            for raw in group.spans:
                count += 1
                if not count % TURN:
                    await asyncio.sleep(0)
                try:
                    self._look(raw, request.read(raw), context, remember=remember)
                except BadSpan as fault:
                    self.reject(fault.reason, str(fault))

    def reject(self, reason: str, message: str) -> None:
        """Count a span that cannot be an event."""
        self.bad[reason] += 1
        self.first_fault = self.first_fault or message

    def _look(self, raw: Any, span: Span, context: Context, *, remember: bool) -> None:
        reading = reading_of(span, context)
        kind = kind_of(reading.found, span.name)
        is_kept = kind.role != "other" or self._which == "all"
        trace_id, parent_id = span.trace_id, span.parent_id
        node = Node(trace_id + span.span_id, trace_id + parent_id if parent_id else b"", kind.role, is_kept, span.flags)
        if kind.role == "call":
            node.input_tokens, node.output_tokens = reading.usage.input_tokens, reading.usage.output_tokens
        if is_kept:
            self.kept.append(Kept(len(self.nodes), raw, reading if remember else None, kind, context))
        else:
            self.dropped[drop_reason(span.attributes)] += 1
        self.nodes.append(node)


class Export:
    """Takes the requests of both APIs."""

    def __init__(self, intake: Intake, which: Which = "genai", content: Content = "keep") -> None:
        self._intake = intake
        self._which: Which = which
        self._content: Content = content

    async def accept(self, key: Key, body: bytes, encoding: Encoding, reserve: Callable[[int], None]) -> Answer:
        """Accept a request of `key`, which has been authenticated; `reserve` bounds the memory that it needs besides.

        Returns once every good span is durable. Raises `Refused`, of which none asks for a longer wait than
        `MAX_RETRY_AFTER`; what is a fault of the server is `unavailable`, so that exporters send the spans again.
        """
        try:
            self._intake.admit(key)
            return await self._accept(key, body, encoding, reserve)
        except BadRequest as error:
            raise Refused("bad_batch", str(error)) from None
        except Refused as refused:
            raise soon(refused) from None
        except Exception:
            log.exception("otlp_export_failed")
            raise failed() from None

    async def _accept(self, key: Key, body: bytes, encoding: Encoding, reserve: Callable[[int], None]) -> Answer:
        request = _OPEN[encoding](body)
        spans = len(request)
        reserve(spans * SPAN_BYTES)
        survey = Survey(self._which, self._content)
        await survey.run(request, remember=len(body) <= REMEMBERED)
        tree = Tree(survey.nodes)
        wrappers = tree.wrappers()
        parts = self._parts(key.project, survey, request, tree.parents(), wrappers)
        receipt = await self._intake.accept_parts(key, "otlp", len(survey.kept), parts)
        return self._answer(survey, receipt, wrappers, spans)

    def _parts(
        self, project: str, survey: Survey, request: Request, parents: list[bytes], wrappers: set[int]
    ) -> Iterator[Batch]:
        records: list[bytes] = []
        digests: list[int] = []
        size = first = 0
        for number, each in enumerate(survey.kept):
            reading = each.reading or reading_of(request.read(each.raw), each.context)
            each.reading = None
            line, digest = event_of(
                project,
                reading,
                each.kind,
                parents[each.place],
                each.context,
                self._content,
                is_wrapper=each.place in wrappers,
            )
            records.append(line)
            digests.append(digest)
            size += len(line)
            if len(records) >= PART or size >= PART_BYTES:
                yield Batch("otlp", "json", records, range(first, number + 1), "lenient", digests=digests)
                records, digests, size, first = [], [], 0, number + 1
        if records:
            yield Batch("otlp", "json", records, range(first, first + len(records)), "lenient", digests=digests)

    def _answer(self, survey: Survey, receipt: Receipt, wrappers: set[int], spans: int) -> Answer:
        """The answer, counted in `/metrics`."""
        calls = sum(each.kind.role == "call" and each.place not in wrappers for each in survey.kept)
        others = len(survey.kept) - calls
        for rejection in receipt.rejected:
            each = survey.kept[rejection.line]
            is_call = each.kind.role == "call" and each.place not in wrappers
            calls, others = calls - is_call, others - (not is_call)
            survey.reject("rejected", rejection.message)
        meters = self._intake.meters
        meters.spans("call", calls)
        meters.spans("span", others)
        for reason, count in survey.dropped.items():
            meters.dropped_spans(reason, count)
        for reason, count in survey.bad.items():
            meters.bad_spans(reason, count)
        rejected = survey.bad.total()
        message = f"{rejected} of {spans} spans were rejected; the first: {survey.first_fault}" if rejected else ""
        return Answer(receipt.position, rejected, message)


def soon(refused: Refused) -> Refused:
    """The same refusal with a wait that exporters accept."""
    if refused.retryable:
        refused.retry_after = min(refused.retry_after or 1, MAX_RETRY_AFTER)
    return refused


def failed() -> Refused:
    """The refusal of what is the server's fault: exporters drop what is answered otherwise."""
    return Refused("unavailable", "The server failed; retry the request unchanged", retry_after=1)
