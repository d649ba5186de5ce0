"""The reads' answers as JSON, as the HTTP API documents them. Sums keep all their digits."""

from collections.abc import Iterable
from itertools import starmap
from typing import Any

import msgspec

from processor.core.clock import format_day, format_timestamp
from processor.core.money import exact_decimal, exact_number, format_cost
from processor.core.tables.row_sums import RowSums, Totals
from processor.view.listing import UserSums
from server.reads.answers import QuotaAnswer, UserDetail, UserPage
from server.reads.costs import Costs, Latency, average_cost, cache_hit_rate

_ROW = (
    b'{"user_id":%b,"requests":%d,"errors":%d,"input_tokens":%d,"output_tokens":%d,"cached_tokens":%d,'
    b'"cost_usd":%b,"unpriced":%d,"first_seen":%b,"last_seen":%b}'
)

encode = msgspec.json.Encoder().encode


def user_page(page: UserPage) -> dict[str, Any]:
    """Return the answer of `GET /v1/users`."""
    return {
        "users": [user_row(*user) for user in page.users],
        "total": {"users": page.users_total, **totals(page.total)},
        "nextCursor": page.next_cursor,
        "asOf": format_timestamp(page.as_of),
    }


def user_detail(detail: UserDetail) -> dict[str, Any]:
    """Return the answer of `GET /v1/users/{user_id}`."""
    return {
        **user_row(*detail.user),
        "byModel": [{"provider": row.provider, "model": row.model, **totals(row.totals)} for row in detail.by_model],
        "byDay": [{"day": format_day(row.day), **totals(row.totals)} for row in detail.by_day],
        "asOf": format_timestamp(detail.as_of),
    }


def user_row(user_id: str | None, sums: RowSums) -> dict[str, Any]:
    """Return one user, as all answers and the live feed show it."""
    seen = [format_timestamp(at) if sums.requests else None for at in (sums.first_seen, sums.last_seen)]
    return {"user_id": user_id, **totals(sums), "first_seen": seen[0], "last_seen": seen[1]}


def user_rows(users: Iterable[UserSums]) -> bytes:
    """Return the JSON list of `user_row`s, in a third of the time: the live feed writes thousands of them a second."""
    return b"[%b]" % b",".join(starmap(_user_row, users))


def _user_row(user_id: str | None, sums: RowSums) -> bytes:
    return _ROW % (
        encode(user_id),
        sums.requests,
        sums.errors,
        sums.input_tokens,
        sums.output_tokens,
        sums.cached_tokens,
        format_cost(sums.cost).encode(),
        sums.unpriced,
        _stamp(sums.first_seen, sums),
        _stamp(sums.last_seen, sums),
    )


def _stamp(micros: int, sums: RowSums) -> bytes:
    return b'"%b"' % format_timestamp(micros).encode() if sums.requests else b"null"


def totals(sums: Totals) -> dict[str, Any]:
    """Return sums as plain JSON numbers."""
    return {
        "requests": exact_number(sums.requests),
        "errors": exact_number(sums.errors),
        "input_tokens": exact_number(sums.input_tokens),
        "output_tokens": exact_number(sums.output_tokens),
        "cached_tokens": exact_number(sums.cached_tokens),
        "cost_usd": exact_decimal(sums.cost),
        "unpriced": exact_number(sums.unpriced),
    }


def costs(answer: Costs) -> dict[str, Any]:
    """Return the answer of `GET /v1/costs`."""
    return {
        "byModel": [
            {
                "provider": row.provider,
                "model": row.model,
                "tokens": exact_number(row.totals.input_tokens + row.totals.output_tokens),
                **totals(row.totals),
                "avgCost": exact_decimal(average_cost(row.totals)),
                "cacheHitRate": exact_decimal(cache_hit_rate(row.totals)),
                "latencyMs": None if row.latency is None else _latency(row.latency),
            }
            for row in answer.by_model
        ],
        "daily": [{"day": format_day(row.day), **totals(row.totals)} for row in answer.daily],
        "dailyByModel": [
            {
                "day": format_day(row.day),
                "provider": row.provider,
                "model": row.model,
                "cost_usd": exact_decimal(row.totals.cost),
                "requests": exact_number(row.totals.requests),
                "errors": exact_number(row.totals.errors),
            }
            for row in answer.daily_by_model
        ],
        "total": totals(answer.total),
        "monthToDate": exact_decimal(answer.month_to_date),
        "forecast30d": exact_decimal(answer.forecast),
        "cacheHitRate": exact_decimal(cache_hit_rate(answer.total)),
        "asOf": format_timestamp(answer.as_of),
    }


def _latency(found: Latency) -> dict[str, Any]:
    named = {"p50": found.p50, "p95": found.p95, "p99": found.p99}
    whole = {name: int(value) if value.is_integer() else value for name, value in named.items()}
    return {**whole, "measured": exact_number(found.measured)}


def quota(answer: QuotaAnswer) -> dict[str, Any]:
    """Return the answer of `GET /v1/quota`."""
    return {
        "organization": answer.organization,
        "period": answer.period,
        "limit": answer.limit,
        "used": answer.used,
        "remaining": answer.remaining,
        "resetsAt": format_timestamp(answer.resets_at),
        "windows": {
            kind: {"start": format_timestamp(window.start), "used": window.used, "limit": window.limit}
            for kind, window in answer.windows.items()
        },
        "duplicates": answer.duplicates,
        "conflicts": answer.conflicts,
    }
