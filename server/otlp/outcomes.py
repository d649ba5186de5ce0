"""How a span ended: its status, and what is known of its error."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from server.otlp.spans import SpanEvent

EXCEPTION: Final = "exception"
"""The name of the event that has an error's type and message."""
_STATUS_CODES: Final = {"408": "timeout", "429": "rate_limited"}


class Outcome(NamedTuple):
    """The status of an event, the code and the message of its error."""

    status: str
    error_code: str | None = None
    error_message: str | None = None


SUCCESS: Final = Outcome("success")


def outcome_of(is_error: bool, message: str, error_type: Any, http_status: Any, events: Sequence[SpanEvent]) -> Outcome:
    """The outcome of a span. Libraries before 1.23 leave the status unset and only name the type of the error."""
    if not is_error and error_type is None:
        return SUCCESS
    thrown = _exception(events)
    kind = error_type if error_type is not None else thrown.get("exception.type")
    text = message or thrown.get("exception.message") or None
    code = None if kind is None else str(kind)
    status = _status(code or "")
    if status == "error" and http_status is not None:
        status = _STATUS_CODES.get(str(http_status), status)
    return Outcome(status, code, None if text is None else str(text))


def _exception(events: Sequence[SpanEvent]) -> Mapping[str, Any]:
    """The last one: it is what ended the span."""
    return next((event.attributes for event in reversed(events) if event.name == EXCEPTION), {})


def _status(code: str) -> str:
    found = _STATUS_CODES.get(code)
    if found is not None:
        return found
    word = code.lower().replace("_", "").replace("-", "").replace(" ", "")
    if "timeout" in word or "timedout" in word or "deadlineexceeded" in word:
        return "timeout"
    if "ratelimit" in word or "toomanyrequests" in word or "resourceexhausted" in word:
        return "rate_limited"
    return "error"
