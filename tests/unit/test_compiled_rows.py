"""What the compiled kernel takes by itself, and how the rest is put beside it; tests/fuzz compares the values."""

import itertools
import time
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import codec, compiled_rows, ndjson
from processor.core.events.columns import ROW, UNPRICED_FLAG
from processor.core.events.event import MAX_EVENT_BYTES, MAX_FUTURE
from processor.core.events.ndjson import Lines
from processor.core.kernel.loaded import RUNNING, kernel
from tests.support import slow_way
from tests.support.events import ABSENT, Num, make_event, to_json_line, to_proto

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")

NOW = 1_790_000_000_000_000
PRIME_1: Final = 0x9E3779B185EBCA87
PRIME_2: Final = 0xC2B2AE3D27D4EB4F
PRIME_3: Final = 0x165667B19E3779F9
"""Of XXH3."""


def given_up(event: dict[str, Any], payload: codec.PayloadFormat = "json", *, lenient: bool = False) -> bool:
    record = to_json_line(event) if payload == "json" else to_proto(event).SerializeToString()
    taken = compiled_rows.take(payload, [record], NOW + MAX_FUTURE, lenient=lenient, beside=lenient)
    assert taken is not None
    return taken.given_up == [0]


def test_its_hash_is_that_of_the_library() -> None:
    assert kernel is not None
    text = bytes(range(256))
    for length in range(241):
        assert kernel.xxh3_of(text[:length]) == xxhash.xxh3_64_intdigest(text[:length])
    with pytest.raises(ValueError, match="too long"):
        kernel.xxh3_of(text[:241])


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"user_id": ""},
        {"user_id": "é" * 100, "model": "日本"},
        {"surprise": {"a": [1, {"b": None}]}, "zone": "x"},
        {"kind": "span", "name": "plan", "cost_usd": ABSENT, "model": ABSENT, "stream": ABSENT},
        {"kind": "call", "name": "plan", "cache_write_tokens": 7, "reasoning_tokens": 3},
        {"kind": "agent", "error_message": "x" * 600},
        {"tags": {"a": "b"}, "eval_scores": {"a": 0.5}, "tools_used": ["a", "b"], "ttft_ms": 1.5},
        {"timestamp": "2026-04-20T12:00:00.123456789+02:00"},
        {"cost_usd": Num("0.0000000000005"), "latency_ms": Num("12.75")},
    ],
    ids=",".join,
)
def test_it_takes_by_itself_what_senders_send(payload: codec.PayloadFormat, overrides: dict[str, Any]) -> None:
    assert not given_up(make_event(**overrides), payload)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"event_id": "550e8400-e29b-11d4-a716-446655440001"},
        {"cost_usd": ABSENT},
        {"provider": "acme"},
        {"model": ""},
        {"timestamp": "2026-04-20 10:00:00Z"},
        {"timestamp": "2999-01-01T00:00:00Z"},
        {"input_tokens": 2**53},
        {"kind": "span", "cost_usd": ABSENT},
        {"kind": "span", "name": "plan", "cost_usd": Num("0.1")},
        {"tags": {str(number): "" for number in range(65)}},
        {"surprise": Num("[" * 64 + "]" * 64)},
        {"trace_id": "x" * 257},
    ],
    ids=",".join,
)
def test_it_gives_up_what_is_not_plainly_valid(payload: codec.PayloadFormat, overrides: dict[str, Any]) -> None:
    assert given_up(make_event(**overrides), payload)


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_a_call_without_a_cost_is_unpriced_under_lenient(payload: codec.PayloadFormat) -> None:
    events = [make_event(cost_usd=ABSENT), make_event(cost_usd=None), make_event()]
    assert [given_up(event, payload, lenient=True) for event in events] == [False, False, False]
    assert [given_up(event, payload) for event in events] == [True, True, False]
    records = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    decoded = codec.decode(payload, records, "lenient", NOW)
    assert decoded.columns.rows["flags"].tolist() == [UNPRICED_FLAG, UNPRICED_FLAG, 0]
    assert decoded.columns.rows["cost_source"].tolist() == [0, 0, 1]
    assert slow_way.plain(decoded) == slow_way.plain(slow_way.decode(payload, records, "lenient", NOW))


def test_an_event_that_is_too_large_is_given_up() -> None:
    room = MAX_EVENT_BYTES - len(to_json_line(make_event(error_message="")))
    assert not given_up(make_event(error_message="x" * room))
    assert given_up(make_event(error_message="x" * (room + 1)))


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("is_refused", [False, True])
def test_one_unusual_event_costs_no_other_one(payload: codec.PayloadFormat, is_refused: bool) -> None:
    events = [make_event(user_id=f"user-{number % 7}", model=f"m{number % 3}") for number in range(100)]
    events[41] |= {"user_id": "user-6", "timestamp": "nope" if is_refused else "2016-12-31T23:59:60Z"}
    events[43] |= {"user_id": "of nobody else", "timestamp": "2016-12-31T23:59:60Z"}
    records = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    taken = compiled_rows.take(payload, records, NOW + MAX_FUTURE, lenient=False, beside=False)
    assert taken is not None
    assert taken.given_up == [41, 43]
    decoded = codec.decode(payload, records, "partial", NOW)
    assert [index for index, _ in decoded.faults] == [41] * is_refused
    assert slow_way.plain(decoded) == slow_way.plain(slow_way.decode(payload, records, "partial", NOW))
    together = codec.decode_together(payload, [records[:50], records[50:]], "partial", NOW)
    assert (together is None) == is_refused
    if together is not None:
        assert together.rows.tobytes() == decoded.columns.rows.tobytes()


def test_requests_of_a_few_events_are_decoded_together() -> None:
    lines = [Lines(to_json_line(make_event(user_id=f"u{number}")), 1) for number in range(3)]
    together = codec.decode_together("json", lines, "partial", NOW)
    assert together is not None
    assert [together.users[row["user"]] for row in together.rows] == ["u0", "u1", "u2"]


def test_records_with_line_feeds_in_them_are_for_the_twin() -> None:
    spread = to_json_line(make_event()).replace(b",", b",\n")
    records = [spread, to_json_line(make_event())]
    assert compiled_rows.take("json", records, NOW, lenient=False, beside=False) is None
    decoded = codec.decode("json", records, "partial", NOW)
    assert slow_way.plain(decoded) == slow_way.plain(slow_way.decode("json", records, "partial", NOW))


def test_lines_and_their_number_must_agree() -> None:
    text = to_json_line(make_event())
    for wrong in (Lines(text, 2), Lines(text + b"\n" + text, 1)):
        assert compiled_rows.take("json", wrong, NOW, lenient=False, beside=False) is None


def test_a_text_without_the_room_behind_it_is_refused() -> None:
    assert kernel is not None
    line = to_json_line(make_event())
    for text in (b"", line, line + b"\n" + kernel.PAD[1:], line + b"\n" + kernel.PAD[1:] + b"x", kernel.PAD):
        with pytest.raises(ValueError, match="PAD"):
            kernel.json_rows(text, 1, NOW, lenient=False, beside=False)
        with pytest.raises(ValueError, match="PAD"):
            kernel.protobuf_rows(text[:-1], [line], NOW, lenient=False, beside=False)
    with pytest.raises(ValueError, match="line feed"):
        kernel.json_rows(line + kernel.PAD, 1, NOW, lenient=False, beside=False)
    with pytest.raises(ValueError, match="not the messages"):
        kernel.protobuf_rows(line + kernel.PAD, [line[1:]], NOW, lenient=False, beside=False)


def test_cached_tokens_beside_the_input_are_added() -> None:
    event = make_event(input_tokens=10, cached_tokens=20)
    for beside, counted in ((False, 10), (True, 30)):
        taken = compiled_rows.take("json", [to_json_line(event)], NOW, lenient=beside, beside=beside)
        assert taken is not None
        assert taken.columns.rows["input"].tolist() == [counted]
    assert given_up(make_event(input_tokens=2**53 - 3, cached_tokens=2**53 - 2), lenient=True)


def test_what_is_given_up_has_a_row_of_zeros() -> None:
    taken = compiled_rows.take("json", [b"{}", b""], NOW, lenient=False, beside=False)
    assert taken is not None
    assert taken.given_up == [0, 1]
    assert taken.columns.rows.tobytes() == np.zeros(2, ROW).tobytes()


@given(
    st.lists(st.sampled_from([b"{", b"}", b"}\n{", b"\n", b"{}", b" ", b"\r", b"a" * 9000]), max_size=12),
    st.integers(1, 9),
)
def test_bodies_are_split_as_the_twin_splits_them(pieces: list[bytes], limit: int) -> None:
    body = b"".join(pieces)
    records, lines = ndjson.split(body, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ndjson, "kernel", None)
        expected, numbers = ndjson.split(body, limit)
    assert type(records) is type(expected)
    assert (list(records), list(lines)) == (list(expected), list(numbers))


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("field", ["user_id", "model"])
def test_texts_chosen_by_known_hashes_have_places_of_their_own(payload: codec.PayloadFormat, field: str) -> None:
    """Each looked at all before it; now it would be given up after some looks, for the twin to take."""
    hour = 490_000  # all that is the same of them: the first provider, operation and status, an environment
    same = {
        "timestamp": datetime.fromtimestamp(hour * 3600, UTC).isoformat().replace("+00:00", "Z"),
        "environment": "e",
        "provider": "openai",
        "operation": "chat",
        "status": "success",
    }
    mixed = (xxhash.xxh3_64_intdigest(b"e") * PRIME_2 ^ hour << 12) % 2**64
    others = [f"{number:x}" for number in range(400)]
    chosen: list[str] = []
    for number in itertools.count():
        text = f"{number:x}"
        found = xxhash.xxh3_64_intdigest(text.encode())
        hashed = found * PRIME_1 if field == "user_id" else (found ^ mixed) * PRIME_3
        if (hashed >> 32) % 1024 == 0:  # the places of so many
            chosen.append(text)
            if len(chosen) == len(others):
                break
    for texts in (chosen, others):
        events = [make_event(**same, **{field: text}) for text in texts]
        records = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
        taken = compiled_rows.take(payload, records, NOW + MAX_FUTURE, lenient=False, beside=False)
        assert taken is not None
        assert taken.given_up == []


def test_pieces_that_were_chosen_to_have_one_place_cost_no_more_than_a_few_times_what_others_cost() -> None:
    assert kernel is not None
    pair = b"abcdefghABCDEFGH", b"abcdefg\xe8ABC\xc4EFG\xc8"  # whose hashes are the same, whatever they begin with
    chosen = [b"".join(each) for each in itertools.islice(itertools.product(pair, repeat=14), 10_000)]
    others = [number.to_bytes(16 * 14, "big") for number in range(10_000)]

    def cost(pieces: list[bytes]) -> float:
        bounds = np.arange(len(pieces) + 1) * len(pieces[0])
        began = time.thread_time()
        codes, found = kernel.number_pieces(b"".join(pieces), bounds[:-1].copy(), bounds[1:].copy())
        took = time.thread_time() - began
        assert found == pieces
        assert np.frombuffer(codes, np.int64).tolist() == list(range(len(pieces)))
        return took

    assert min(cost(chosen) for _ in range(5)) < 10 * min(cost(others) for _ in range(5))
    ends = np.arange(1, 10_001) * 224
    ends[-1] += 1
    with pytest.raises(ValueError, match="piece"):
        kernel.number_pieces(b"".join(chosen), ends - 224, ends)
