"""What the tables say of events in memory, for the stand-in of the server: the reads of costs and users."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

Event = dict[str, Any]
TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens")


def _calls(events: list[Event], start: str | None, end: str | None = None) -> list[Event]:
    calls = [event for event in events if event["kind"] == "call"]
    return [each for each in calls if (start or "") <= each["timestamp"] and (end is None or each["timestamp"] < end)]


def _cost(events: list[Event]) -> Decimal:
    return sum((event["cost_usd"] or Decimal(0) for event in events), Decimal(0))


def _sums(calls: list[Event]) -> dict[str, Any]:
    return {
        "requests": len(calls),
        **{name: sum(event.get(name, 0) for event in calls) for name in TOKENS},
        "errors": sum(event["status"] != "success" for event in calls),
        "unpriced": sum(event["cost_usd"] is None for event in calls),
        "cost_usd": _cost(calls),
    }


def _by(calls: list[Event], key: Callable[[Event], Any]) -> dict[Any, list[Event]]:
    found: dict[Any, list[Event]] = {}
    for event in calls:
        found.setdefault(key(event), []).append(event)
    return found


def _day(event: Event) -> str:
    return str(event["timestamp"])[:10]


def _model(event: Event) -> tuple[str, str]:
    return event["provider"], event["model"]


def _by_model(calls: list[Event]) -> list[dict[str, Any]]:
    rows = []
    for (provider, model), part in _by(calls, _model).items():
        average = _cost(part) / len(part)
        latency = {"p50": 1, "p95": 1, "p99": 1, "measured": len(part)}
        rows.append({"provider": provider, "model": model, **_sums(part), "avgCost": average, "latencyMs": latency})
    return sorted(rows, key=lambda row: (-row["cost_usd"], row["model"]))


def costs(events: list[Event], start: str | None, end: str | None = None) -> dict[str, Any]:
    """The answer of `GET /v1/costs`."""
    now = datetime.now(UTC)
    calls = _calls(events, start, end)
    return {
        "asOf": f"{now:%Y-%m-%dT%H:%M:%S}.000Z",
        "total": {**_sums(calls), "users": len(_by(calls, lambda event: event.get("user_id")))},
        "byModel": _by_model(calls),
        "daily": [{"day": day, "cost_usd": _cost(part)} for day, part in sorted(_by(calls, _day).items())],
        "dailyByModel": [
            {"day": day, "provider": provider, "model": model, "cost_usd": _cost(part)}
            for (day, (provider, model)), part in sorted(_by(calls, lambda each: (_day(each), _model(each))).items())
        ],
        "monthToDate": _cost(_calls(events, f"{now:%Y-%m}-01")),
        "forecast30d": 0,
    }


def _row(user: str | None, calls: list[Event]) -> dict[str, Any]:
    times = [event["timestamp"] for event in calls]
    return {"user_id": user, **_sums(calls), "first_seen": min(times), "last_seen": max(times)}


def users(
    events: list[Event], start: str | None, end: str | None, sort: str, limit: int, cursor: str | None
) -> dict[str, Any]:
    """The answer of `GET /v1/users`."""
    calls = _calls(events, start, end)
    rows = [_row(user, part) for user, part in _by(calls, lambda event: event.get("user_id")).items()]
    rows.sort(key=lambda row: row["user_id"] or "")
    rows.sort(key=lambda row: row[sort], reverse=True)
    at = int(cursor or 0)
    following = str(at + limit) if at + limit < len(rows) else None
    return {"users": rows[at : at + limit], "nextCursor": following, "total": {**_sums(calls), "users": len(rows)}}


def user(events: list[Event], wanted: str, start: str | None, end: str | None = None) -> dict[str, Any] | None:
    """The answer of `GET /v1/users/{user_id}`; None: there is no such user."""
    own = [event for event in events if event.get("user_id") == wanted]
    if not own:
        return None
    calls = _calls(own, start, end)
    by_day = [{"day": day, **_sums(part)} for day, part in sorted(_by(calls, _day).items())]
    as_of = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"
    return {**_row(wanted, calls), "byDay": by_day, "byModel": _by_model(calls), "asOf": as_of}
