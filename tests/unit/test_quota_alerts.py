import msgspec
import pytest

from processor.core.clock import HOUR, parse_timestamp
from server.alerts.quota_alerts import Alert, body, due
from server.tenancy.keys import Organization

NOVEMBER = parse_timestamp("2026-11-01T00:00:00Z")
DECEMBER = parse_timestamp("2026-12-01T00:00:00Z")
NOON = parse_timestamp("2026-11-24T12:00:00Z")


def reached(limit: int | None, used: int, now: int = NOON) -> list[int]:
    found = due([Organization("acme", limit)], lambda _, month: used if month == NOVEMBER else 0, now)
    assert all((alert.organization, alert.month, count) == ("acme", NOVEMBER, used) for alert, count in found)
    return [alert.threshold for alert, _ in found]


@pytest.mark.parametrize(
    ("limit", "used", "wanted"),
    [
        (None, 10**9, []),
        (0, 0, []),
        (10_000, 7_999, []),
        (10_000, 8_000, [80]),
        (10_000, 9_999, [80]),
        (10_000, 10_000, [80, 100]),
        (3, 2, []),
        (3, 3, [80, 100]),
        (2**53 - 1, 2**53 - 2, [80]),
    ],
)
def test_what_is_due(limit: int | None, used: int, wanted: list[int]) -> None:
    assert reached(limit, used) == wanted


def test_what_was_reached_at_a_months_end_is_still_told_a_little_later() -> None:
    assert reached(10, 10, DECEMBER) == [80, 100]
    assert reached(10, 10, DECEMBER + HOUR - 1) == [80, 100]
    assert reached(10, 10, DECEMBER + HOUR) == []


def test_an_id_is_of_one_thing_only() -> None:
    alert = Alert("acme", NOVEMBER, 80, 10)
    assert alert.id("log") == Alert("acme", NOVEMBER, 80, 10).id("log")
    others = [
        Alert("acm", NOVEMBER, 80, 10).id("log"),
        Alert("acme", DECEMBER, 80, 10).id("log"),
        Alert("acme", NOVEMBER, 100, 10).id("log"),
        Alert("acme", NOVEMBER, 80, 11).id("log"),
        alert.id("another"),
    ]
    assert len({alert.id("log"), *others}) == 6


def test_what_is_told() -> None:
    assert msgspec.json.decode(body(Alert("acme", NOVEMBER, 80, 10), 8, NOON)) == {
        "type": "quota.threshold_reached",
        "timestamp": "2026-11-24T12:00:00.000Z",
        "data": {
            "organization": "acme",
            "period": "2026-11",
            "threshold": 80,
            "limit": 10,
            "used": 8,
            "resetsAt": "2026-12-01T00:00:00.000Z",
        },
    }
