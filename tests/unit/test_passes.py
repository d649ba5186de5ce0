"""The traffic without end of the benchmark: ids that are fresh, everything else as it was, and what it comes to."""

import uuid
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import codec
from server.ingest.inflate import inflate
from tests.bench.passes import HEX_AT, Bodies, Pass, hex_ids
from tests.support.tables import NOON
from tests.support.traffic import BATCH, Plain, micros
from tests.support.truth import Fact, GroundTruth, Sums

MADE: Final = Pass.make(users=60, seed=3)


def lines_of(bodies: Bodies, number: int) -> list[bytes]:
    return inflate(bodies.body(number), "gzip").split(b"\n")


def slow_truth(lines: list[bytes]) -> GroundTruth:
    """As the product would count them, without its code."""
    truth = GroundTruth(has_details=False)
    ids: set[str] = set()
    for line in lines:
        event = msgspec.json.decode(line)
        if event["event_id"] in ids:
            continue
        ids.add(event["event_id"])
        tokens = [event[name] for name in ("input_tokens", "output_tokens", "cached_tokens")]
        numbers = (1, int(event["status"] != "success"), *tokens, round(event["cost_usd"] * 10**12), 0)
        at = micros(datetime.fromisoformat(event["timestamp"]))
        truth.count([Fact(event["user_id"], at, event["provider"], event["model"], numbers)])
    return truth


def test_a_pass_has_every_user_with_every_model_and_some_events_twice() -> None:
    assert len(MADE.lines) % BATCH == 0
    events = [msgspec.json.decode(line) for line in MADE.lines]
    firsts = [number for number, first in enumerate(MADE.firsts) if first == number]
    rows = {(events[number]["user_id"], events[number]["provider"], events[number]["model"]) for number in firsts}
    assert len(rows) == len(firsts) == 60 * len(Plain.MODELS)
    assert {event["timestamp"][:10] for event in events} == {"2026-04-20"}
    for number, first in enumerate(MADE.firsts):
        assert first <= number
        assert MADE.firsts[first] == first
        assert MADE.lines[first] == MADE.lines[number]


@pytest.mark.slow
def test_a_full_pass_is_80_000_rows_and_one_event_in_a_hundred_twice() -> None:
    made = Pass.make()
    assert (len(made.lines), made.requests, len(set(made.firsts))) == (80_800, 808, 80_000)


def test_it_can_be_written_and_read(tmp_path: Path) -> None:
    MADE.write(tmp_path / "pass")
    assert Pass.read(tmp_path / "pass") == MADE


def test_only_the_ids_differ_and_the_product_takes_all_of_them() -> None:
    bodies = Bodies(MADE, 7)
    for number in range(3 * MADE.requests):
        lines = lines_of(bodies, number)
        start = number % MADE.requests * BATCH
        for line, template in zip(lines, MADE.lines[start : start + BATCH], strict=True):
            assert (line[:13], line[49:]) == (template[:13], template[49:])
        decoded = codec.decode("json", lines, "strict", NOON)
        assert len(decoded.columns) == BATCH
        assert not decoded.faults


def test_ids_are_uuids_of_version_4_and_come_once_but_for_copies() -> None:
    bodies = [Bodies(MADE, seed) for seed in (1, 2)]
    numbers = range(3 * MADE.requests)
    seen: set[str] = set()
    for each in bodies:
        found = [line[13:49].decode() for line in chain.from_iterable(lines_of(each, number) for number in numbers)]
        for number, text in enumerate(found):
            identity = uuid.UUID(text)
            assert (identity.version, identity.variant) == (4, uuid.RFC_4122)
            turn, place = divmod(number, len(MADE.lines))
            first = MADE.firsts[place]
            assert text == found[turn * len(MADE.lines) + first]
            assert first != place or text not in seen
            seen.add(text)
    assert len(seen) == 2 * 3 * len(set(MADE.firsts))


def test_the_same_seed_writes_the_same_ids_in_lower_case() -> None:
    firsts = np.arange(500)
    digits = hex_ids(5, 9, firsts)
    assert np.array_equal(digits, hex_ids(5, 9, firsts))
    assert set(digits.tobytes()) == set(b"0123456789abcdef")
    assert digits.shape == (500, len(HEX_AT))


@given(st.lists(st.integers(0, 4 * MADE.requests - 1), max_size=3 * MADE.requests, unique=True))
def test_the_arithmetic_is_what_counting_says(taken: list[int]) -> None:
    bodies = Bodies(MADE, 1)
    lines = [line for number in sorted(taken) for line in lines_of(bodies, number)]
    assert MADE.truth(MADE.counted(np.array(taken, np.int64))) == slow_truth(lines)


@given(st.integers(0, 4 * MADE.requests))
def test_of_the_first_requests_it_takes_no_list_of_them(requests: int) -> None:
    assert np.array_equal(MADE.counted_first(requests), MADE.counted(np.arange(requests)))


def test_truths_add_up() -> None:
    bodies = Bodies(MADE, 1)
    one, other = ([line for number in numbers for line in lines_of(bodies, number)] for numbers in ((0, 1), (9, 12)))
    assert slow_truth(one) + slow_truth(other) == slow_truth(one + other)
    assert GroundTruth() + slow_truth(one) == slow_truth(one) == slow_truth(one) + GroundTruth()


@pytest.mark.parametrize("passes", [1, 1000])
def test_whole_passes_are_multiples(passes: int) -> None:
    one = MADE.truth(MADE.counted(np.arange(MADE.requests)))
    many = MADE.truth(MADE.counted(np.arange(passes * MADE.requests)))
    assert many.users == {
        user: Sums([passes * number for number in sums.numbers], sums.first, sums.last)
        for user, sums in one.users.items()
    }
    assert many.unique == passes * len(set(MADE.firsts))
