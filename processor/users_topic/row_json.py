"""A user's row as JSON, in the form of `GET /v1/users`, for readers of the topic `spendstream.users`.

`server.reads.read_json` writes the same for the answers; a test compares the two.
"""

import msgspec

from processor.core.clock import format_timestamp
from processor.core.exact_json import exact_decimal, exact_number
from processor.core.tables.row_sums import RowSums

_encode = msgspec.json.Encoder().encode


def user_row(project: str, user_id: str | None, sums: RowSums) -> bytes:
    """Return a row over all time, with its project; `user_id` None: the unattributed events."""
    return _encode(
        {
            "project_id": project,
            "user_id": user_id,
            "requests": exact_number(sums.requests),
            "errors": exact_number(sums.errors),
            "input_tokens": exact_number(sums.input_tokens),
            "output_tokens": exact_number(sums.output_tokens),
            "cached_tokens": exact_number(sums.cached_tokens),
            "cost_usd": exact_decimal(sums.cost),
            "unpriced": exact_number(sums.unpriced),
            "first_seen": format_timestamp(sums.first_seen) if sums.requests else None,
            "last_seen": format_timestamp(sums.last_seen) if sums.requests else None,
        }
    )
