"""The live feed over gRPC: `WatchUsers`."""

from collections.abc import Callable
from contextlib import aclosing
from itertools import starmap
from typing import Any

import grpc

from processor.core.clock import format_timestamp
from protos.spendstream.v1 import usage_pb2
from server.alerts.budgets import Reached
from server.grpc_api import messages
from server.live.feed import Feed
from server.live.frames import Frame
from server.tenancy.keys import Key


async def watch_users(
    feed: Feed,
    request: usage_pb2.WatchUsersRequest,
    secret: str | None,
    check: Callable[[], Key],
    after: str | None,
    context: "grpc.aio.ServicerContext[Any, Any]",
) -> None:
    """Write responses until the client leaves. Raises `Refused` at the start, and when the key ends or the server
    stops."""
    params = {"projectId": request.project_id} if request.HasField("project_id") else {}
    token = request.resume_token if request.HasField("resume_token") else None
    subscription = await feed.open(secret, check, params, request.user_ids, token, after, context.cancelled)
    await context.send_initial_metadata(())
    async with aclosing(feed.frames(subscription)) as frames:
        async for frame in frames:
            if isinstance(frame, Frame):
                await context.write(frame.encoded("grpc", response))
            elif frame is not None:  # None, a heartbeat, is not needed: HTTP/2 has pings
                await context.write(budget_response(frame, subscription.token))


def budget_response(reached: Reached, token: str) -> bytes:
    """Return a reached budget as a serialized `WatchUsersResponse` without rows."""
    told = usage_pb2.BudgetReached(
        id=reached.id,
        budget=reached.budget,
        user_id=reached.user_id,
        model=reached.model,
        window=reached.window,
        start=format_timestamp(reached.start),
        end=format_timestamp(reached.end),
        usd=reached.usd,
        threshold=reached.threshold,
        spent=reached.spent,
        at=format_timestamp(reached.at),
    )
    return usage_pb2.WatchUsersResponse(budget=told, resume_token=token).SerializeToString()


def response(frame: Frame) -> bytes:
    """Return a frame as a serialized `WatchUsersResponse`."""
    return usage_pb2.WatchUsersResponse(
        snapshot=frame.snapshot,
        users=starmap(messages.user_row, frame.rows),
        as_of=format_timestamp(frame.as_of),
        resume_token=frame.token,
    ).SerializeToString()
