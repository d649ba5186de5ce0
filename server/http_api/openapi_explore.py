"""The part of the OpenAPI document about the event store: filters as shared parameters, and the paths."""

from typing import Any, Final

from processor.core.events.fields import FIELDS
from server.errors import RETRYABLE, Reason
from server.explore.filter_params import ALL_KINDS, CHOICES, MAX_DAYS
from server.explore.metric_params import DEFAULT_MEASURES, GROUPS, INTERVALS, MAX_GROUP_BY, MAX_MEASURES, described
from server.explore.question_params import (
    DEFAULT_GROUPS,
    DEFAULT_LIMIT,
    EXPORT_FORMATS,
    MAX_CURSOR,
    MAX_GROUPS,
    MAX_LIMIT,
    ORDERS,
    PROMPT_SORTS,
    SESSION_SORTS,
    TRACE_FORMATS,
    TRACE_SORTS,
)
from server.explore.questions import TEXT_FILTERS
from server.http_api.event_download import CONTENT_TYPES, ROWS
from server.http_api.openapi_schemas import COUNT, POSITION, TEXT, TIME, Schema, listed, ref
from server.status import MAX_RETRY_AFTER, TABLE

_MOMENT: Final[Schema] = {"anyOf": [{"type": "string", "format": "date"}, TIME]}
_DOLLARS: Final[Schema] = {"type": "number", "minimum": 0}
_FIELDS: Final = {field.name: field for field in FIELDS}
_AGAIN: Final = {"Retry-After": {"schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER}}}

_WHY: Final[dict[Reason, str]] = {
    "bad_request": "A parameter is not as expected, `error` says which; or the range is too wide",
    "unauthenticated": "The key is missing, unknown, revoked or expired",
    "forbidden": "The key lacks the scope, or asks for another project",
    "not_found": "The project has nothing of that id",
    "query_too_heavy": "The question would never fit its bounds; `error` says what to ask instead",
    "event_store_off": "The event store is switched off on this server",
    "unavailable": "The question cannot be answered now, or too many of the project wait already; retry it unchanged",
    "not_yet_visible": "The event store did not contain the position within 5 s",
}
_LIST: Final[tuple[Reason, ...]] = (
    *("bad_request", "unauthenticated", "forbidden", "query_too_heavy"),
    *("event_store_off", "unavailable", "not_yet_visible"),
)
_ONE: Final[tuple[Reason, ...]] = (*_LIST, "not_found")


# --- parameters ------------------------------------------------------------------------------------------------------


def _query(name: str, schema: Schema, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def parameters() -> dict[str, dict[str, Any]]:
    """Return the shared parameters: the filters, and the range of time."""
    found: dict[str, dict[str, Any]] = {}
    for name in TEXT_FILTERS:
        values: Schema = {"enum": [*CHOICES[name], ""]} if name in CHOICES else TEXT
        found[name] = _query(name, listed(values), f"{_FIELDS[name].description}: any of these")
        found[f"{name}_not"] = _query(f"{name}!", listed(values), "The same: none of these")
    found["tool"] = _query("tool", listed(TEXT), "At least one of these is among the tools used")
    found["tool_not"] = _query("tool!", listed(TEXT), "None of these is")
    tag = {"type": "string", "pattern": r"^([^:\\]|\\[:\\])*:"}
    found["tag"] = _query("tag", listed(tag), r"`KEY:VALUE`, all of these; a `:` or `\` of the key is `\:`, `\\`")
    found["tag_not"] = _query("tag!", listed(tag), "None of these")
    kinds: Schema = {"enum": list(ALL_KINDS)}
    found["kind"] = _query(
        "kind", listed(kinds), "Calls, spans or both; default `all` for traces and sessions, else `call`"
    )
    found["kind_not"] = _query("kind!", listed({"enum": list(ALL_KINDS[:-1])}), "Without these")
    for name, what in (("cost_usd", "Dollars"), ("latency_ms", "Milliseconds")):
        for least, word in (("min", "at least"), ("max", "at most")):
            found[f"{least}_{name}"] = _query(f"{least}_{name}", _DOLLARS, f"{what}, {word}")
    found["start"] = _query("start", _MOMENT, "Start of the range of event time, inclusive")
    found["end"] = _query("end", _MOMENT, "End of the range, exclusive")
    return found


FILTERS: Final = tuple(name for name in parameters() if name not in {"start", "end"})
_F: Final = [{"$ref": f"#/components/parameters/{name}"} for name in FILTERS]
_RANGE: Final = [{"$ref": f"#/components/parameters/{name}"} for name in ("start", "end")]


def _choice(name: str, words: tuple[str, ...], text: str, default: str | None = None) -> dict[str, Any]:
    return _query(name, {"enum": list(words)} | ({"default": default} if default else {}), text)


def _limit(what: str, default: int, most: int) -> dict[str, Any]:
    return _query("limit", {"type": "integer", "minimum": 1, "maximum": most, "default": default}, what)


def _path(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {**TEXT, "minLength": 1}, "description": text}


_CURSOR: Final = _query(
    "cursor",
    {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR, "pattern": "^[A-Za-z0-9_.~=-]+$"},
    "`nextCursor` of the page before, with the same filters",
)
_EXTRA: Final = _choice("extra", ("none",), "`none` leaves the unknown fields out")
_OWN: Final = [
    _query("projectId", TEXT, "The key's own project; another one is refused"),
    _query("after", POSITION, "An `x-ingest-position`: wait up to 5 s until the event store contains it"),
]
_FORMAT: Final = _choice("format", TRACE_FORMATS, "A list with depths, or nested", TRACE_FORMATS[0])


# --- paths -----------------------------------------------------------------------------------------------------------


def paths() -> dict[str, Any]:
    """Return the paths of the reads of events."""
    page = [_limit("Rows a page", DEFAULT_LIMIT, MAX_LIMIT), _CURSOR]
    order = _choice("order", ORDERS, "By event time", "desc")
    return {
        "/v1/events": _list("List events", "EventPage", "?model=gpt-4o&limit=2", order, _EXTRA, *page),
        "/v1/events/{event_id}": _one(
            "Get one event", "StoredEvent", "/550e8400-e29b-41d4-a716-446655440000", _path("event_id", "The event")
        ),
        "/v1/stream/events": _stream(),
        "/v1/traces": _list(
            "List traces that have a matching event, each summed as a whole",
            "TracePage",
            "?sort=cost_usd&limit=2",
            _sort(TRACE_SORTS),
            *page,
        ),
        "/v1/traces/": _one(
            "Get one trace by a query parameter, for the ids `.` and `..`, which cannot be in a path",
            ("FlatTrace", "TraceTree"),
            "?trace_id=trace-abc&extra=none",
            _query("trace_id", {**TEXT, "minLength": 1}, "The trace") | {"required": True},
            _FORMAT,
            _EXTRA,
        ),
        "/v1/traces/{trace_id}": _one(
            "Get one trace: its summary, and all of its events in their places",
            ("FlatTrace", "TraceTree"),
            "/trace-abc?format=tree",
            _path("trace_id", "The trace"),
            _FORMAT,
            _EXTRA,
        ),
        "/v1/sessions": _list(
            "List sessions that have a matching event", "SessionPage", "?limit=2", _sort(SESSION_SORTS), *page
        ),
        "/v1/sessions/": _one(
            "Get one session by a query parameter, for the ids `.` and `..`, which cannot be in a path",
            "SessionDetail",
            "?session_id=session-1",
            _query("session_id", {**TEXT, "minLength": 1}, "The session") | {"required": True},
        ),
        "/v1/sessions/{session_id}": _one(
            "Get one session and its traces in order of time",
            "SessionDetail",
            "/session-1",
            _path("session_id", "The session"),
        ),
        "/v1/metrics": _metrics(),
        "/v1/prompts": _list(
            "List versions of prompts, by `prompt_hash`",
            "PromptPage",
            "?sort=requests",
            _sort(PROMPT_SORTS),
            *page,
        ),
        "/v1/export": _export(),
    }


def _sort(words: tuple[str, ...]) -> dict[str, Any]:
    return _choice("sort", words, "Descending", words[0])


def _list(summary: str, shape: str, example: str, *own: dict[str, Any]) -> dict[str, Any]:
    ok = {"description": "A page", "content": _content(ref(shape))}
    path = {"EventPage": "events", "TracePage": "traces", "SessionPage": "sessions", "PromptPage": "prompts"}[shape]
    more = {"parameters": [*own, *_RANGE, *_F, *_OWN], **_sample(f"/v1/{path}{example}")}
    return {"get": _operation(summary, ok, *_LIST, **more)}


def _one(summary: str, shape: str | tuple[str, ...], example: str, *own: dict[str, Any]) -> dict[str, Any]:
    schema = ref(shape) if isinstance(shape, str) else {"anyOf": [ref(each) for each in shape]}
    folder = {"event_id": "events", "trace_id": "traces", "session_id": "sessions"}[own[0]["name"]]
    path = f"/v1/{folder}" + (f"/{example}" if example.startswith("?") else example)
    ok = {"description": own[0]["description"], "content": _content(schema)}
    return {"get": _operation(summary, ok, *_ONE, parameters=[*own, *_OWN], **_sample(path))}


def _metrics() -> dict[str, Any]:
    groups = {"anyOf": [{"enum": list(GROUPS)}, {"type": "string", "pattern": "^tag:"}]}
    own = [
        _query(
            "group_by",
            {**listed(groups), "maxItems": MAX_GROUP_BY},
            f"Up to {MAX_GROUP_BY} of {', '.join(GROUPS)}, `tag:KEY`",
        ),
        _query(
            "measures",
            {**listed(TEXT), "maxItems": MAX_MEASURES, "default": list(DEFAULT_MEASURES)},
            described().capitalize(),
        ),
        _choice("interval", INTERVALS, "Of the series", INTERVALS[0]),
        _query("tz", {**TEXT, "default": "UTC"}, "IANA name of the time zone that days begin in"),
        _query("sort", TEXT, "One of the measures, descending, then by key; default: the first"),
        _limit("Groups; the rest is `other`", DEFAULT_GROUPS, MAX_GROUPS),
    ]
    ok = {"description": "Groups, largest first", "content": _content(ref("Metrics"))}
    example = "/v1/metrics?group_by=model&measures=cost_usd&measures=latency_ms:p95&interval=day&tz=Europe/Berlin"
    more = {"parameters": [*own, *_RANGE, *_F, *_OWN], **_sample(example)}
    return {"get": _operation("Get sums, averages and quantiles of matching events by group", ok, *_LIST, **more)}


def _export() -> dict[str, Any]:
    rows = {ROWS: {"schema": COUNT, "description": "Events of the whole download, where that is known"}}
    ok = {
        "description": "A file; the connection is reset if it cannot be completed",
        "headers": {**rows, "Content-Disposition": {"schema": TEXT}},
        "content": {kind.partition(";")[0]: {"schema": TEXT} for kind in CONTENT_TYPES.values()},
    }
    form = _choice("format", EXPORT_FORMATS, "Of the file", "ndjson")
    more = {
        "parameters": [form, *_RANGE, *_F, *_OWN],
        **_sample("/v1/export?format=csv&start=2026-04-01&end=2026-05-01"),
    }
    return {"get": _operation("Download all matching events of one moment", ok, *_LIST, **more)}


def _stream() -> dict[str, Any]:
    ok = {"description": "An endless stream of events", "content": {"text/event-stream": {"schema": TEXT}}}
    resume = {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": TEXT,
        "description": "Resume after this `id`, as `lastEventId` among the parameters",
    }
    return {
        "get": _operation(
            'Follow events as they become visible: server-sent events `events` with `{"events":[…],"skipped":n}`; at '
            "most 200 events a second, the rest is counted in `skipped`",
            ok,
            *_LIST,
            parameters=[*_F, *_OWN, resume],
        )
    }


def _content(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _sample(target: str) -> dict[str, Any]:
    source = f"curl -H \"x-api-key: $SPENDSTREAM_KEY\" 'http://127.0.0.1:8080{target}'"
    return {"x-codeSamples": [{"lang": "Shell", "source": source}]}


def _operation(summary: str, ok: dict[str, Any], *reasons: Reason, **more: Any) -> dict[str, Any]:
    failures = {}
    for reason in reasons:
        told = failures[str(TABLE[reason].http)] = {"description": _WHY[reason], "content": _content(ref("Error"))}
        if reason in RETRYABLE:
            told["headers"] = _AGAIN
    return {"tags": ["events"], "summary": summary, **more, "responses": {"200": ok, **failures}}


RULES: Final = (
    "- Filters are repeated, never split at commas. A repeated filter means any of its values, a repeated `tag` "
    "all of them; with a `!` after its name a filter excludes: `model!=gpt-4o`. An empty value means that the event "
    "has none: `user_id=`.\n"
    "- Times are those of the events. Without `start` and `end` a list is of the last 24 hours and all of the future; "
    "with `end` alone it is of the 24 hours before, with `start` alone of the time since.\n"
    f"- More than {MAX_DAYS} days are refused with `range_too_wide`, unless the question names a trace, a session or "
    "an event by its id: that has no default range and no limit.\n"
    "- `userId`, `sessionId` and `traceId` are accepted for `user_id`, `session_id` and `trace_id`. Unknown parameters "
    "are refused."
)
"""What holds for all of these reads, as the reference has it."""
