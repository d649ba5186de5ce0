"""A span as an event: one line of JSON that intake takes under `lenient` handling, as if it had been sent like that."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

import msgspec
import xxhash
from msgspec import Raw, Struct

from processor.core.clock import DAY
from processor.core.events.fields import MAX_TAGS, MAX_TEXT
from processor.core.events.prices.pricing import RAW_PROVIDER, Sent
from server.otlp.attribute_names import TAG_PREFIXES, Known, Target, read
from server.otlp.content import Content
from server.otlp.event_ids import event_id
from server.otlp.extra import OriginJson, encode, events_json, kept, line_of, origin_json
from server.otlp.kinds import Kind
from server.otlp.outcomes import outcome_of
from server.otlp.provider_metadata import add_counts
from server.otlp.providers import provider_of
from server.otlp.spans import TRACE_ID, Origin, Span
from server.otlp.tokens import DETAILS, SpanUsage, UsageSource, count_of, normalize

UNKNOWN: Final = "unknown"
VERCEL_PROVIDER: Final = "ai.model.provider"
MAX_TAG_NAME: Final = 128
"""Characters of a tag's name."""
MAX_TAG_BYTES: Final = 8 * 1024
"""Of all tags of a span."""
MAX_DIGITS: Final = 400
"""Of a cost before or behind its point: more than any float has."""
FIRST_TOKEN: Final = frozenset(
    {
        "First Token Stream Event",
        "gen_ai.first_token",
        "gen_ai.content.first_token",
        "ai.stream.firstChunk",
        "llm.content.completion.chunk",
        "first_token",
    }
)
"""Events that happen when the first token arrives."""

_Found = Mapping[Target, Known]
TOKENS: Final[tuple[Target, ...]] = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_COUNTED: Final[tuple[Target, ...]] = (*TOKENS, "cache_write_1h_tokens")
_OF_CALLER: Final[tuple[Target, ...]] = ("user_id", "session_id", "prompt_hash")
_IN_INPUT: Final[tuple[Target, ...]] = ("cached_tokens", "cache_write_tokens")
pack = msgspec.msgpack.Encoder().encode
_hash = xxhash.xxh3_64_intdigest
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class OtlpEvent(NamedTuple):
    """What intake gets of a span."""

    line: bytes
    digest: int
    """64 bits for what makes a conflict of a second copy: nothing that is added on the way, like a resource with its
    environment, or a cost, nor whether the span is a wrapper, which depends on what is in the same request."""
    sent: Sent | None
    """What prices need beside the columns."""


class Description(NamedTuple):
    """A span as an event, not encoded yet."""

    fields: dict[str, Any]
    """In the order of the line."""
    distinct: tuple[Any, ...]
    """What the digest is made of."""
    sent: Sent | None


class Context(Struct, frozen=True, gc=False):
    """What all events of a scope have in common."""

    scope: str
    version: str
    environment: str
    sdk_version: str
    json: OriginJson


def context_of(origin: Origin, content: Content, spans: int) -> Context:
    """The context of a scope in a request of so many spans."""
    found = read(origin.resource, {})
    used, texts = [], []
    for target in ("environment", "sdk_version"):
        said = found.get(target)
        text = "" if said is None else _text(said.value)
        texts.append(text[:MAX_TEXT] or UNKNOWN)
        if said is not None and 0 < len(text) <= MAX_TEXT:
            used.append(said.name)
    return Context(origin.scope, origin.version, texts[0], texts[1], origin_json(origin, used, content, spans))


class Reading(Struct, gc=False):
    """A span whose attributes have been looked up in the table."""

    span: Span
    found: dict[Target, Known]
    rest: dict[str, Any]
    usage: SpanUsage


def reading_of(span: Span, context: Context) -> Reading:
    """Look up a span's attributes; of counts those that are none stay attributes."""
    rest: dict[str, Any] = {}
    found = read(span.attributes, rest)
    usage = SpanUsage()
    for target in _COUNTED:
        said = found.get(target)
        count = None if said is None else count_of(said.value)
        if said is not None and count is None:
            rest[said.name] = found.pop(target).value
        if count is not None:
            setattr(usage, target, count)
    metadata = found.get("provider_metadata")
    if metadata is not None:
        add_counts(usage, metadata.value, has_details=_has_details(found, rest))
    reading = Reading(span, found, rest, usage)
    if usage.cached_tokens or usage.cache_write_tokens or usage.reasoning_tokens:
        normalize(usage, usage_source(reading, context))
    return reading


def usage_source(reading: Reading, context: Context) -> UsageSource:
    """Where a span's counts are from."""
    provider = reading.found.get("provider")
    sent = "" if provider is None else str(provider.value)
    return UsageSource(context.scope, sent, _has_details(reading.found, reading.rest))


def _has_details(found: _Found, rest: Mapping[str, Any]) -> bool:
    """See `UsageSource`."""
    return f"{DETAILS}noCacheTokens" in rest or any(
        found[target].name.startswith(DETAILS) for target in _IN_INPUT if target in found
    )


def event_of(
    project: str, reading: Reading, kind: Kind, parent: bytes, context: Context, content: Content, *, is_wrapper: bool
) -> OtlpEvent:
    """The event of a span. `parent`: as it is kept, trace id and span id; empty: it is a root."""
    found = describe(project, reading, kind, parent, context, content, is_wrapper=is_wrapper)
    return OtlpEvent(line_of(found.fields), _hash(pack(found.distinct)), found.sent)


def describe(
    project: str, reading: Reading, kind: Kind, parent: bytes, context: Context, content: Content, *, is_wrapper: bool
) -> Description:
    """`event_of`, before it is encoded. Takes `rest` and `usage` of the reading over.

    Each step adds its fields, in the order of the line.
    """
    span, found, rest, usage = reading.span, reading.found, reading.rest, reading.usage
    is_call = kind.role == "call" and not is_wrapper
    fields = _place_of(project, span, parent)
    tags: dict[str, str] = {}
    asked = _invocation(found)
    _add_model(fields, found, rest, kind, asked, tags)
    _add_times(fields, found, rest, span)
    counts = _add_counts(fields, usage, kind)
    _add_cost(found, rest, fields, is_call=is_call)
    _add_outcome(fields, found, span)
    _add_circumstances(fields, found, rest, asked, context)
    _add_tags(found, rest, tags)
    if tags:
        fields["tags"] = tags
    name = span.name[:MAX_TEXT]
    if not is_call:
        fields["kind"] = "span"
        name = name or UNKNOWN
    if name:
        fields["name"] = name
    _add_extra(fields, reading, parent, context, content, is_wrapper=is_wrapper)
    own = fields["provider"], fields.get("model"), kind.operation, fields.get("user_id"), fields["status"]
    sent: Sent | None = None
    if usage.input_tokens is not None and usage.output_tokens is not None:
        parts = usage.cache_write_tokens or 0, usage.reasoning_tokens or 0, usage.cache_write_1h_tokens or 0
        sent = (tags.get(RAW_PROVIDER), *parts)
    return Description(fields, (span.start // 1000, *own, *counts, span.name), sent)


def _place_of(project: str, span: Span, parent: bytes) -> dict[str, Any]:
    """The ids of an event, and its time."""
    trace_id, span_id = span.trace_id, span.span_id
    fields: dict[str, Any] = {
        "event_id": event_id(project, trace_id, span_id),
        "trace_id": trace_id.hex(),
        "span_id": span_id.hex(),
    }
    if parent:
        fields["parent_span_id"] = parent[TRACE_ID:].hex()
    fields["timestamp"] = timestamp(span.start // 1000)
    return fields


def _add_model(
    fields: dict[str, Any],
    found: _Found,
    rest: dict[str, Any],
    kind: Kind,
    asked: Mapping[str, Any],
    tags: dict[str, str],
) -> None:
    """Who was asked for what; a provider's own spelling goes into `tags`."""
    fields["provider"] = _provider(found, rest, tags)
    model = _take(found, rest, "model") or _text(asked.get("model"))[:MAX_TEXT] or None
    if model is None and kind.role == "call":
        model = UNKNOWN
    if model is not None:
        fields["model"] = model
    fields["operation"] = kind.operation


def _add_times(fields: dict[str, Any], found: _Found, rest: dict[str, Any], span: Span) -> None:
    """Durations in milliseconds."""
    fields["latency_ms"] = (span.end - span.start) / 1_000_000 if span.end > span.start else 0
    first = _ttft(found, rest, span)
    if first is not None:
        fields["ttft_ms"] = first


def _add_counts(fields: dict[str, Any], usage: SpanUsage, kind: Kind) -> tuple[int | None, ...]:
    """Tokens; returns all counts, in the order of `TOKENS`."""
    if kind.operation == "embed" and usage.input_tokens is not None and usage.output_tokens is None:
        usage.output_tokens = 0  # an embedding has none, and libraries report none
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    for token, count in zip(TOKENS, counts, strict=True):
        if count is not None:
            fields[token] = count  # noqa: PERF403 - a generator takes twice as long
    return counts


def _add_outcome(fields: dict[str, Any], found: _Found, span: Span) -> None:
    """Whether it went well, and if not, why."""
    error_type, http_status = found.get("error_type"), found.get("http_status")
    outcome = outcome_of(
        span.is_error,
        span.message,
        None if error_type is None else error_type.value,
        None if http_status is None else http_status.value,
        span.events,
    )
    fields["status"] = outcome.status
    if outcome.error_code is not None:
        fields["error_code"] = outcome.error_code[:MAX_TEXT]
    if outcome.error_message is not None:
        fields["error_message"] = outcome.error_message


def _add_circumstances(
    fields: dict[str, Any], found: _Found, rest: dict[str, Any], asked: Mapping[str, Any], context: Context
) -> None:
    """How it ended, where and for whom it ran, and with what tool."""
    reason = _take(found, rest, "finish_reason")
    if reason is not None:
        fields["finish_reason"] = reason
    fields["stream"] = _stream(found, rest, asked)
    fields["environment"] = _take(found, rest, "environment") or context.environment
    for target in _OF_CALLER:
        said = _take(found, rest, target)
        if said is not None:
            fields[target] = said
    fields["sdk_version"] = _take(found, rest, "sdk_version") or context.sdk_version
    tool = _take(found, rest, "tool")
    if tool is not None:
        fields["tools_used"] = [tool]


def _add_extra(
    fields: dict[str, Any], reading: Reading, parent: bytes, context: Context, content: Content, *, is_wrapper: bool
) -> None:
    span = reading.span
    attributes = kept(reading.rest, content)
    if attributes:
        fields["attributes"] = attributes
    if context.json.resource is not None:
        fields["resource"] = context.json.resource
    if context.json.scope is not None:
        fields["scope"] = context.json.scope
    if span.events:
        fields["events"] = events_json(span.events, content)
    if span.parent_id and parent[TRACE_ID:] != span.parent_id:
        fields["sent_parent_span_id"] = span.parent_id.hex()
    if reading.usage.is_normalized:
        fields["usage_normalized"] = True
    if is_wrapper:
        fields["wrapper"] = True


def _text(value: Any) -> str:
    """A value as text; of a list the first one."""
    if isinstance(value, list):
        return _text(value[0]) if value else ""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict):
        return ""
    return encode(value).decode()


def _take(found: _Found, rest: dict[str, Any], target: Target) -> str | None:
    """The text of a field; what is longer, or more than that, stays an attribute, too."""
    said = found.get(target)
    if said is None:
        return None
    value = said.value
    text = value if type(value) is str else _text(value)
    if len(text) > MAX_TEXT or (isinstance(value, list) and len(value) != 1) or not text:
        rest[said.name] = value
    return text[:MAX_TEXT] or None


def _provider(found: _Found, rest: dict[str, Any], tags: dict[str, str]) -> str:
    said = found.get("provider")
    sent = "" if said is None else _text(said.value)
    if said is None or not sent:
        return "custom"
    is_vercel = said.name == VERCEL_PROVIDER or VERCEL_PROVIDER in rest
    word = sent.partition(".")[0] if is_vercel else sent  # groq.chat: behind the dot stands the API
    name = provider_of(word)
    if name == "custom" and "." in word:  # openai.responses
        name = provider_of(word.partition(".")[0])
    if name == "custom":
        tags[RAW_PROVIDER] = word[:MAX_TEXT]
    if word != sent or (name not in {"custom", word}):
        rest[said.name] = sent
    return name


def _ttft(found: _Found, rest: dict[str, Any], span: Span) -> float | None:
    """Milliseconds to the first token: as it was sent, else by an event."""
    for target, factor in (("ttft_seconds", 1000), ("ttft_ms", 1)):
        said = found.get(target)  # type: ignore[call-overload] # of the tuple above
        if said is None:
            continue
        value = said.value
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return value * factor
        rest[said.name] = value
    for event in span.events:
        if event.name in FIRST_TOKEN and event.at >= span.start:
            return (event.at - span.start) / 1_000_000
    return None


def _add_cost(found: _Found, rest: dict[str, Any], fields: dict[str, Any], *, is_call: bool) -> None:
    """A cost that was sent is a call's; of a span it is information."""
    said = found.get("cost_usd")
    if said is None:
        return
    if is_call and isinstance(said.value, int | float | str) and not isinstance(said.value, bool):
        try:
            cost = Decimal(str(said.value))
        except InvalidOperation:
            cost = Decimal("NaN")
        if cost.is_finite():
            if abs(cost.adjusted()) > MAX_DIGITS:  # too much, or nothing; written out it could fill the memory
                cost = Decimal(0) if cost.adjusted() < 0 or not cost else Decimal(10**MAX_DIGITS).copy_sign(cost)
            fields["cost_usd"] = Raw(format(cost, "f").encode())
            return
    rest[said.name] = said.value


_NOTHING: Final[Mapping[str, Any]] = {}


def _invocation(found: _Found) -> Mapping[str, Any]:
    """The parameters of a call, of which OpenInference names some only there."""
    said = found.get("invocation")
    if said is None or ("model" in found and "stream" in found):
        return _NOTHING
    try:
        return _decode_object(said.value)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        return _NOTHING


def _stream(found: _Found, rest: dict[str, Any], asked: Mapping[str, Any]) -> bool:
    said = found.get("stream")
    if said is not None:
        if isinstance(said.value, bool):
            return said.value
        if isinstance(said.value, str) and said.value.lower() in {"true", "false"}:
            return said.value.lower() == "true"
        rest[said.name] = said.value
    if asked.get("stream") is True:
        return True
    operation = found.get("vercel_operation")
    return operation is not None and str(operation.value).endswith(".doStream")


def _add_tags(found: _Found, rest: dict[str, Any], tags: dict[str, str]) -> None:
    """Tags from what the conventions have for them; what has no room stays an attribute."""
    listed, metadata, tagged = found.get("tags"), found.get("metadata"), found.get("tagged")
    if listed is None and metadata is None and tagged is None:
        return
    room = MAX_TAG_BYTES
    sent: dict[str, Any] = {}
    if listed is not None:
        names = listed.value if isinstance(listed.value, list) else [listed.value]
        sent.update((_text(name), "") for name in names)
    if metadata is not None:
        rest[metadata.name] = metadata.value
        try:
            members = _decode_object(metadata.value)
        except (msgspec.MsgspecError, TypeError, RecursionError):
            members = {}
        sent.update((name, value) for name, value in members.items() if isinstance(value, str | int | float))
    for name, value in {} if tagged is None else tagged.value.items():
        if isinstance(value, str | int | float):
            prefix = next(each for each in TAG_PREFIXES if name.startswith(each))
            sent[name.removeprefix(prefix)] = value
        else:
            rest[name] = value
    for name, value in sent.items():
        text = _text(value)
        room -= len(name) + len(text) + 6
        if name and len(name) <= MAX_TAG_NAME and len(text) <= MAX_TEXT and room > 0 and len(tags) < MAX_TAGS:
            tags[name] = text
        else:
            rest[f"tag.{name}"] = value


MAX_DATES: Final = 256
_dates: dict[int, str] = {}
"""Day since the epoch -> as text: the spans of a batch are of one or two."""
_MINUTES: Final = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(60)]


def timestamp(micros: int) -> str:
    """An instant as RFC 3339 with six places."""
    day, left = divmod(micros, DAY)
    date = _dates.get(day)
    if date is None:
        if len(_dates) >= MAX_DATES:
            _dates.clear()
        date = _dates[day] = datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
    minute, left = divmod(left, 60_000_000)
    second, fraction = divmod(left, 1_000_000)
    return f"{date}T{_MINUTES[minute]}:{second:02d}.{fraction:06d}Z"
