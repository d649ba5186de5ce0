"""Events as JSON column by column: the same bytes as row by row."""

import random

import msgspec
import pytest

from processor.core.clock import LAST
from server.explore.event_json import events_of
from server.explore.event_lines import event_lines
from tests.support.event_store import make_row, random_row, table_of


@pytest.mark.parametrize("extra", [True, False])
def test_the_bytes_are_those_of_single_events(extra: bool) -> None:
    rng = random.Random(23)
    rows = [random_row(rng) for _ in range(500)]
    rows += [
        make_row(timestamp=-62_135_596_800_000_000, received_at=LAST, cost_usd=None),
        make_row(timestamp=-1, received_at=0, cost_usd=0, tags={}, tools_used=[], eval_scores={}),
        make_row(cost_usd=10**18, latency_ms=1.7976931348623157e308, ttft_ms=5e-324, user_id="", name='"\\\0\u2028é'),
    ]
    table = table_of(rows)
    for part in (table, table.slice(3), table.slice(490, 12)):
        assert event_lines(part, extra=extra) == [msgspec.json.encode(event) for event in events_of(part, extra=extra)]
