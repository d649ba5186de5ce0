"""The checks of a whole batch give what the checks of one give, and refuse a batch of which those refuse one."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import parse_timestamp
from processor.core.events.bulk_checks import MANY_DAYS, parse_costs, parse_timestamps, uuid_bytes
from processor.core.events.event import is_uuid4
from processor.core.money import parse_cost


def agree(batch: Callable[[Sequence[str]], Any], one: Callable[[str], object], texts: list[str]) -> None:
    try:
        expected = [one(text) for text in texts]
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            batch(texts)
    else:
        assert batch(texts) == expected


def checked_uuid(text: str) -> bytes:
    if not is_uuid4(text):
        raise ValueError
    return UUID(text).bytes


def uuids_as_list(texts: Sequence[str]) -> list[bytes]:
    raw = uuid_bytes(texts)
    return [raw[start : start + 16] for start in range(0, len(raw), 16)]


ids = st.uuids(version=4).map(str) | st.uuids(version=4).map(lambda found: str(found).upper())
no_ids = st.one_of(
    st.text(max_size=40),
    st.uuids(version=1).map(str),
    st.uuids(version=4).map(lambda found: found.hex),
    st.uuids(version=4).map(lambda found: f" {found}"[:36]),
    st.uuids(version=4).map(lambda found: f"{found}\n"),
    st.builds(
        lambda found, place, letter: f"{found}"[:place] + letter + f"{found}"[place + 1 :],
        ids,
        st.integers(0, 35),
        st.characters(),
    ),
)


@given(st.lists(ids, max_size=6), st.lists(no_ids, max_size=1), st.randoms(use_true_random=True))
def test_ids(good: list[str], bad: list[str], random: Any) -> None:
    texts = good + bad
    random.shuffle(texts)
    agree(uuids_as_list, checked_uuid, texts)


def test_ids_do_not_borrow_from_their_neighbours() -> None:
    first, second = str(uuid4()), str(uuid4())
    for cut in range(37):
        joined = f"{first}\n{second}"
        agree(uuids_as_list, checked_uuid, [joined[: 36 - cut], joined[37 - cut :]])
        agree(uuids_as_list, checked_uuid, [joined, "", str(uuid4())])
        agree(uuids_as_list, checked_uuid, [first + second[:cut], second[cut:]])


FORMS = [
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S.000Z",
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%dT%H:%M:%S+00:00",
    "%Y-%m-%dT%H:%M:%S.123+00:00",
    "%Y-%m-%dT%H:%M:%S.%f+00:00",
    "%Y-%m-%dT%H:%M:%S.%f+02:00",
    "%Y-%m-%d %H:%M:%SZ",
]
instants = st.datetimes(datetime(2026, 4, 19), datetime(2026, 4, 21)) | st.datetimes(datetime(1000, 1, 1))  # noqa: DTZ001
odd_times = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "2026-04-20T24:00:00.000Z",
            "2026-04-20T10:60:00.000Z",
            "2026-04-20T10:00:60.000Z",
            "2026-06-30T23:59:60.000Z",
            "2026-02-30T10:00:00.000Z",
            "2026-04-20T10:00:00.00xZ",
            "2026-04-20T10:00:00.000z",
            "2026-04-20t10:00:00.000Z",
            "2026-04-20T1٣:00:00.000Z",
            "2026-04-20T10:00:00,000Z",
            "0000-04-20T10:00:00.000Z",
            "2026-04-20T10:00:00.000+0000",
        ]
    ),
)


@given(
    st.lists(instants, max_size=6),
    st.sampled_from(FORMS),
    st.booleans(),
    st.lists(odd_times, max_size=1),
    st.randoms(use_true_random=True),
)
def test_times(moments: list[datetime], form: str, one_day: bool, odd: list[str], random: Any) -> None:
    if one_day:
        moments = [moment.replace(2026, 4, 20) for moment in moments]
    texts = [moment.replace(tzinfo=UTC).strftime(form) for moment in moments] + odd
    random.shuffle(texts)
    agree(lambda every: parse_timestamps(every).tolist(), parse_timestamp, texts)


@pytest.mark.parametrize("day", ["1969-12-31", "0001-01-01", "9999-12-31", "2024-02-29", "2025-02-29", "2026-13-01"])
def test_times_of_any_day(day: str) -> None:
    texts = [f"{day}T00:00:00.000Z", f"{day}T23:59:59.999Z"]
    agree(lambda every: parse_timestamps(every).tolist(), parse_timestamp, texts)


@pytest.mark.parametrize("days", [2, MANY_DAYS, MANY_DAYS + 1, 40])
@pytest.mark.parametrize("rest", ["", ".001", ".999999"])
@pytest.mark.parametrize("offset", ["Z", "+00:00", "+05:30"])
def test_times_of_several_days(days: int, rest: str, offset: str) -> None:
    first = datetime(2026, 2, 1, 23, 59, 7, tzinfo=UTC)
    texts = [f"{first + number * timedelta(hours=23):%Y-%m-%dT%H:%M:%S}{rest}{offset}" for number in range(days)]
    agree(lambda every: parse_timestamps(every).tolist(), parse_timestamp, texts)
    agree(lambda every: parse_timestamps(every).tolist(), parse_timestamp, [*texts, f"2026-02-03T10:60:00{rest}Z"])
    agree(lambda every: parse_timestamps(every).tolist(), parse_timestamp, [*texts, f"2026-02-30T10:00:00{rest}Z"])


numbers = st.one_of(
    st.decimals(0, 10, places=6).map(str),
    st.decimals(0, 1000, places=12).map("{:f}".format),
    st.decimals(0, 1_000_001, places=14).map("{:f}".format),
    st.floats(0, 1e6).map(repr),
    # about the ties: half a picodollar, and a little more or less
    st.builds(
        "{}.{:012d}{}".format,
        st.integers(0, 600),
        st.integers(0, 10**12 - 1),
        st.sampled_from(["5", "49999999", "50000001", "4999999999999999999999", "5000000000000000000001"]),
    ),
    st.sampled_from(
        ["0", "0.0", "-0", "-0.0", "1e-5", "2E-05", "1e-400", "-1e-400", "-1", "1e6", "1000000.0000000001"]
    ),
    st.sampled_from(
        ["1e400", "0e99999999999999999999", "1e-99999999999999999999", "562.949953421312", "562.9499534213125"]
    ),
)


@given(st.lists(numbers, max_size=6), st.lists(st.sampled_from(["null", '"0.1"', "", "[1]", "true"]), max_size=1))
def test_costs(good: list[str], bad: list[str]) -> None:
    agree(lambda every: parse_costs(every).tolist(), parse_cost, good + bad)


@given(st.lists(st.integers(0, 10**15), min_size=50, max_size=200))
def test_costs_of_twelve_places_are_what_was_written(pico: list[int]) -> None:
    texts = [f"{cost // 10**12}.{cost % 10**12:012d}".rstrip("0").rstrip(".") for cost in pico]
    assert parse_costs(texts).tolist() == pico
    assert parse_costs(texts).dtype == np.int64
    assert [int(Decimal(text).scaleb(12)) for text in texts] == pico
