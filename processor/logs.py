"""The program's own log: structured lines on standard error, for people on a terminal, as JSON elsewhere.

What came from outside (ids, names, the text of an exception) is in it as text: control characters are escaped.
"""

import io
import logging
import sys
from typing import Any, Final, TextIO

from processor.core.visible import visible, visible_json, visible_lines
from processor.settings import Settings
from processor.structured_log import structlog
from processor.uncaught import print_exception

QUIET: Final = (
    "faust",
    "mode",
    "aiokafka",
    "aiohttp",
    "grpc",
    "asyncio",
    "opentelemetry",
    "urllib3",
    "processor.log.embedded.transport",
    "processor.log.faust_app",
    "processor.log.faust_assignment",
    "processor.state.faust_table",
)
"""Libraries (and our classes that are their services) whose chatter is of no use to an operator."""

_PROCESSORS: Final[list[structlog.typing.Processor]] = []
"""One list for good: a logger that was used before a second `configure` (in a process that forks others) keeps it."""


def configure(settings: Settings, role: str) -> None:
    """Set up structlog and the standard library's logging alike."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_role(role),
    ]
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")  # no locale, and no setting of Python's, may stop a line
    sys.excepthook = print_exception
    final: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(), _escape_json]
        if as_json
        else [
            _escape_values,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_print_traceback),
        ]
    )
    _PROCESSORS[:] = [*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _with_role(role: str) -> structlog.typing.Processor:
    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["role"] = role
        return event

    return add


def _escape_values(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Before the lines for people: the colours are added later, so nothing here may bring its own."""
    return {visible(name): value if name == "exc_info" else _shown(value) for name, value in event.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    text = repr(value)
    return value if visible(text) == text else visible(text)


def _print_traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Plain: the default traceback prints local variables, keys and events among them."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    stream.write(visible_lines(plain.getvalue()))


def _escape_json(_: object, __: str, line: Any) -> str:
    return visible_json(line)
