"""Whatever the compiled kernel makes of spans, its twin makes, too: lines, digests, what is dropped, what is bad."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import capture_logs

from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.otlp import protobuf_spans
from server.otlp.attribute_names import PLACES, TAG_PREFIXES
from server.otlp.compiled_spans import PlannedSpans
from server.otlp.content import Content
from server.otlp.kinds import Which
from server.otlp.span_event import OtlpEvent, context_of
from server.otlp.span_parents import Tree
from server.otlp.span_plans import COPIED, DECIDES, MEANING
from server.otlp.span_survey import Survey
from tests.support.otlp import with_binary_ids
from tools.record_spans import SPANS

ROUNDS: Final = 3
"""Requests of a number, with spans of the same shapes."""
FAMILIES: Final = 6
"""Of spans that are alike, in a request."""
ALIKE: Final = 8
GROUP: Final = 3
"""Most spans of a scope."""
_NAMES: Final = [*sorted(PLACES), *(prefix + name for prefix in TAG_PREFIXES for name in ("team", "userId", "ä", ""))]
_TEXTS: Final = (
    b"",
    b"a",
    b"openai",
    b"gpt-4o-mini",
    b"429",
    b"17",
    b"-1",
    b'with "quotes", \\ and \n\x00\x1f\x7f',
    "ä€😀\u2028".encode() * 3,
    b"not \xff utf-8",
    b"\xed\xa0\x80",
    b"x" * 199 + "ä".encode(),
    b"y" * 200,
    b"z" * 257,
    b"w" * 8192,
    b"v" * 8193,
    b'{"model":"m","stream":true,"n":1}',
    b'{"anthropic":{"cacheReadInputTokens":7},"openai":{"reasoningTokens":3}}',
    b"embed this",
    b"ai.streamText.doStream",
    b"LLM",
    b"AGENT",
)
_NUMBERS: Final = (0, 1, 7, 127, 128, 255, 256, 65_535, 65_536, 2**32, 2**53 - 1, 2**53, 2**63 - 1, -1, -(2**63))
_LASTED: Final = (0, 1, 999, 1000, 10**6, 1_234_500_000, 10**15 - 1, 10**15)
_INSTANTS: Final = (0, 1, 999, 1000, 2**63, 2**64 - 1, 951_782_400_000_000_000, 4_107_542_399_999_999_999)


class Recorded:
    """A span that a library sent, and its scope."""

    def __init__(self, raw: bytes, scope: bytes) -> None:
        self.raw = raw
        self.scope = scope


@cache
def recorded() -> list[Recorded]:
    """All spans without events of all recordings."""
    found = []
    for path in sorted(SPANS.glob("*.json")):
        if path.name.endswith(".calls.json"):
            continue
        body = ParseDict(with_binary_ids(json.loads(path.read_text())), ExportTraceServiceRequest())
        for resource in pb.ExportRequest.FromString(body.SerializeToString()).resource_spans:
            for scope in resource.scope_spans:
                plain = [raw for raw in scope.spans if not pb.Span.FromString(raw).events]
                found += [Recorded(raw, scope.scope.name) for raw in plain]
    return found


def compare(number: int) -> Counter[str]:
    """Compare both ways on the requests that a number stands for; returns what was counted.

    Raises `AssertionError` where they differ, or where a plan could not be made.
    """
    with capture_logs() as logs:
        counts = _compared(number)
    assert not logs, logs
    return counts


def _compared(number: int) -> Counter[str]:
    rng = random.Random(number)
    which: Which = rng.choice(("genai", "all"))
    content: Content = rng.choice(("keep", "drop"))
    planned = PlannedSpans(which, content)
    families = [_family(rng) for _ in range(FAMILIES)]
    counts: Counter[str] = Counter()
    for _ in range(2):
        learn(planned, _request(rng, families), content)
    for _ in range(ROUNDS):
        body = _request(rng, families)
        remember = rng.random() < 0.7
        by_twin, _ = outcome(body, Survey(which, content, project="p"), remember=remember)
        survey = Survey(which, content, planned, "p")
        found, made = outcome(body, survey, remember=remember)
        for one, other in zip(found, by_twin, strict=True):
            assert one == other, f"{one!r}\nis not what the twin makes\n{other!r}"
        counts["spans sent"] += len(survey.nodes) + survey.bad.total()
        counts["spans made"] += made
    return counts


def learn(planned: PlannedSpans, body: bytes, content: Content) -> None:
    """Make a plan for each shape in a request that has come before."""
    for group in protobuf_spans.open_request(body).groups:
        context = context_of(group.origin, content, 1)
        for raw, taken in zip(group.spans, planned.take(list(group.spans), "p", context), strict=True):
            if isinstance(taken, bytes):
                planned.learn(taken, raw, context)


def outcome(body: bytes, survey: Survey, *, remember: bool) -> tuple[list[object], int]:
    """What a request comes to, and how many of its lines the kernel has made by itself."""
    opened = protobuf_spans.open_request(body)
    asyncio.run(survey.run(opened, remember=remember))
    tree = Tree(survey.nodes)
    parents, wrappers = tree.parents(), tree.wrappers()
    made = sum(each.made is not None for each in survey.kept)
    kept: list[tuple[object, ...]] = [(each.place, each.kind, each.raw) for each in survey.kept]
    events: list[OtlpEvent] = [
        survey.event(each, opened, parents[each.place], is_wrapper=each.place in wrappers) for each in survey.kept
    ]
    return [*events, kept, survey.nodes, survey.dropped, survey.bad, survey.first_fault], made


# --- requests --------------------------------------------------------------------------------------------------------


def _family(rng: random.Random) -> Recorded:
    """A span of another shape than was recorded, mostly."""
    base = rng.choice(recorded())
    span = pb.Span.FromString(base.raw)
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        rng.choice(_RESHAPE)(rng, span)
    scope = base.scope if rng.random() < 0.9 else rng.choice((b"ai", b"", b"x" * 9000, b"\xff"))
    return Recorded(span.SerializeToString(), scope)


def _add(rng: random.Random, span: Any) -> None:
    name = rng.choice(_NAMES).encode() if rng.random() < 0.7 else rng.choice((*_TEXTS, b"n" * 200, b"n" * 201))
    pair = pb.KeyValue(key=name, value=_value(rng).SerializeToString())
    span.attributes.insert(rng.randrange(len(span.attributes) + 1), pair.SerializeToString())


def _remove(rng: random.Random, span: Any) -> None:
    if span.attributes:
        del span.attributes[rng.randrange(len(span.attributes))]


def _repeat(rng: random.Random, span: Any) -> None:
    if span.attributes:
        span.attributes.append(rng.choice(span.attributes))


def _shuffle(rng: random.Random, span: Any) -> None:
    every = list(span.attributes)
    rng.shuffle(every)
    del span.attributes[:]
    span.attributes.extend(every)


def _end(rng: random.Random, span: Any) -> None:
    span.status.code = rng.choice((0, 1, 2, 3))
    span.status.message = rng.choice(_TEXTS)


def _rename(rng: random.Random, span: Any) -> None:
    span.name = rng.choice(_TEXTS)


def _clear(_: random.Random, span: Any) -> None:
    del span.attributes[:]


_RESHAPE: Final[tuple[Callable[[random.Random, Any], None], ...]] = (
    *(_add,) * 8,
    *(_remove,) * 3,
    _repeat,
    _shuffle,
    _end,
    _rename,
    _clear,
)


def _value(rng: random.Random) -> Any:
    match rng.randrange(9):
        case 0 | 1 | 2:
            return pb.AnyValue(string_value=rng.choice(_TEXTS))
        case 3 | 4:
            return pb.AnyValue(int_value=rng.choice(_NUMBERS))
        case 5:
            return pb.AnyValue(bool_value=rng.random() < 0.5)
        case 6:
            return pb.AnyValue(double_value=rng.choice((0.0, -0.0, 0.7, 1e22, 5e-324, 12.0, float("nan"), -1.5)))
        case 7:
            values = [_value(rng).SerializeToString() for _ in range(rng.randrange(3))]
            return pb.AnyValue(array_value=pb.ArrayValue(values=values).SerializeToString())
    return pb.AnyValue(bytes_value=rng.randbytes(5)) if rng.random() < 0.5 else pb.AnyValue()


def _like(rng: random.Random, family: Recorded, ids: list[bytes]) -> bytes:
    """A span of a family, with values of its own."""
    span = pb.Span.FromString(family.raw)
    span.trace_id, span.span_id = b"t" * 16 if rng.random() < 0.8 else rng.randbytes(16), rng.randbytes(8)
    span.parent_span_id = rng.choice((b"", b"", rng.randbytes(8), *ids[-6:]))
    ids.append(span.span_id)
    span.flags = rng.choice((0, 0x100, 0x300))
    started = 1_776_679_200_000_000_000 + rng.randrange(10**17) if rng.random() < 0.9 else rng.choice(_INSTANTS)
    lasted = rng.choice(_LASTED) if rng.random() < 0.2 else rng.randrange(1000, 10 ** rng.randrange(4, 12))
    span.start_time_unix_nano, span.end_time_unix_nano = started, min(started + lasted, 2**64 - 1)
    is_alike = rng.random() < 0.8
    for place, raw in enumerate(span.attributes):
        pair = pb.KeyValue.FromString(raw)
        if rng.random() < 0.5 and not (is_alike and _decides(pair.key.decode("utf-8", "replace"))):
            pair.value = _other(rng, pair.value)
            span.attributes[place] = pair.SerializeToString()
    if rng.random() < 0.03:
        rng.choice(_UNUSUAL)(rng, span)
    raw = span.SerializeToString()
    return _damaged(rng, raw) if rng.random() < 0.05 else raw


def _decides(name: str) -> bool:
    return MEANING.get(name, DECIDES if name.startswith(TAG_PREFIXES) else COPIED) == DECIDES


def _other(rng: random.Random, raw: bytes) -> bytes:
    """Another value, mostly of the same type."""
    value = pb.AnyValue.FromString(raw)
    kind = value.WhichOneof("value")
    if rng.random() < 0.03:
        return bytes(_value(rng).SerializeToString())
    if kind == "string_value" and rng.random() < 0.3:
        value.string_value = rng.choice(_TEXTS)
    elif kind == "int_value":
        value.int_value = rng.choice(_NUMBERS) if rng.random() < 0.2 else rng.randrange(100_000)
    elif kind == "bool_value":
        value.bool_value = rng.random() < 0.5
    elif kind == "double_value":
        value.double_value = rng.random()
    return value.SerializeToString()


def _with_event(rng: random.Random, span: Any) -> None:
    event = pb.Event(name=rng.choice((b"exception", b"first_token")), time_unix_nano=span.start_time_unix_nano | 5)
    span.events.append(event.SerializeToString())


def _without_ids(rng: random.Random, span: Any) -> None:
    span.trace_id = rng.choice((b"", bytes(16), b"short"))


def _odd_parent(rng: random.Random, span: Any) -> None:
    span.parent_span_id = rng.choice((bytes(8), b"short", b"longer than eight bytes"))


def _many(rng: random.Random, span: Any) -> None:
    for number in range(rng.choice((110, 130))):
        span.attributes.append(pb.KeyValue(key=b"k%d" % number, value=b"\x18\x01").SerializeToString())


def _long(rng: random.Random, span: Any) -> None:
    for number in range(rng.choice((20, 24, 30))):
        value = pb.AnyValue(string_value=b"l" * 8100).SerializeToString()
        span.attributes.append(pb.KeyValue(key=b"l%d" % number, value=value).SerializeToString())


_UNUSUAL: Final[tuple[Callable[[random.Random, Any], None], ...]] = (
    _with_event,
    _without_ids,
    _odd_parent,
    _many,
    _long,
)


_FIELDS: Final = (b"\x1a\x03a=b", b"\x30\x03", b"\x6a\x00", b"\x2a\x01x", b"\x48\x01", b"\xa2\x06\x00")
"""Its state, kind, links; its name once more, attributes of another type, a field of no number that is known."""


def _damaged(rng: random.Random, raw: bytes) -> bytes:
    """A span with bytes of its own changed, cut off, or behind its end."""
    match rng.randrange(4):
        case 0:
            place = rng.randrange(len(raw))
            return raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :]
        case 1:
            return raw[: rng.randrange(len(raw))]
        case 2:
            return raw + rng.choice(
                (b"\x1a\x03a=b", b"\x30\x03", b"\x6a\x00", b"\x2a\x01x", b"\x48\x01", b"\xa2\x06\x00")
            )
    return raw + rng.randbytes(rng.randrange(1, 6))


def _request(rng: random.Random, families: list[Recorded]) -> bytes:
    ids: list[bytes] = []
    request = pb.ExportRequest()
    resource = request.resource_spans.add()
    if rng.random() < 0.8:
        name = rng.choice((b"deployment.environment", b"telemetry.sdk.version", b"service.name"))
        pair = pb.KeyValue(key=name, value=pb.AnyValue(string_value=rng.choice(_TEXTS)).SerializeToString())
        resource.resource.attributes.append(pair.SerializeToString())
    for _ in range(ALIKE):
        for family in families:
            scope = resource.scope_spans.add()
            scope.scope.name, scope.scope.version = family.scope, rng.choice((b"", b"1"))
            scope.spans.extend(_like(rng, family, ids) for _ in range(rng.randrange(1, GROUP + 1)))
    return request.SerializeToString()
