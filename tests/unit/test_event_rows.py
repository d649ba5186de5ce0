"""A row of a segment says what the event says, decoded again the slow way, with what its columns have decided."""

import math
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import EPOCH
from processor.core.events import codec, message, ndjson
from processor.core.events.columns import with_prices
from processor.core.events.event import Event, Handling
from processor.core.events.message import Message, MessageError
from processor.core.events.ndjson import size_of
from processor.core.events.source import Source
from processor.event_store import rows, segment_table
from processor.event_store.schema import SCHEMA
from tests.fuzz.inputs import lines
from tests.support.events import ABSENT, make_event, to_json_line, to_proto
from tests.support.examples import examples
from tests.unit.test_codec import NOW, odd, proto_odd, steps, usual_event

ARRIVAL = 1_700_000_000_000_123
HANDLINGS: list[Handling] = ["partial", "strict", "lenient"]


def message_of(
    payload: codec.PayloadFormat, records: list[bytes], handling: Any = "partial", project: str = "p"
) -> Message | None:
    """The message of the events that are taken; None: there is none."""
    decoded = codec.decode(payload, records, handling, NOW)
    if not len(decoded.columns):
        return None
    columns = decoded.columns
    if columns.rows["flags"].any() and handling == "lenient":  # as those that came without a cost may be
        free = np.flatnonzero(columns.rows["flags"] == 1)[:2].tolist()
        columns = with_prices(columns, {place: (7_000 + place, "list:own@1") for place in free})
    source = Source("o", project, "k", ARRIVAL, payload, handling)
    return message.opened(message.build_blocks(source, columns, 1).values())


def said(event: Event, source: Source, offset: int, index: int) -> dict[str, Any]:
    """The row of an event, in plain Python."""
    found: dict[str, Any] = {name: getattr(event, name, None) for name in SCHEMA.names}
    return found | {
        "cost_usd": event.cost if event.priced else None,
        "tags": event.tags or None,
        "tools_used": event.tools_used or None,
        "eval_scores": event.eval_scores or None,
        "received_at": source.arrival,
        "extra": {name: bytes(value) for name, value in event.extra.items()} or None,
        "project": source.project,
        "log_partition": 3,
        "log_offset": offset,
        "log_index": index,
    }


def read(table: Any) -> list[dict[str, Any]]:
    """The rows of a table in the same form."""
    found: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict")
    for row in found:
        for name in ("timestamp", "received_at"):
            delta = row[name] - EPOCH
            row[name] = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if row["cost_usd"] is not None:
            row["cost_usd"] = int(row["cost_usd"] * Decimal(10**12))
        if row["extra"] is not None:
            raws = msgspec.json.decode(row["extra"], type=dict[str, msgspec.Raw])
            row["extra"] = {name: bytes(value) for name, value in raws.items()}
    return found


def says_the_same(found: Message, kept: list[bool]) -> None:
    if not any(kept):
        return
    made = rows.rows_of(found, 3, 17, np.array(kept))
    assert made.size == sum(map(size_of, message.records(found)))
    events = [(request.source, event) for request, each in message.events(found) for event in each]
    expected = [
        said(event, source, 17, index)
        for index, ((source, event), is_kept) in enumerate(zip(events, kept, strict=True))
        if is_kept
    ]
    expected.sort(key=lambda row: (row["project"], row["timestamp"], row["log_index"]))
    assert read(segment_table.table_of([made])) == expected


@examples(150)
@given(
    st.lists(st.one_of(st.fixed_dictionaries({}, optional=odd), st.fixed_dictionaries({}, optional=steps))),
    st.integers(0, 12),
    st.sampled_from(HANDLINGS),
    st.randoms(use_true_random=True),
)
def test_lines_of_any_kind(odd_ones: list[dict[str, Any]], usual: int, handling: Any, random: Any) -> None:
    events = [make_event(**overrides) for overrides in odd_ones]
    events += [usual_event(random) for _ in range(usual)]
    random.shuffle(events)
    found = message_of("json", [to_json_line(event) for event in events], handling)
    if found is not None:
        says_the_same(found, [True] * len(found))
        says_the_same(found, [random.random() < 0.5 for _ in range(len(found))])


@examples(150)
@given(
    st.lists(st.fixed_dictionaries({}, optional=proto_odd)),
    st.integers(0, 12),
    st.sampled_from(HANDLINGS),
    st.randoms(use_true_random=True),
)
def test_protobuf_of_any_kind(odd_ones: list[dict[str, Any]], usual: int, handling: Any, random: Any) -> None:
    events = [make_event(**overrides) for overrides in odd_ones]
    events += [usual_event(random) for _ in range(usual)]
    random.shuffle(events)
    found = message_of("protobuf", [to_proto(event).SerializeToString() for event in events], handling)
    if found is not None:
        says_the_same(found, [True] * len(found))
        says_the_same(found, [random.random() < 0.5 for _ in range(len(found))])


@examples(150)
@given(st.lists(lines, max_size=6), st.sampled_from(HANDLINGS))
def test_every_line_of_the_fuzzer_that_is_taken(records: list[bytes], handling: Any) -> None:
    found = message_of("json", [*ndjson.split(b"\n".join(records), 100)[0]], handling)
    if found is not None:
        says_the_same(found, [True] * len(found))


def test_every_field_is_there() -> None:
    event = make_event(
        parent_span_id="parent",
        ttft_ms=12.5,
        cached_tokens=7,
        error_code="E1",
        error_message="x" * 600,
        finish_reason="stop",
        user_id="u",
        session_id="s",
        tags={"team": "search", "a": ""},
        tools_used=["grep", "grep"],
        eval_scores={"good": 0.25, "none": -0.0},
        prompt_hash="h",
        cache_write_tokens=3,
        reasoning_tokens=4,
        name="step",
        surprise={"b": [1, None]},
    )
    for records, payload in (([to_json_line(event)], "json"), ([to_proto(event).SerializeToString()], "protobuf")):
        found = message_of(payload, records)  # type: ignore[arg-type]
        assert found is not None
        says_the_same(found, [True])
        [row] = read(segment_table.table_of([rows.rows_of(found, 0, 0, np.array([True]))]))
        assert row["error_message"] == "x" * 500
        assert row["extra"] is not None
        assert math.copysign(1, row["eval_scores"]["none"]) == 1
        assert None not in {name: value for name, value in row.items() if name != "cost_source"}.values()


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_messages_of_many_projects_are_in_one_order(payload: codec.PayloadFormat) -> None:
    made = []
    for number, project in enumerate(["b", "a", "c", "a", "ä"]):
        times = [f"2026-04-20T10:00:0{second}Z" for second in (3, 1, 2, 1)]
        events = [make_event(timestamp=time, user_id=ABSENT) for time in times]
        records = [to_json_line(each) if payload == "json" else to_proto(each).SerializeToString() for each in events]
        found = message_of(payload, records, project=project)
        assert found is not None
        made.append(rows.rows_of(found, 0, number, np.ones(4, np.bool_)))
    keys = [
        (row["project"], row["timestamp"], row["log_offset"], row["log_index"])
        for row in read(segment_table.table_of(made))
    ]
    assert len(keys) == 20
    assert keys == sorted(keys)


def test_bytes_that_are_no_event_are_an_error() -> None:
    found = message_of("json", [to_json_line(make_event()), to_json_line(make_event(surprise=1))])
    assert found is not None
    found.originals = message.opened(  # those of another message, with one event less
        message.build_blocks(
            Source("o", "p", "k", ARRIVAL, "json", "partial"),
            codec.decode("json", [to_json_line(make_event())], "partial", NOW).columns,
            1,
        ).values()
    ).originals
    with pytest.raises(MessageError, match="records"):
        rows.rows_of(found, 0, 0, np.array([True, True]))


@pytest.mark.parametrize("handling", HANDLINGS)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_what_lenient_handling_fills_in_is_in_the_row(payload: codec.PayloadFormat, handling: Any) -> None:
    events = [make_event(sdk_version="") for _ in range(3)]
    records = [to_json_line(each) if payload == "json" else to_proto(each).SerializeToString() for each in events]
    found = message_of(payload, records, handling)
    assert found is not None
    says_the_same(found, [True, False, True])
    [row, *_] = read(segment_table.table_of([rows.rows_of(found, 0, 0, np.ones(3, np.bool_))]))
    assert row["sdk_version"] == ("unknown" if handling == "lenient" else "")


@pytest.mark.parametrize(
    "overrides",
    [
        {"kind": "call", "name": "step"},
        {"kind": ""},
        {"kind": "other"},
        {"name": ""},
        {"name": "n" * 257},
        {"cache_write_tokens": 0, "reasoning_tokens": 0},
        {"parent_span_id": "", "session_id": "", "error_message": "", "finish_reason": "", "prompt_hash": ""},
        {"tags": {}, "tools_used": [], "eval_scores": {}},
        {"provider": "mistral", "operation": "rerank"},
        {"ttft_ms": 0, "cached_tokens": 0, "latency_ms": 0},
        {"kind": "span", "name": "tool", "cost_usd": 0, "input_tokens": ABSENT},
    ],
)
@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_what_is_nearly_plain(payload: codec.PayloadFormat, overrides: dict[str, Any]) -> None:
    for version in (4, 5):
        for handling in HANDLINGS:
            events = [make_event(**overrides), make_event(tags={"a": "b"}), make_event(**overrides)]
            records = [
                to_json_line(each) if payload == "json" else to_proto(each).SerializeToString() for each in events
            ]
            source = Source("o", "p", "k", ARRIVAL, payload, handling, rules=version)
            columns = codec.decode(payload, records, handling, NOW, rules=version).columns
            if len(columns):
                found = message.opened(message.build_blocks(source, columns, 1).values())
                says_the_same(found, [True] * len(found))


@pytest.mark.slow
def test_messages_point_to_more_users_than_a_row_can_count() -> None:
    made, expected = [], []
    for number in range(3):
        users = [f"user-{number}-{place}" for place in range(30_000)]
        text = to_json_line(make_event(user_id="?"))
        head, tail = text.split(b"?")
        event_id = text[13:49]
        records = [
            head.replace(event_id, b"%08x-0000-4000-8000-%012x" % (number, place)) + user.encode() + tail
            for place, user in enumerate(users)
        ]
        found = message_of("json", records)
        assert found is not None
        made.append(rows.rows_of(found, 0, number, np.ones(len(users), np.bool_)))
        expected += users
    assert segment_table.table_of(made).column("user_id").to_pylist() == expected
