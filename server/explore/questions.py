"""Questions about events, as the API processes ask them of the query process.

Everything is checked before a question is made: a question has no text that becomes part of a query. Times are
microseconds since the epoch, `start` inclusive, `end` exclusive; None: no bound. Costs are picodollars.
"""

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Raw, Struct, field

Kinds = Literal["call", "span", "all"]
Order = Literal["asc", "desc"]
Interval = Literal["none", "minute", "hour", "day", "week", "month"]
ExportFormat = Literal["csv", "parquet", "ndjson"]
TraceSort = Literal["start", "duration_ms", "cost_usd", "errors"]
TraceFormat = Literal["flat", "tree", "pieces"]
"""`pieces` is of the gRPC API: lines of JSON, each with some of the spans of the flat answer."""
SessionSort = Literal["start", "cost_usd", "calls"]

TEXT_FILTERS: Final = (
    "model",
    "provider",
    "operation",
    "status",
    "environment",
    "user_id",
    "session_id",
    "trace_id",
    "event_id",
    "prompt_hash",
    "error_code",
    "finish_reason",
    "name",
)
"""Fields that a filter compares as text; `tool`, `tag`, `kind` and the four bounds have members of their own. Event ids
are asked for in lower case, as they are stored."""


class Filters(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which events are meant: those that all members agree to."""

    equal: Mapping[str, tuple[str | None, ...]] = {}
    """Field of `TEXT_FILTERS` -> any of these values; None: the event has none."""
    unequal: Mapping[str, tuple[str | None, ...]] = {}
    """Field -> none of these values."""
    tools: tuple[str | None, ...] = ()
    """At least one of these is among the tools used; None: no tool was used."""
    no_tools: tuple[str | None, ...] = ()
    tags: tuple[tuple[str, str | None], ...] = ()
    """All of these; None: there is no such tag."""
    no_tags: tuple[tuple[str, str | None], ...] = ()
    kinds: Kinds = "call"
    min_cost: int | None = None
    """Bounds are inclusive; an unpriced event is within none."""
    max_cost: int | None = None
    min_latency: float | None = None
    max_latency: float | None = None


class Times(Struct, frozen=True, omit_defaults=True):
    """A range of event time."""

    start: int | None = None
    end: int | None = None


class Asked(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all questions have."""

    project: str
    after: Mapping[int, int] = {}
    """Partition -> offset of a message that the answer has to contain; it is waited for up to 5 s."""


class EventsQuestion(Asked, frozen=True, kw_only=True, tag="events", omit_defaults=True):
    """`GET /v1/events`: a page of single events."""

    filters: Filters
    times: Times
    given: Times | None = None
    """What was given of `times`, where they are relative to the time of the question: what a cursor is bound to. In all
    questions with a cursor; None: `times` are what was given."""
    order: Order = "desc"
    limit: int = 50
    cursor: str | None = None
    extra: bool = True
    """Whether the unknown fields are among the answer."""


class EventQuestion(Asked, frozen=True, kw_only=True, tag="event"):
    """`GET /v1/events/{event_id}`."""

    event_id: str


class NewEventsQuestion(Asked, frozen=True, kw_only=True, tag="new_events", omit_defaults=True):
    """One step of `GET /v1/stream/events`: what has become visible behind a position.

    The answer is `NewEvents`: at most `limit` events, how many more there were, and the position behind all of them.
    """

    filters: Filters
    position: Mapping[int, int] | None = None
    """Partition -> first offset that has not been seen; None: only tells the present one."""
    limit: int = 200


class NewEvents(Struct, frozen=True):
    """The JSON of the answer to a `NewEventsQuestion`, as far as the API process looks into it."""

    events: Raw
    """A list of events, each as in a list."""
    skipped: int
    """Matching events beyond those."""
    position: dict[int, int]
    """Partition -> first offset that has not been looked at; the position of the next question."""
    as_of: str | None = field(default=None, name="asOf")
    lag: int | float | None = field(default=None, name="lagSeconds")


class TracesQuestion(Asked, frozen=True, kw_only=True, tag="traces", omit_defaults=True):
    """`GET /v1/traces`: summaries of the traces with a matching event."""

    filters: Filters
    times: Times
    given: Times | None = None
    sort: TraceSort = "start"
    limit: int = 50
    cursor: str | None = None


class TraceQuestion(Asked, frozen=True, kw_only=True, tag="trace", omit_defaults=True):
    """`GET /v1/traces/{trace_id}`."""

    trace_id: str
    format: TraceFormat = "flat"
    extra: bool = True


class SessionsQuestion(Asked, frozen=True, kw_only=True, tag="sessions", omit_defaults=True):
    """`GET /v1/sessions`."""

    filters: Filters
    times: Times
    given: Times | None = None
    sort: SessionSort = "start"
    limit: int = 50
    cursor: str | None = None


class SessionQuestion(Asked, frozen=True, kw_only=True, tag="session"):
    """`GET /v1/sessions/{session_id}`."""

    session_id: str


class MetricsQuestion(Asked, frozen=True, kw_only=True, tag="metrics", omit_defaults=True):
    """`GET /v1/metrics`."""

    filters: Filters
    times: Times
    group_by: tuple[str, ...] = ()
    """Up to three of the fields of `params`, or `tag:KEY` with the key unescaped."""
    measures: tuple[str, ...] = ("requests", "cost_usd")
    interval: Interval = "none"
    tz: str = "UTC"
    """A name that zoneinfo knows."""
    sort: str | None = None
    """One of the measures; None: the first."""
    limit: int = 100


class PromptsQuestion(Asked, frozen=True, kw_only=True, tag="prompts", omit_defaults=True):
    """`GET /v1/prompts`."""

    filters: Filters
    times: Times
    given: Times | None = None
    sort: str = "last_seen"
    limit: int = 50
    cursor: str | None = None


class ExportQuestion(Asked, frozen=True, kw_only=True, tag="export", omit_defaults=True):
    """`GET /v1/export`: answered by a stream."""

    filters: Filters
    times: Times
    format: ExportFormat = "ndjson"


class StatusQuestion(Asked, frozen=True, kw_only=True, tag="status"):
    """How far the store is, for `/metrics`: the answer is `server.telemetry.store_metrics.StoreStatus`."""


Question = (
    EventsQuestion
    | EventQuestion
    | NewEventsQuestion
    | TracesQuestion
    | TraceQuestion
    | SessionsQuestion
    | SessionQuestion
    | MetricsQuestion
    | PromptsQuestion
    | ExportQuestion
    | StatusQuestion
)

BY_ID: Final = (EventQuestion, TraceQuestion, SessionQuestion)
"""Questions that have a lane of their own, beside whatever else the project asks."""
