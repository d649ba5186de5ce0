"""The spans of a request, looked at before any of them is an event: which are kept, and how they hang together."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from server.otlp.compiled_spans import Made, PlannedSpans
from server.otlp.content import Content
from server.otlp.kinds import Kind, Which, drop_reason, is_kept, kind_of
from server.otlp.span_event import Context, OtlpEvent, Reading, context_of, event_of, reading_of
from server.otlp.span_parents import Node
from server.otlp.spans import BadSpan, SpanRequest

TURN: Final = 128
"""Spans that are read in one turn of the event loop."""


class KeptSpan(Struct, gc=False):
    """A span that becomes an event."""

    place: int
    """Among all spans of the request that could be read."""
    raw: Any
    reading: Reading | None
    """None: it is read again."""
    kind: Kind
    context: Context
    made: Made | None = None
    """What the kernel has made of it."""


class Survey:
    """The spans of a request: which are kept, how they hang together, what is wrong with the others."""

    def __init__(self, which: Which, content: Content, planned: PlannedSpans | None = None, project: str = "") -> None:
        self.nodes: list[Node] = []
        self.kept: list[KeptSpan] = []
        self.dropped: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.first_fault = ""
        self._which: Which = which
        self._content = content
        self._planned = planned
        self._project = project
        self._spans = 0
        """That have been looked at."""
        self._learned = 0
        """Plans made meanwhile: one for `TURN` spans, so that spans of ever new shapes cost little more than others."""

    async def run(self, request: SpanRequest, *, remember: bool) -> None:
        """Look at every span."""
        count, spans = 0, len(request)
        for group in request.groups:
            context = context_of(group.origin, self._content, spans)
            for start in range(0, len(group.spans), TURN):
                raws = group.spans[start : start + TURN]
                self._look_at(raws, request, context, remember=remember)
                count += len(raws)
                if count >= TURN:
                    count = 0
                    await asyncio.sleep(0)

    def _look_at(self, raws: Sequence[Any], request: SpanRequest, context: Context, *, remember: bool) -> None:
        """Look at some spans of a scope."""
        planned = self._planned
        self._spans += len(raws)
        if planned is None or request.encoding == "json":
            for raw in raws:
                self._look(raw, request, context, remember=remember)
            return
        for raw, taken in zip(raws, planned.take(list(raws), self._project, context), strict=True):
            if isinstance(taken, Made):
                self._add(raw, taken, context, remember=remember)
                continue
            if taken is not None and self._learned * TURN < self._spans:
                self._learned += planned.learn(taken, raw, context)
            self._look(raw, request, context, remember=remember)

    def reject(self, reason: str, message: str) -> None:
        """Count a span that cannot be an event."""
        self.bad[reason] += 1
        self.first_fault = self.first_fault or message

    def _look(self, raw: Any, request: SpanRequest, context: Context, *, remember: bool) -> None:
        """Look at a span by itself."""
        try:
            span = request.read(raw)
        except BadSpan as fault:
            self.reject(fault.reason, str(fault))
            return
        reading = reading_of(span, context)
        kind = kind_of(reading.found, span.name)
        trace_id, parent_id = span.trace_id, span.parent_id
        node = Node(
            trace_id + span.span_id,
            trace_id + parent_id if parent_id else b"",
            kind.role,
            is_kept(kind, self._which),
            span.flags,
        )
        if kind.role == "call":
            node.input_tokens, node.output_tokens = reading.usage.input_tokens, reading.usage.output_tokens
        if node.is_kept:
            self.kept.append(KeptSpan(len(self.nodes), raw, reading if remember else None, kind, context))
        else:
            self.dropped[drop_reason(span.attributes)] += 1
        self.nodes.append(node)

    def _add(self, raw: bytes, made: Made, context: Context, *, remember: bool) -> None:
        """`_look`, at a span that the kernel has read."""
        plan, key, parent, flags, tokens, answer, _, _ = made
        role = plan.kind.role
        if plan.is_kept:
            kept = KeptSpan(len(self.nodes), raw, None, plan.kind, context, made if remember else None)
            self.kept.append(kept)
        else:
            self.dropped[plan.drop] += 1
        node = Node(key, parent, role, plan.is_kept, flags)
        if role == "call":
            node.input_tokens, node.output_tokens = tokens, answer
        self.nodes.append(node)

    def event(self, each: KeptSpan, request: SpanRequest, parent: bytes, *, is_wrapper: bool) -> OtlpEvent:
        """The event of a span; `parent`: as it is kept (`Tree.parents`). To be asked for once."""
        made = each.made or self._made_again(each, request)
        if made is not None and made.event is not None and made.parent == parent and not is_wrapper:
            each.made = None
            return OtlpEvent(*made.event, made.sent)
        reading = each.reading or reading_of(request.read(each.raw), each.context)
        each.made = each.reading = None
        return event_of(self._project, reading, each.kind, parent, each.context, self._content, is_wrapper=is_wrapper)

    def _made_again(self, each: KeptSpan, request: SpanRequest) -> Made | None:
        """What the kernel makes of a span that was not remembered."""
        if self._planned is None or each.reading is not None or request.encoding == "json":
            return None
        (taken,) = self._planned.take([each.raw], self._project, each.context)
        return taken if isinstance(taken, Made) else None
