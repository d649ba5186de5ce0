"""The query parameters of the reads of events, checked and made into questions.

Every function takes the parameters as they were sent and raises nothing but `Refused`: bad_request with the name of the
parameter that is wrong, forbidden for another project, range_too_wide.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast, get_args

from server import position
from server.errors import Refused
from server.explore.filter_params import filters_of, given_times, times_of
from server.explore.metric_params import groups_of, interval_of, measures_of, zone_of
from server.explore.param_list import ParamList, bad
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    ExportFormat,
    ExportQuestion,
    Filters,
    Kinds,
    MetricsQuestion,
    NewEventsQuestion,
    Order,
    PromptsQuestion,
    SessionQuestion,
    SessionSort,
    SessionsQuestion,
    Times,
    TraceFormat,
    TraceQuestion,
    TraceSort,
    TracesQuestion,
)

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
"""Events, traces, sessions or prompts a page."""
DEFAULT_GROUPS: Final = 100
MAX_GROUPS: Final = 1000
"""Groups of an answer of metrics."""
MAX_CURSOR: Final = 2048
"""Characters of a cursor."""

ORDERS: Final[tuple[Order, ...]] = get_args(Order)
TRACE_SORTS: Final[tuple[TraceSort, ...]] = get_args(TraceSort)
TRACE_FORMATS: Final[tuple[TraceFormat, ...]] = ("flat", "tree")
SESSION_SORTS: Final[tuple[SessionSort, ...]] = get_args(SessionSort)
PROMPT_SORTS: Final = ("last_seen", "first_seen", "requests", "cost_usd", "error_rate")
EXPORT_FORMATS: Final[tuple[ExportFormat, ...]] = get_args(ExportFormat)

_CURSOR: Final = re.compile(r"[A-Za-z0-9_.~=-]+").fullmatch


class Inquiry(NamedTuple):
    """A read as it was sent."""

    project: str
    """The project of the key."""
    pairs: Sequence[tuple[str, str]]
    now: int
    """Microseconds since the epoch."""
    identity: str
    """The log's name in position tokens."""


def parse_events(inquiry: Inquiry) -> EventsQuestion:
    """Return the question of `GET /v1/events`."""
    params = ParamList(inquiry.pairs)
    asked, extra = _asked(inquiry, params), _with_extra(params)
    filters, times, given = _range(inquiry, params, "call")
    order = cast(Order, params.choice("order", ORDERS) or "desc")
    limit, cursor = _page(params)
    params.finish()
    return EventsQuestion(
        **asked, filters=filters, times=times, given=given, order=order, limit=limit, cursor=cursor, extra=extra
    )


def parse_event(inquiry: Inquiry, event_id: str) -> EventQuestion:
    """Return the question of `GET /v1/events/{event_id}`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    params.finish()
    return EventQuestion(**asked, event_id=event_id.lower())


def parse_new_events(inquiry: Inquiry) -> tuple[NewEventsQuestion, str | None]:
    """Return the first question of `GET /v1/stream/events`, and the `id` to resume at among the parameters."""
    params = ParamList(inquiry.pairs)
    asked, token = _asked(inquiry, params), params.one("lastEventId")
    filters = filters_of(params, "call")
    params.finish()
    return NewEventsQuestion(**asked, filters=filters), token


def parse_traces(inquiry: Inquiry) -> TracesQuestion:
    """Return the question of `GET /v1/traces`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    filters, times, given = _range(inquiry, params, "all")
    sort = cast(TraceSort, params.choice("sort", TRACE_SORTS) or "start")
    limit, cursor = _page(params)
    params.finish()
    return TracesQuestion(**asked, filters=filters, times=times, given=given, sort=sort, limit=limit, cursor=cursor)


def parse_trace(inquiry: Inquiry, trace_id: str) -> TraceQuestion:
    """Return the question of `GET /v1/traces/{trace_id}`."""
    params = ParamList(inquiry.pairs)
    asked, extra = _asked(inquiry, params), _with_extra(params)
    form = cast(TraceFormat, params.choice("format", TRACE_FORMATS) or "flat")
    params.finish()
    return TraceQuestion(**asked, trace_id=trace_id, format=form, extra=extra)


def parse_sessions(inquiry: Inquiry) -> SessionsQuestion:
    """Return the question of `GET /v1/sessions`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    filters, times, given = _range(inquiry, params, "all")
    sort = cast(SessionSort, params.choice("sort", SESSION_SORTS) or "start")
    limit, cursor = _page(params)
    params.finish()
    return SessionsQuestion(**asked, filters=filters, times=times, given=given, sort=sort, limit=limit, cursor=cursor)


def parse_session(inquiry: Inquiry, session_id: str) -> SessionQuestion:
    """Return the question of `GET /v1/sessions/{session_id}`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    params.finish()
    return SessionQuestion(**asked, session_id=session_id)


def parse_metrics(inquiry: Inquiry) -> MetricsQuestion:
    """Return the question of `GET /v1/metrics`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    filters, times, _ = _range(inquiry, params, "call")
    groups, measures = groups_of(params), measures_of(params)
    interval, zone = interval_of(params), zone_of(params)
    sort = params.choice("sort", measures)
    limit = params.whole("limit", DEFAULT_GROUPS, MAX_GROUPS)
    params.finish()
    return MetricsQuestion(
        **asked,
        filters=filters,
        times=times,
        group_by=groups,
        measures=measures,
        interval=interval,
        tz=zone,
        sort=sort,
        limit=limit,
    )


def parse_prompts(inquiry: Inquiry) -> PromptsQuestion:
    """Return the question of `GET /v1/prompts`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    filters, times, given = _range(inquiry, params, "call")
    sort = params.choice("sort", PROMPT_SORTS) or PROMPT_SORTS[0]
    limit, cursor = _page(params)
    params.finish()
    return PromptsQuestion(**asked, filters=filters, times=times, given=given, sort=sort, limit=limit, cursor=cursor)


def parse_export(inquiry: Inquiry) -> ExportQuestion:
    """Return the question of `GET /v1/export`."""
    params = ParamList(inquiry.pairs)
    asked = _asked(inquiry, params)
    filters, times, _ = _range(inquiry, params, "call")
    form = cast(ExportFormat, params.choice("format", EXPORT_FORMATS) or "ndjson")
    params.finish()
    return ExportQuestion(**asked, filters=filters, times=times, format=form)


# --- what several have -----------------------------------------------------------------------------------------------


def _asked(inquiry: Inquiry, params: ParamList) -> dict[str, Any]:
    """Return what all questions have: the project, and what the answer has to contain."""
    wanted, token = params.one("projectId"), params.one("after")
    if wanted is not None and wanted != inquiry.project:
        raise Refused("forbidden", "projectId is not the project of this API key")
    return {"project": inquiry.project, "after": {} if token is None else decode_after(inquiry.identity, token)}


def decode_after(identity: str, token: str) -> dict[int, int]:
    """Return the position of `after`. Raises `Refused`."""
    try:
        return position.decode(identity, token)
    except Refused:
        bad("after is not an ingest position of this server")


def _range(inquiry: Inquiry, params: ParamList, kinds: Kinds) -> tuple[Filters, Times, Times]:
    """Return the filters, the range of time, and what was given of that."""
    filters, given = filters_of(params, kinds), given_times(params)
    return filters, times_of(given, filters, inquiry.now), given


def _page(params: ParamList) -> tuple[int, str | None]:
    """Return the limit and the cursor of a page."""
    limit, cursor = params.whole("limit", DEFAULT_LIMIT, MAX_LIMIT), params.one("cursor")
    if cursor is not None and (len(cursor) > MAX_CURSOR or _CURSOR(cursor) is None):
        bad("cursor is not one that this server gave out")
    return limit, cursor


def _with_extra(params: ParamList) -> bool:
    return params.choice("extra", ("none",)) is None
