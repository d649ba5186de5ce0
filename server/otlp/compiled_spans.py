"""Spans by the compiled kernel, where it runs: `span_event` is its twin.

Most spans of an application are like others before them. Once a shape (`span_plans`) has come twice, the twin makes a
plan for it; from then on the kernel makes of a span's bytes the line and the digest that the twin would make. A plan is
only used if it has made, of the span at hand and of a copy in which everything that is free is another, what the twin
makes of both. Whatever has no plan, or is not plainly encoded, the twin decides.
"""

from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from processor.core.events.prices.pricing import Sent
from processor.core.kernel.loaded import kernel
from processor.structured_log import structlog
from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.otlp.attribute_names import TAG_PREFIXES
from server.otlp.content import Content
from server.otlp.event_ids import hashed_before
from server.otlp.extra import MAX_LINE, encode
from server.otlp.kinds import Which, drop_reason, is_kept, kind_of
from server.otlp.protobuf_spans import SHORT, read, value_of
from server.otlp.span_event import Context, event_of, reading_of
from server.otlp.span_plans import (
    COPIED,
    COUNTED,
    DECIDES,
    LEFT_TO_THE_TWIN,
    MAX_NAMED,
    MEANING,
    NAMED,
    Plan,
    pieces_of,
    plan_of,
)
from server.otlp.spans import BadSpan
from server.otlp.tokens import MAX_TOKENS
from server.otlp.values import MAX_VALUE

log = structlog.get_logger(__name__)

MAX_PLANS: Final = 256
"""Plans of one generation; there are two."""
MAX_SEEN: Final = 4096
"""Shapes that came once, by their hashes."""
MAX_JSON: Final = 4096
"""Values whose JSON is remembered, of up to `SHORT` bytes."""


class Made(NamedTuple):
    """What the kernel makes of a span without the others of its request."""

    plan: Plan
    key: bytes
    """Trace id and span id."""
    parent: bytes
    """The same of its parent; empty: it has none."""
    flags: int
    input_tokens: int | None
    output_tokens: int | None
    event: tuple[bytes, int] | None
    """Line and digest of a span that is kept, if its parent stays the one that was sent and it is no wrapper."""
    sent: Sent | None


_made = partial(tuple.__new__, Made)

Taken = Made | bytes | None
"""bytes: a shape that has no plan yet; None: the span is left to the twin."""


class PlannedSpans:
    """The plans for one setting of what is kept, whatever project spans are of.

    They are bounded, and a shape that goes on coming keeps its plan, however many new ones come beside it: a full
    generation of plans becomes the former one, and what is used of that comes over into the next.
    """

    def __init__(self, which: Which, content: Content) -> None:
        self._which: Which = which
        self._content: Content = content
        self._plans: dict[bytes, Plan] = {}
        self._former: dict[bytes, Plan] = {}
        self._seen: set[int] = set()

    def take(self, spans: list[bytes], project: str, context: Context) -> list[Taken]:
        """What becomes of each of some spans of a scope."""
        found = self._made(spans, project, context)
        if self._former and self._bring_over(found):
            found = self._made(spans, project, context)
        return found

    def _made(self, spans: list[bytes], project: str, context: Context) -> list[Taken]:
        assert kernel is not None
        found: list[Taken] = kernel.span_lines(
            spans,
            context.scope.encode(),
            hashed_before(project),
            self._plans,
            pieces_of(context),
            _json_of,
            sha256,
            _made,
        )
        return found

    def _bring_over(self, found: list[Taken]) -> bool:
        """Bring plans of the former generation over for shapes that have none; whether there were any."""
        named = [each for each in found if isinstance(each, bytes) and each in self._former]
        for shape in named:
            plan = self._former.pop(shape, None)  # gone where it came twice, or where all of these are too many
            if plan is not None:
                self._keep(shape, plan)
        return bool(named)

    def _keep(self, shape: bytes, plan: Plan) -> None:
        if len(self._plans) >= MAX_PLANS:
            self._former, self._plans = self._plans, {}
        self._plans[shape] = plan

    def learn(self, shape: bytes, raw: bytes, context: Context) -> bool:
        """Make a plan for a shape that has come, once it has come before; whether that was done, which takes as long as
        some ten spans by the twin."""
        if shape in self._plans:
            return False
        mark = hash(shape)
        if mark not in self._seen:
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return False
        is_right = False
        try:
            plan = plan_of(read(raw), len(pb.Span.FromString(raw).attributes), context, self._which, self._content)
            self._keep(shape, plan)
            # Of the span at hand it may leave to the twin what is out of the ordinary, like a duration.
            is_right = self._is_right(raw, context) is not False and self._is_right(_changed(raw), context) is True
        except BadSpan:
            pass
        except Exception:  # a plan only saves time: what fails here must not fail the request
            log.exception("otlp_plan_failed")
        finally:
            if not is_right:
                self._plans.pop(shape, None)
                self._keep(shape, LEFT_TO_THE_TWIN)
        return True

    def _is_right(self, raw: bytes, context: Context) -> bool | None:
        """Whether the kernel makes of a span what the twin makes of it; None: it leaves the span to the twin."""
        (made,) = self.take([raw], _ANY_PROJECT, context)
        if made is None:
            return None
        span = read(raw)
        reading = reading_of(span, context)
        kind = kind_of(reading.found, span.name)
        tokens, answer = reading.usage.input_tokens, reading.usage.output_tokens
        parent = span.trace_id + span.parent_id if span.parent_id else b""
        plan = made.plan if isinstance(made, Made) else LEFT_TO_THE_TWIN
        if not is_kept(kind, self._which):
            drop = drop_reason(span.attributes)
            event = sent = None
        else:
            drop = "other"
            made_by_twin = event_of(_ANY_PROJECT, reading, kind, parent, context, self._content, is_wrapper=False)
            event, sent = (made_by_twin.line, made_by_twin.digest), made_by_twin.sent
        same = Made(plan, span.trace_id + span.span_id, parent, span.flags, tokens, answer, event, sent)
        return made == same and (plan.kind, plan.is_kept, plan.drop) == (kind, event is not None, drop)


_ANY_PROJECT: Final = "p"


def _changed(raw: bytes) -> bytes:
    """The same span with other ids and times, and another value wherever its shape allows one."""
    span = pb.Span.FromString(raw)
    span.trace_id, span.span_id = bytes(each ^ 0x5A for each in span.trace_id[::-1]), b"\x80\0\0\0\0\0\1\xff"
    span.parent_span_id = b"" if any(span.parent_span_id) else b"\1\2\3\4\5\6\7\x88"
    span.start_time_unix_nano = span.start_time_unix_nano // 2 + 86_399_999_999_999
    span.end_time_unix_nano = span.start_time_unix_nano + 1_234_500_000
    for place, each in enumerate(span.attributes):
        try:
            pair = pb.KeyValue.FromString(each)
            value = pb.AnyValue.FromString(pair.value)
        except DecodeError:  # it stays as damaged as it is
            continue
        name = pair.key.decode("utf-8", "replace")
        meaning = MEANING.get(name, DECIDES if name.startswith(TAG_PREFIXES) else COPIED)
        kind = value.WhichOneof("value")
        if meaning == COPIED and kind == "string_value":
            value.string_value = b'"\t\\' + value.string_value[:100]
        elif meaning == COPIED and kind == "bool_value":
            value.bool_value = not value.bool_value
        elif meaning in {COPIED, COUNTED} and kind == "int_value" and 0 <= value.int_value < MAX_TOKENS:
            value.int_value += 1
        elif meaning == NAMED and kind == "string_value" and 0 < len(value.string_value) <= MAX_NAMED:
            value.string_value = b"x" if value.string_value != b"x" else b"y"
        else:
            continue
        pair.value = value.SerializeToString()
        span.attributes[place] = pair.SerializeToString()
    return span.SerializeToString()


_json: dict[bytes, bytes] = {}


def _json_of(raw: bytes) -> bytes:
    """An `AnyValue` as JSON."""
    found = _json.get(raw)
    if found is None:
        found = encode(value_of(raw))
        if len(raw) <= SHORT:
            if len(_json) >= MAX_JSON:
                _json.clear()
            _json[raw] = found
    return found


if kernel is not None:
    kernel.configure_spans(
        [(name.encode(), meaning) for name, meaning in MEANING.items()],
        [prefix.encode() for prefix in TAG_PREFIXES],
        MAX_VALUE,
        MAX_LINE,
        MAX_TOKENS,
    )
