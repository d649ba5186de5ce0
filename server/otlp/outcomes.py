"""How a span ended: its status, and what is known of its error."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from server.otlp.spans import SpanEvent

EXCEPTION: Final = "exception"
"""The name of the event that has an error's type and message."""
MAX_SEARCHED: Final = 256
"""Characters of a message in which a status code is looked for."""
_IN_MESSAGE: Final = re.compile(
    r"(?:\A(?:\w+: )?|\b(?:error code|status[_ ]?code|http)\W{0,3})(408|429)\b", re.IGNORECASE
)
"""Errors whose type says nothing begin with the code, or name it."""
_STATUS_CODES: Final = {"408": "timeout", "429": "rate_limited"}


class SpanStatus(NamedTuple):
    """The status of an event, the code and the message of its error."""

    status: str
    error_code: str | None = None
    error_message: str | None = None


SUCCESS: Final = SpanStatus("success")


def outcome_of(
    is_error: bool, message: str, error_type: Any, http_status: Any, events: Sequence[SpanEvent]
) -> SpanStatus:
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
    if status == "error" and text:
        said = _IN_MESSAGE.search(str(text)[:MAX_SEARCHED])
        if said is not None:
            status = _STATUS_CODES[said[1]]
    return SpanStatus(status, code, None if text is None else str(text))


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
