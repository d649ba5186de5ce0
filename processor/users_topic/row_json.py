"""A user's row as everybody sees it: the JSON of `GET /v1/users`, for readers of the topic `spendstream.users`.

`server.render` writes the same for the answers; tests/unit/test_row_json.py holds the two together.
"""

from typing import Any, Final

import msgspec
from msgspec import Raw

from processor.core.clock import format_timestamp
from processor.core.money import format_cost
from processor.view.sums import Numbers

_MAX_INT: Final = 2**63 - 1
_encode = msgspec.json.Encoder().encode


def user_row(project: str, user_id: str | None, numbers: Numbers) -> bytes:
    """A row over all time, with the project it belongs to; `user_id` None: the events without a user."""
    _, requests, errors, inputs, outputs, cached, cost, unpriced, first, last = numbers
    return _encode(
        {
            "project_id": project,
            "user_id": user_id,
            "requests": _number(requests),
            "errors": _number(errors),
            "input_tokens": _number(inputs),
            "output_tokens": _number(outputs),
            "cached_tokens": _number(cached),
            "cost_usd": Raw(format_cost(cost).encode()),
            "unpriced": _number(unpriced),
            "first_seen": format_timestamp(first) if requests else None,
            "last_seen": format_timestamp(last) if requests else None,
        }
    )


def _number(value: int) -> Any:
    """An integer of any size; the encoder's own end at 64 bits."""
    return value if value <= _MAX_INT else Raw(str(value).encode())
