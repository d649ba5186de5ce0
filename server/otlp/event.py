"""A span as an event: one line of JSON that intake takes under `lenient` handling, as if it had been sent like that."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

import msgspec
import xxhash
from msgspec import Raw, Struct

from processor.core.events.fields import MAX_TAGS, MAX_TEXT
from server.otlp.attribute_names import TAG_PREFIXES, Known, Target, read
from server.otlp.content import Content
from server.otlp.event_ids import event_id
from server.otlp.extra import OriginJson, encode, events_json, kept, line_of, origin_json
from server.otlp.kinds import Kind
from server.otlp.outcomes import outcome_of
from server.otlp.providers import provider_of
from server.otlp.spans import TRACE_ID, Origin, Span
from server.otlp.tokens import Source, Usage, count_of, normalize

UNKNOWN: Final = "unknown"
MAX_TAG_NAME: Final = 128
"""Characters of a tag's name."""
MAX_TAG_BYTES: Final = 8 * 1024
"""Of all tags of a span."""
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
_TOKENS: Final[tuple[Target, ...]] = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)
_pack = msgspec.msgpack.Encoder().encode
_hash = xxhash.xxh3_64_intdigest
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Event(NamedTuple):
    """What intake gets of a span."""

    line: bytes
    digest: int
    """64 bits for what makes a conflict of a second copy: nothing that is added on the way, like a resource with its
    environment, or a cost, nor whether the span is a wrapper, which depends on what is in the same request."""


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
    usage: Usage


def reading_of(span: Span, context: Context) -> Reading:
    """Look up a span's attributes; of counts those that are none stay attributes."""
    rest: dict[str, Any] = {}
    found = read(span.attributes, rest)
    usage = Usage()
    for target in _TOKENS:
        said = found.get(target)
        count = None if said is None else count_of(said.value)
        if said is not None and count is None:
            rest[said.name] = found.pop(target).value
        if count is not None:
            setattr(usage, target, count)
    if "provider_metadata" in found and usage.cached_tokens is None and usage.cache_write_tokens is None:
        _read_anthropic(usage, found["provider_metadata"].value)
    if usage.cached_tokens or usage.cache_write_tokens or usage.reasoning_tokens:
        normalize(usage, _source(found, context))
    return Reading(span, found, rest, usage)


def _source(found: _Found, context: Context) -> Source:
    names = [found[target].name if target in found else "" for target in _TOKENS[:3]]
    provider = found.get("provider")
    return Source(context.scope, context.version, "" if provider is None else str(provider.value), *names)


def _read_anthropic(usage: Usage, value: Any) -> None:
    """Counts of Anthropic's cache, which Vercel's SDK 4 has only among what it passes on."""
    try:
        own = _decode_object(value)["anthropic"]
        usage.cached_tokens = count_of(own.get("cacheReadInputTokens"))
        usage.cache_write_tokens = count_of(own.get("cacheCreationInputTokens"))
    except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
        pass


def event_of(
    project: str, reading: Reading, kind: Kind, parent: bytes, context: Context, content: Content, *, is_wrapper: bool
) -> Event:
    """The event of a span. `parent`: as it is kept, trace id and span id; empty: it is a root."""
    span, found, rest, usage = reading.span, reading.found, reading.rest, reading.usage
    is_call = kind.role == "call" and not is_wrapper
    trace_id, span_id = span.trace_id, span.span_id
    micros = span.start // 1000
    fields: dict[str, Any] = {
        "event_id": event_id(project, trace_id, span_id),
        "trace_id": trace_id.hex(),
        "span_id": span_id.hex(),
    }
    if parent:
        fields["parent_span_id"] = parent[TRACE_ID:].hex()
    fields["timestamp"] = timestamp(micros)
    tags: dict[str, str] = {}
    provider = fields["provider"] = _provider(found, rest, tags)
    model = _take(found, rest, "model")
    if model is None and kind.role == "call":
        model = UNKNOWN
    if model is not None:
        fields["model"] = model
    fields["operation"] = kind.operation
    fields["latency_ms"] = (span.end - span.start) / 1_000_000 if span.end > span.start else 0
    first = _ttft(found, rest, span)
    if first is not None:
        fields["ttft_ms"] = first
    if kind.operation == "embed" and usage.input_tokens is not None and usage.output_tokens is None:
        usage.output_tokens = 0  # an embedding has none, and libraries report none
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )
    fields.update((name, count) for name, count in zip(_TOKENS, counts, strict=True) if count is not None)
    _add_cost(found, rest, fields, is_call=is_call)
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
    reason = _take(found, rest, "finish_reason")
    if reason is not None:
        fields["finish_reason"] = reason
    fields["stream"] = _stream(found, rest)
    fields["environment"] = _take(found, rest, "environment") or context.environment
    user = _take(found, rest, "user_id")
    if user is not None:
        fields["user_id"] = user
    session = _take(found, rest, "session_id")
    if session is not None:
        fields["session_id"] = session
    prompt = _take(found, rest, "prompt_hash")
    if prompt is not None:
        fields["prompt_hash"] = prompt
    fields["sdk_version"] = _take(found, rest, "sdk_version") or context.sdk_version
    if "tool" in found:
        tool = _take(found, rest, "tool")
        if tool is not None:
            fields["tools_used"] = [tool]
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
    digest = _hash(
        _pack(
            (
                micros,
                provider,
                model,
                kind.operation,
                user,
                outcome.status,
                *counts,
                span.name,
            )
        )
    )
    return Event(line_of(fields), digest)


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
    word = sent.partition(".")[0] if said.name == "ai.model.provider" else sent
    name = provider_of(word)
    if name == "custom" and "." in word:  # openai.responses
        name = provider_of(word.partition(".")[0])
    if name == "custom":
        tags["provider.raw"] = word[:MAX_TEXT]
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
            fields["cost_usd"] = Raw(format(cost, "f").encode())
            return
    rest[said.name] = said.value


def _stream(found: _Found, rest: dict[str, Any]) -> bool:
    said = found.get("stream")
    if said is not None:
        if isinstance(said.value, bool):
            return said.value
        if isinstance(said.value, str) and said.value.lower() in {"true", "false"}:
            return said.value.lower() == "true"
        rest[said.name] = said.value
    operation = found.get("vercel_operation")
    return operation is not None and str(operation.value).endswith(".doStream")


def _add_tags(found: _Found, rest: dict[str, Any], tags: dict[str, str]) -> None:
    """Tags from what the conventions have for them; what has no room stays an attribute."""
    room = MAX_TAG_BYTES
    sent: dict[str, Any] = {}
    listed, metadata = found.get("tags"), found.get("metadata")
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
    for name in [name for name in rest if name.startswith(TAG_PREFIXES)]:
        if isinstance(rest[name], str | int | float):
            prefix = next(each for each in TAG_PREFIXES if name.startswith(each))
            sent[name.removeprefix(prefix)] = rest.pop(name)
    for name, value in sent.items():
        text = _text(value)
        room -= len(name) + len(text) + 6
        if name and len(name) <= MAX_TAG_NAME and len(text) <= MAX_TEXT and room > 0 and len(tags) < MAX_TAGS:
            tags[name] = text
        else:
            rest[f"tag.{name}"] = value


def timestamp(micros: int) -> str:
    """An instant as RFC 3339 with six places."""
    second, fraction = divmod(micros, 1_000_000)
    text = _seconds.get(second)
    if text is None:
        if len(_seconds) >= MAX_SECONDS:
            _seconds.clear()
        text = _seconds[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    return f"{text}.{fraction:06d}Z"


MAX_SECONDS: Final = 1024
_seconds: dict[int, str] = {}
"""Second since the epoch -> as text: the spans of a batch are of a few."""
