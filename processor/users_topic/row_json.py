"""A user's row as everybody sees it: the JSON of `GET /v1/users`, for readers of the topic `spendstream.users`.

`server.reads.read_json` writes the same for the answers; tests/unit/test_row_json.py holds the two together.
"""

import msgspec

from processor.core.clock import format_timestamp
from processor.core.exact_json import exact_decimal, exact_number
from processor.view.row_numbers import Numbers

_encode = msgspec.json.Encoder().encode


def user_row(project: str, user_id: str | None, numbers: Numbers) -> bytes:
    """A row over all time, with the project it belongs to; `user_id` None: the events without a user."""
    _, requests, errors, inputs, outputs, cached, cost, unpriced, first, last = numbers
    return _encode(
        {
            "project_id": project,
            "user_id": user_id,
            "requests": exact_number(requests),
            "errors": exact_number(errors),
            "input_tokens": exact_number(inputs),
            "output_tokens": exact_number(outputs),
            "cached_tokens": exact_number(cached),
            "cost_usd": exact_decimal(cost),
            "unpriced": exact_number(unpriced),
            "first_seen": format_timestamp(first) if requests else None,
            "last_seen": format_timestamp(last) if requests else None,
        }
    )
