"""OpenTelemetry traces of the service itself, off by default: nothing of it is imported then, and a span costs nothing.

Where spans go and how many are taken say the standard OTEL_* variables (OTEL_EXPORTER_OTLP_ENDPOINT, ...). A span has
no key, no user and no tenant's name in it.
"""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from processor.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

LAST_WORDS: Final = 2.0
"""Seconds for what has not been exported yet when the process ends."""

Values = str | int | float | bool

_OFF: Final[AbstractContextManager[None]] = nullcontext()
_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


def configure(settings: Settings, role: str) -> None:
    """Begin to trace, if the settings say so. Raises `SettingsError` if OpenTelemetry is not installed."""
    global _tracer, _provider
    if not settings.traces:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(
            "SPENDSTREAM_TRACES needs the OpenTelemetry SDK: pip install 'spendstream[traces]', or leave it out"
        ) from None
    own = {"service.name": "spendstream", "service.version": version("spendstream"), "spendstream.role": role}
    _provider = TracerProvider(resource=Resource(own).merge(_from_environment(Resource)))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = _provider.get_tracer("spendstream")


def _from_environment(resource: Any) -> Any:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins; the SDK's placeholder for a name does not."""
    found = resource.create()
    kept = {name: value for name, value in found.attributes.items() if not str(value).startswith("unknown_service")}
    return resource(kept)


def is_on() -> bool:
    """True if spans are taken."""
    return _tracer is not None


def span(name: str, **attributes: Values) -> "AbstractContextManager[Span | None]":
    """A span within the present one, for the length of a `with` block."""
    if _tracer is None:
        return _OFF
    return _tracer.start_as_current_span(name, attributes=attributes)


def server_span(name: str, carrier: Mapping[str, str], attributes: Mapping[str, Values]) -> "Any":
    """The span of a request from outside; `carrier` are its headers or metadata, which may name the span it is in
    (`traceparent`, W3C Trace Context). Only while `is_on`."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    assert _tracer is not None
    return _tracer.start_as_current_span(
        name, context=extract(carrier), kind=SpanKind.SERVER, attributes=dict(attributes), record_exception=False
    )


def fail(found: "Span", why: str) -> None:
    """Mark a span as failed, and not by its caller's doing."""
    from opentelemetry.trace import StatusCode

    found.set_status(StatusCode.ERROR, why)


def finish() -> None:
    """Export what is left, and do not wait long for it."""
    if _provider is None:
        return
    last = threading.Thread(target=_provider.shutdown, daemon=True)
    last.start()
    last.join(LAST_WORDS)
