"""OTLP over gRPC: `TraceService/Export`, and the services that say that only traces are accepted."""

from collections.abc import Awaitable, Callable
from typing import Final

from processor.core.events.content_coding import MAX_BODY
from processor.structured_log import structlog
from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.errors import Refused
from server.grpc_api.call_metadata import Context, message_of, metadata_of, pace_stranger
from server.ingest.inflate import too_large
from server.limits.call_shares import CallShares
from server.limits.connection_watch import ConnectionWatch
from server.otlp import export_responses
from server.otlp.span_export import ExportAnswer, failed, soon
from server.services import Services, secret_of
from server.status import POSITION
from server.tenancy.keys import Key

TRACES: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
LOGS: Final = "opentelemetry.proto.collector.logs.v1.LogsService"

log = structlog.get_logger(__name__)


class NotServed(Refused):
    """A refusal that is UNIMPLEMENTED, whatever its reason: exporters do not call again."""


class OtlpServicer:
    """Spans, and what is answered to other signals."""

    def __init__(self, services: Services, connections: ConnectionWatch, shares: CallShares) -> None:
        self._services = services
        self._connections = connections
        self._shares = shares

    async def Export(self, context: Context) -> pb.ExportResponse:
        """`TraceService/Export`. Raises `Refused`, never as a fault that exporters do not retry."""
        services, metadata = self._services, metadata_of(context)
        sender = ""
        try:
            key = services.authenticate(secret_of(metadata.get("x-api-key"), metadata.get("authorization")), "ingest")
            self._connections.know(context.peer())
            sender = key.id
            with self._shares.call(key.organization):
                answer = await self._accept(key, await message_of(context))
        except Refused as refused:
            services.intake.meters.refused("otlp", refused)
            if sender:
                await services.throttle.pace(sender, refused)
            else:
                await pace_stranger(services, context, refused)
            raise soon(refused) from None
        except Exception:
            log.exception("otlp_call_failed")
            raise failed() from None
        context.set_trailing_metadata(((POSITION, answer.position),))
        return export_responses.response_of(answer)

    async def _accept(self, key: Key, raw: bytes) -> ExportAnswer:
        if len(raw) > MAX_BODY:
            raise too_large()
        with self._services.bodies.hold(key.organization, key.id) as hold:
            hold.reserve(len(raw))
            return await self._services.otlp.accept(key, raw, "protobuf", hold.reserve)


def not_served(refusal: Callable[[], Refused]) -> Callable[[Context], Awaitable[pb.ExportResponse]]:
    """A method of a signal that is not accepted."""

    async def Export(_: Context) -> pb.ExportResponse:
        refused = refusal()
        raise NotServed(refused.reason, refused.message)

    return Export
