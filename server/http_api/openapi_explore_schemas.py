"""The schemas of the answers about events: events as they are answered, traces, sessions, metrics, prompts."""

from typing import Final

from processor.core.events.fields import FIELDS, Field, Kind
from server.http_api.openapi_schemas import (
    COUNT,
    DOLLARS,
    FLAG,
    RATIO,
    TEXT,
    TIME,
    Schema,
    listed,
    nullable,
    record,
    ref,
)

_NUMBER: Final[Schema] = {"type": "number"}
_MILLIS: Final[Schema] = {"type": "number", "minimum": 0, "description": "Milliseconds"}

STAMP: Final[dict[str, Schema]] = {
    "asOf": {**TIME, "description": "The arrival up to which the event store is complete"},
    "lagSeconds": {"type": "number", "minimum": 0, "description": "How far the event store is behind"},
    "building": {
        **record(done=COUNT, of=COUNT, secondsLeft=nullable(COUNT)),
        "description": "While the store is built, or made anew: messages done, of how many, the time left",
    },
}
"""Members of every answer."""
_PAGE: Final[dict[str, Schema]] = {
    "nextCursor": {**nullable(TEXT), "description": "`cursor` of the next page; null: this is the last one"},
    "expired": {"const": True, "description": "Retention has deleted events of the walk since its first page"},
    **STAMP,
}
_ABSENT: Final = ("expired", "building")
"""Members of a page that may be absent."""
_TYPES: Final[dict[Kind, Schema]] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": TEXT,
    "timestamp": TIME,
    "choice": TEXT,
    "count": COUNT,
    "millis": {"type": "number", "minimum": 0},
    "cost": nullable(DOLLARS),
    "flag": FLAG,
    "tags": {"type": "object", "additionalProperties": TEXT},
    "strings": listed(TEXT),
    "scores": {"type": "object", "additionalProperties": _NUMBER},
}
_STORED: Final[dict[str, Schema]] = {
    "received_at": {**TIME, "description": "When it arrived"},
    "cost_source": {
        **TEXT,
        "description": "Where the cost comes from: `client`, or `list:` and a price list; absent if unpriced",
    },
    "extra": {
        "type": "object",
        "additionalProperties": True,
        "description": "The unknown fields with their values as sent",
    },
}


def _stored_field(field: Field) -> Schema:
    found = {"enum": list(field.values)} if field.values else _TYPES[field.kind]
    said = field.description if field.kind != "cost" else f"{field.description}; null: unpriced"
    return {**found, "description": said}


EVENT_FIELDS: Final[dict[str, Schema]] = {**{each.name: _stored_field(each) for each in FIELDS}, **_STORED}
_CERTAIN: Final = ("event_id", "trace_id", "span_id", "timestamp", "kind", "cost_usd", "received_at")
"""Members that every event has."""
_OPTIONAL: Final = tuple(name for name in EVENT_FIELDS if name not in _CERTAIN)

_SPAN: Final[dict[str, Schema]] = {
    "depth": {**COUNT, "description": "How many parents it has in the trace"},
    "orphan": {"const": True, "description": "A root because the parent that it names is not there"},
    "cycle": {"const": True, "description": "A root because its parents lead back to it"},
    "nested_model_call": {
        "const": True,
        "description": "A call that only repeats one below it and came over OTLP in another request: both are charged",
    },
}
_TRACE: Final[dict[str, Schema]] = {
    "trace_id": TEXT,
    "name": {**nullable(TEXT), "description": "Of the first root"},
    "start": TIME,
    "end": {**TIME, "description": "The latest end of an event, its timestamp and latency"},
    "duration_ms": _MILLIS,
    "spans": {**COUNT, "description": "All of its events"},
    "calls": {**COUNT, "description": "Its calls to models"},
    "errors": {**COUNT, "description": "Events with status error, timeout or rate_limited"},
    "input_tokens": COUNT,
    "output_tokens": COUNT,
    "cached_tokens": COUNT,
    "cost_usd": DOLLARS,
    "user_id": {**nullable(TEXT), "description": "The first by time that is there, as `session_id`"},
    "session_id": nullable(TEXT),
    "environment": {**nullable(TEXT), "description": "Of the first root"},
    "models": listed(TEXT),
    "complete": {**FLAG, "description": "A root was seen"},
}
_SESSION: Final[dict[str, Schema]] = {
    "session_id": TEXT,
    "user_id": nullable(TEXT),
    "start": TIME,
    "end": TIME,
    "traces": COUNT,
    "calls": COUNT,
    "errors": COUNT,
    "input_tokens": COUNT,
    "output_tokens": COUNT,
    "cost_usd": DOLLARS,
    "models": listed(TEXT),
}
_VALUES: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": ["number", "string", "null"]},
    "description": "A number by measure; a time for first_seen and last_seen; null: no event has a value",
}
_KEY: Final[Schema] = {
    "type": "object",
    "additionalProperties": nullable(TEXT),
    "description": "A value by what is grouped by; null: the events have none",
}
_SERIES: Final[Schema] = {
    "type": "array",
    "items": {"type": "object", "properties": {"start": TIME}, "required": ["start"], "additionalProperties": True},
    "description": "The intervals that have events: `start` in UTC, and a member a measure",
}
_TOTAL: Final[Schema] = {
    **_VALUES,
    "properties": {"series": _SERIES},
    "description": "All matching events; with a series where an interval is asked for, of up to 200,000 points",
}


def _spread(*quantiles: str) -> Schema:
    """Return the schema of what is said of many values; null: too few of them."""
    return record(
        avg=nullable(_NUMBER), sd=nullable(_NUMBER), count=COUNT, **dict.fromkeys(quantiles, nullable(_NUMBER))
    )


_QUANTILES: Final = ("p50", "p90", "p95", "p99")
_PROMPT: Final[dict[str, Schema]] = {
    "prompt_hash": TEXT,
    "first_seen": TIME,
    "last_seen": TIME,
    "requests": COUNT,
    "errors": COUNT,
    "error_rate": nullable(RATIO),
    "cost_usd": DOLLARS,
    "unpriced": COUNT,
    "avg_input_tokens": nullable(_NUMBER),
    "avg_output_tokens": nullable(_NUMBER),
    "avg_cached_tokens": nullable(_NUMBER),
    "latency_ms": _spread(*_QUANTILES),
    "ttft_ms": _spread(*_QUANTILES),
    "cost": _spread(),
    "scores": {"type": "object", "additionalProperties": _spread()},
}

EXPLORE_ANSWERS: Final[dict[str, Schema]] = {
    "StoredEvent": record((*_OPTIONAL, *STAMP), **EVENT_FIELDS, **STAMP)
    | {"description": "An event as it is answered; absent fields are left out. Within lists it has no `asOf`."},
    "EventPage": record(
        _ABSENT,
        events=listed(ref("StoredEvent")),
        total={**nullable(COUNT), "description": "Events of all pages; null: more than are counted"},
        **_PAGE,
    ),
    "TraceSummary": record(**_TRACE),
    "TracePage": record(_ABSENT, traces=listed(ref("TraceSummary")), **_PAGE),
    "TraceSpan": record(
        (*_OPTIONAL, "orphan", "cycle", "nested_model_call"),
        **EVENT_FIELDS,
        parent={"anyOf": [COUNT, {"type": "null"}], "description": "Index of the parent in `spans`; null: a root"},
        **_SPAN,
    )
    | {"description": "An event, and its place in the trace."},
    "TraceNode": record(
        (*_OPTIONAL, "depth", "orphan", "cycle", "nested_model_call"),
        **EVENT_FIELDS,
        **_SPAN,
        children=listed(ref("TraceNode")),
    )
    | {"description": "An event, and the events below it."},
    "FlatTrace": record(
        ("building",),
        trace=ref("TraceSummary"),
        spans={**listed(ref("TraceSpan")), "description": "In depth-first order, children by start, then arrival"},
        truncated={**FLAG, "description": "The trace has more spans than are listed"},
        total={**COUNT, "description": "All of its spans"},
        **STAMP,
    ),
    "TraceTree": record(
        ("building",), trace=ref("TraceSummary"), roots=listed(ref("TraceNode")), truncated=FLAG, total=COUNT, **STAMP
    ),
    "SessionSummary": record(**_SESSION),
    "SessionPage": record(_ABSENT, sessions=listed(ref("SessionSummary")), **_PAGE),
    "SessionDetail": record(
        ("building",),
        session=ref("SessionSummary"),
        traces={**listed(ref("TraceSummary")), "description": "In order of time"},
        truncated={**FLAG, "description": "The session has more traces than are listed"},
        total={**COUNT, "description": "All of its traces"},
        **STAMP,
    ),
    "MetricsGroup": record(key=_KEY, values=_VALUES, series=_SERIES),
    "Metrics": record(
        ("building",),
        groups=listed(ref("MetricsGroup")),
        other=nullable(_VALUES) | {"description": "The groups beyond `limit`, computed from their events; null: none"},
        total=_TOTAL,
        multi={**listed(TEXT), "description": "What puts an event into several groups: their sum is more than `total`"},
        **STAMP,
    ),
    "PromptVersion": record(**_PROMPT),
    "PromptPage": record(_ABSENT, prompts=listed(ref("PromptVersion")), **_PAGE),
}
"""Named schemas of answers."""
