"""The export of spans, the same for both APIs: read a request, decide on its spans, have intake make them durable.

Knows neither HTTP nor gRPC: the body of a request comes in, an `ExportAnswer` goes out, a refused one raises `Refused`.
"""

from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from processor.core.events.prices.pricing import Sent
from processor.core.kernel.loaded import kernel
from processor.structured_log import structlog
from server.errors import Refused
from server.ingest.batch import Batch, Receipt
from server.ingest.intake import Intake
from server.otlp import json_spans, protobuf_spans
from server.otlp.compiled_spans import PlannedSpans
from server.otlp.content import Content
from server.otlp.kinds import Which
from server.otlp.span_parents import Tree
from server.otlp.span_survey import Survey
from server.otlp.spans import BadRequest, Encoding, SpanRequest
from server.tenancy.keys import Key

log = structlog.get_logger(__name__)

MAX_RETRY_AFTER: Final = 5
"""Seconds: exporters give up after ten in all, and drop what they hold for an answer that asks for more."""
PART: Final = 512
"""Events that are handed on at once: the batch of an exporter by default."""
PART_BYTES: Final = 2 * 1024 * 1024
REMEMBERED: Final = 2 * 1024 * 1024
"""Bytes of a body up to which its spans are read once; those of a larger one are read again when their turn comes, so
that a request never stands in memory as objects."""
SPAN_BYTES: Final = 256
"""What is held of a span while its request is looked at."""

_OPEN: Final[dict[Encoding, Callable[[bytes], SpanRequest]]] = {
    "protobuf": protobuf_spans.open_request,
    "json": json_spans.open_request,
}


class ExportAnswer(Struct, frozen=True):
    """The answer to a request all of whose good spans are durable."""

    position: str
    rejected: int
    """Spans that were not taken."""
    message: str
    """Why the first of them was not; empty: none was rejected."""


class SpanExport:
    """Takes the requests of both APIs."""

    def __init__(self, intake: Intake, which: Which = "genai", content: Content = "keep") -> None:
        self._intake = intake
        self._which: Which = which
        self._content: Content = content
        self._planned = PlannedSpans(which, content) if kernel is not None else None

    async def accept(self, key: Key, body: bytes, encoding: Encoding, reserve: Callable[[int], None]) -> ExportAnswer:
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

    async def _accept(self, key: Key, body: bytes, encoding: Encoding, reserve: Callable[[int], None]) -> ExportAnswer:
        request = _OPEN[encoding](body)
        spans = len(request)
        reserve(spans * SPAN_BYTES)
        survey = Survey(self._which, self._content, self._planned, key.project)
        await survey.run(request, remember=len(body) <= REMEMBERED)
        tree = Tree(survey.nodes)
        wrappers = tree.wrappers()
        parts = _parts(survey, request, tree.parents(), wrappers)
        receipt = await self._intake.accept_parts(key, "otlp", len(survey.kept), parts)
        return self._answer(survey, receipt, wrappers, spans)

    def _answer(self, survey: Survey, receipt: Receipt, wrappers: set[int], spans: int) -> ExportAnswer:
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
        return ExportAnswer(receipt.position, rejected, message)


def _parts(survey: Survey, request: SpanRequest, parents: list[bytes], wrappers: set[int]) -> Iterator[Batch]:
    records: list[bytes] = []
    digests: list[int] = []
    sent: list[Sent | None] = []
    size = first = 0
    for number, each in enumerate(survey.kept):
        event = survey.event(each, request, parents[each.place], is_wrapper=each.place in wrappers)
        records.append(event.line)
        digests.append(event.digest)
        sent.append(event.sent)
        size += len(event.line)
        if len(records) >= PART or size >= PART_BYTES:
            yield Batch("otlp", "json", records, range(first, number + 1), "lenient", digests=digests, sent=sent)
            records, digests, sent, size, first = [], [], [], 0, number + 1
    if records:
        lines = range(first, first + len(records))
        yield Batch("otlp", "json", records, lines, "lenient", digests=digests, sent=sent)


def soon(refused: Refused) -> Refused:
    """The same refusal with a wait that exporters accept."""
    if refused.retryable:
        refused.retry_after = min(refused.retry_after or 1, MAX_RETRY_AFTER)
    return refused


def failed() -> Refused:
    """The refusal of what is the server's fault: exporters drop what is answered otherwise."""
    return Refused("unavailable", "The server failed; retry the request unchanged", retry_after=1)
