"""Receipts, refusals and the reads' answers as messages of `spendstream.v1`."""

from itertools import starmap

from google.rpc import status_pb2

from processor.core.clock import format_day, format_timestamp
from processor.core.money import format_cost
from processor.core.tables.row_sums import RowSums, Totals
from protos.spendstream.v1 import ingest_pb2, usage_pb2
from server.errors import Refused, Rejection
from server.ingest.batch import Receipt
from server.reads.answers import QuotaAnswer, UserDetail, UserPage
from server.reads.costs import Costs, Latency, average_cost, cache_hit_rate
from server.status import grpc_status

_MAX_INT = 2**63 - 1


def receipt(sequence: int, taken: Receipt) -> ingest_pb2.IngestResponse:
    """Return the answer to an accepted batch."""
    return ingest_pb2.IngestResponse(
        sequence=sequence,
        accepted=taken.accepted,
        rejected=map(_rejection, taken.rejected),
        position=taken.position,
    )


def refusal(sequence: int, refused: Refused) -> ingest_pb2.IngestResponse:
    """Return the answer to a batch of a stream that was refused as a whole."""
    rejected = map(_rejection, refused.rejected)
    return ingest_pb2.IngestResponse(sequence=sequence, rejected=rejected, status=grpc_status(refused))


def failure(sequence: int, status: status_pb2.Status) -> ingest_pb2.IngestResponse:
    """Return the answer to a batch of a stream that failed by a fault of the server."""
    return ingest_pb2.IngestResponse(sequence=sequence, status=status)


def _rejection(item: Rejection) -> ingest_pb2.Rejection:
    return ingest_pb2.Rejection(
        line=item.line, event_id=item.event_id, field=item.field, code=item.code, message=item.message
    )


def user_page(page: UserPage) -> usage_pb2.ListUsersResponse:
    """Return the answer of `ListUsers`."""
    return usage_pb2.ListUsersResponse(
        users=starmap(user_row, page.users),
        total=totals(page.total),
        total_users=_int64(page.users_total),
        next_cursor=page.next_cursor,
        as_of=format_timestamp(page.as_of),
    )


def user_detail(detail: UserDetail) -> usage_pb2.GetUserResponse:
    """Return the answer of `GetUser`."""
    return usage_pb2.GetUserResponse(
        user=user_row(*detail.user),
        by_model=[
            usage_pb2.ModelSums(provider=row.provider, model=row.model, sums=totals(row.totals))
            for row in detail.by_model
        ],
        by_day=[usage_pb2.DaySums(day=format_day(row.day), sums=totals(row.totals)) for row in detail.by_day],
        as_of=format_timestamp(detail.as_of),
    )


def user_row(user_id: str | None, sums: RowSums) -> usage_pb2.UserRow:
    """Return one user, as all answers and the live feed show it."""
    seen = [format_timestamp(at) if sums.requests else "" for at in (sums.first_seen, sums.last_seen)]
    return usage_pb2.UserRow(user_id=user_id, sums=totals(sums), first_seen=seen[0], last_seen=seen[1])


def totals(sums: Totals) -> usage_pb2.Sums:
    """Return sums. The cost is exact; counts that do not fit 64 bits saturate."""
    return usage_pb2.Sums(
        requests=_int64(sums.requests),
        errors=_int64(sums.errors),
        input_tokens=_int64(sums.input_tokens),
        output_tokens=_int64(sums.output_tokens),
        cached_tokens=_int64(sums.cached_tokens),
        cost_usd=format_cost(sums.cost),
        unpriced=_int64(sums.unpriced),
    )


def costs(answer: Costs) -> usage_pb2.GetCostsResponse:
    """Return the answer of `GetCosts`."""
    return usage_pb2.GetCostsResponse(
        by_model=[
            usage_pb2.ModelCost(
                provider=row.provider,
                model=row.model,
                sums=totals(row.totals),
                tokens=_int64(row.totals.input_tokens + row.totals.output_tokens),
                avg_cost=format_cost(average_cost(row.totals)),
                cache_hit_rate=format_cost(cache_hit_rate(row.totals)),
                latency=None if row.latency is None else _latency(row.latency),
            )
            for row in answer.by_model
        ],
        daily=[usage_pb2.DaySums(day=format_day(row.day), sums=totals(row.totals)) for row in answer.daily],
        daily_by_model=[
            usage_pb2.ModelDay(
                day=format_day(row.day),
                provider=row.provider,
                model=row.model,
                cost_usd=format_cost(row.totals.cost),
                requests=_int64(row.totals.requests),
                errors=_int64(row.totals.errors),
            )
            for row in answer.daily_by_model
        ],
        total=totals(answer.total),
        month_to_date=format_cost(answer.month_to_date),
        forecast30d=format_cost(answer.forecast),
        cache_hit_rate=format_cost(cache_hit_rate(answer.total)),
        as_of=format_timestamp(answer.as_of),
    )


def _latency(found: Latency) -> usage_pb2.Latency:
    return usage_pb2.Latency(p50_ms=found.p50, p95_ms=found.p95, p99_ms=found.p99, measured=_int64(found.measured))


def quota(answer: QuotaAnswer) -> usage_pb2.GetQuotaResponse:
    """Return the answer of `GetQuota`."""
    return usage_pb2.GetQuotaResponse(
        organization=answer.organization,
        period=answer.period,
        limit=_limit(answer.limit),
        used=_int64(answer.used),
        remaining=_limit(answer.remaining),
        resets_at=format_timestamp(answer.resets_at),
        windows={
            kind: usage_pb2.QuotaWindow(
                start=format_timestamp(window.start), used=_int64(window.used), limit=_limit(window.limit)
            )
            for kind, window in answer.windows.items()
        },
        duplicates=_int64(answer.duplicates),
        conflicts=_int64(answer.conflicts),
    )


def _int64(value: int) -> int:
    return min(value, _MAX_INT)


def _limit(value: int | None) -> int | None:
    return None if value is None else _int64(value)
