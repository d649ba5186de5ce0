import gzip
from uuid import UUID

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import codec, message, message_v4, ndjson
from processor.core.events.columns import CLIENT, SPAN_FLAG, UNPRICED_FLAG, Columns, with_prices
from processor.core.events.content_coding import Coding
from processor.core.events.message import Block, Body, Message, MessageError, UnknownVersion, build_blocks
from processor.core.events.ndjson import Lines
from processor.core.events.originals import differences
from processor.core.events.source import Api, Request, Source
from processor.core.tables import dedupe
from tests.support.events import ABSENT, make_event, to_json_line, to_ndjson, to_proto
from tests.support.messages import encode_v4

NOW = 1_790_000_000_000_000
SOURCE = Source("org", "project", "key", NOW, "json", "partial")


def sent_columns(payload: codec.PayloadFormat, count: int, start: int = 0) -> Columns:
    events = [make_event(user_id=f"u{i}", mystery={"a": [i]}) for i in range(start, start + count)]
    records = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event in events]
    decoded = codec.decode(payload, records, "partial", NOW)
    assert not decoded.faults
    return decoded.columns


def facts(found: Message) -> list[tuple[object, ...]]:
    """Each event of a message with what its columns say, whatever dictionaries those point into."""
    return [
        (
            request.source,
            row["id"].tobytes(),
            int(row["digest"]),
            found.users[row["user"]],
            found.dims[row["dim"]],
            int(row["cost"]),
            [None, *found.cost_sources][row["cost_source"]],
        )
        for request, rows in found.by_request()
        for row in rows
    ]


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_is_lost_on_the_way_through_a_message(payload: codec.PayloadFormat, partitions: int) -> None:
    source = Source("org", "project", "key", NOW, payload, "partial", "", "http" if payload == "json" else "grpc")
    sent = sent_columns(payload, 40)
    parts = build_blocks(source, sent, partitions)
    assert len(parts) == partitions
    seen = []
    for block in parts.values():
        decoded = message.decode(message.encode([block, block]))
        assert [(request.source, request.count) for request in decoded.requests] == [(source, len(block))] * 2
        for (request, events), (_, rows) in zip(message.events(decoded)[:1], decoded.by_request(), strict=False):
            assert request.source == source
            seen += [event.event_id for event in events]
            assert [event.user_id for event in events] == [decoded.users[code] for code in rows["user"]]
            assert [event.cost for event in events] == rows["cost"].tolist()
            assert {event.cost_source for event in events} == {CLIENT}
            assert all(bytes(event.extra["mystery"]).startswith(b'{"a":[') for event in events)
    assert sorted(UUID(found).bytes for found in seen) == sorted(row.tobytes() for row in sent.rows["id"])


def test_requests_that_share_a_message_share_its_dictionaries_and_keep_their_events() -> None:
    blocks: list[Block] = []
    for number in range(3):  # users u0 to u4, u3 to u7, u6 to u10
        source = Source("org", f"project {number % 2}", "key", NOW + number, "json", "partial")
        blocks += build_blocks(source, sent_columns("json", 5, 3 * number), 1).values()
    together = message.decode(message.encode(blocks))
    assert sorted(user for user in together.users if user) == sorted(f"u{number}" for number in range(11))
    assert len(together.dims) == len({*together.dims})
    assert facts(together) == [fact for block in blocks for fact in facts(message.decode(message.encode([block])))]
    assert [len(events) for _, events in message.events(together)] == [5, 5, 5]


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [1], [0, 2], [3, 0]])
def test_requests_decoded_together_bring_nothing_but_what_they_have(
    payload: codec.PayloadFormat, chosen: list[int]
) -> None:
    sent = [[make_event(user_id=f"u{each}") for each in range(3 * number, 3 * number + 5)] for number in range(4)]
    encode = to_json_line if payload == "json" else lambda event: to_proto(event).SerializeToString()
    requests = [list(map(encode, events)) for events in sent]
    together = codec.decode_together(payload, requests, "partial", NOW)
    assert together is not None
    cut = [together.cut(5 * number, records) for number, records in enumerate(requests)]
    alone = [codec.decode(payload, records, "partial", NOW).columns for records in requests]
    source = Source("org", "project", "key", NOW, payload, "partial")
    found = message.decode(message.encode(build_blocks(source, cut[each], 1)[0] for each in chosen))
    expected = message.decode(message.encode(build_blocks(source, alone[each], 1)[0] for each in chosen))
    assert facts(found) == facts(expected)
    assert set(found.users) == set(expected.users)
    assert set(found.dims) == set(expected.dims)
    assert message.records(found) == message.records(expected)


@given(st.binary(max_size=200))
def test_junk_is_no_message(junk: bytes) -> None:
    with pytest.raises(MessageError):
        message.decode(junk)


@pytest.mark.parametrize(
    "junk",
    [
        [7],
        [0, 1, 2],
        [-1, 1, 2],
        [10_000, 1, 2],
        ["5", 1],
        {"version": 5},
        5,
        [message.VERSION, "no columns", b""],
        [message.VERSION, 0, [], []],
        [message_v4.VERSION, "no blocks", b""],
        [message_v4.VERSION, [], b""],
    ],
)
def test_what_names_no_version_is_garbage_and_no_other_version(junk: object) -> None:
    with pytest.raises(MessageError) as caught:
        message.decode(msgspec.msgpack.encode(junk))
    assert not isinstance(caught.value, UnknownVersion)


def test_a_message_of_another_version_is_refused_by_name() -> None:
    value = message.encode([build_blocks(SOURCE, sent_columns("json", 3), 1)[0]])
    for version in (1, 3, message.VERSION + 1):
        parts = msgspec.msgpack.decode(value)[1:]
        for other in ([version, *parts], [version, {"blocks": parts}, 7, "and more"]):
            with pytest.raises(UnknownVersion, match=f"version {version}") as caught:
                message.decode(msgspec.msgpack.encode(other))
            assert caught.value.version == version


SOUND = message.encode([build_blocks(SOURCE, sent_columns("json", 2), 1)[0]])


@given(st.data())
def test_a_byte_that_changes_is_noticed(data: st.DataObject) -> None:
    value = bytearray(SOUND)
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MessageError):
        message.decode(bytes(value))


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("no user", {"users": []}),
        ("no dim", {"dims": []}),
        ("no cost_source", {"cost_sources": []}),
        ("torn", {"requests": []}),
        ("torn", {"requests": [Request(SOURCE, 2)]}),
        ("torn", {"requests": [Request(SOURCE, 0), Request(SOURCE, 3)]}),
        ("torn", {"requests": [Request(SOURCE, 4), Request(SOURCE, -1)]}),
    ],
)
def test_columns_that_do_not_fit_are_refused(reason: str, changes: dict[str, object]) -> None:
    block = build_blocks(SOURCE, sent_columns("json", 3), 1)[0]
    with pytest.raises(MessageError, match=reason):
        message.decode(message.encode([msgspec.structs.replace(block, **changes)]))


def test_rows_that_are_cut_off_are_refused() -> None:
    value = msgspec.msgpack.decode(encode_v4([build_blocks(SOURCE, sent_columns("json", 3), 1)[0]]))
    value[1][0][3] = value[1][0][3][:-1]
    with pytest.raises(MessageError, match="torn"):
        message.decode(msgspec.msgpack.encode(value))


def test_originals_that_cannot_be_opened_are_an_error_of_the_message() -> None:
    block = build_blocks(SOURCE, sent_columns("json", 3), 1)[0]
    whole = message.decode(message.encode([block]))
    for originals in ([b"not zstd", [None]], [zstandard.compress(msgspec.msgpack.encode([None])), [None]], [b"", []]):
        broken = msgspec.structs.replace(whole, originals=msgspec.Raw(msgspec.msgpack.encode(originals)))
        with pytest.raises(MessageError, match="records"):
            message.events(broken)


def test_claims_come_back() -> None:
    sent = [dedupe.Claimed(7, b"k" * 32, b"d" * 16), dedupe.Claimed(9, b"", b"")]
    assert dedupe.decode_claims(dedupe.encode_claims(sent)) == sent
    with pytest.raises(ValueError, match="claims record"):
        dedupe.decode_claims(b"junk")
    with pytest.raises(ValueError, match="version"):
        dedupe.decode_claims(msgspec.msgpack.encode([2, []]))


@pytest.mark.parametrize("api", ["http", "otlp"])
def test_the_digest_of_a_span_is_not_that_of_its_bytes(api: Api) -> None:
    columns = sent_columns("json", 3)
    rows = columns.rows.copy()
    rows["digest"] += 1
    changed = Columns(rows, columns.users, columns.dims, columns.records, columns.cost_sources, columns.has_spans)
    block = build_blocks(msgspec.structs.replace(SOURCE, api=api), changed, 1)[0]
    found = list(differences(message.decode(message.encode([block]))))
    assert len(found) == (0 if api == "otlp" else 3)
    rows["input"] += 1
    block = build_blocks(msgspec.structs.replace(SOURCE, api=api), changed, 1)[0]
    assert "input differs" in " ".join(differences(message.decode(message.encode([block]))))


# --- original bytes --------------------------------------------------------------------------------------------------


def test_lines_travel_as_the_one_text_they_came_in() -> None:
    lines = [to_json_line(make_event(user_id=f"u{i}")) for i in range(20)]
    body = Lines(b"\n".join(lines), 20)
    for partitions in (1, 2):
        built = build_blocks(SOURCE, codec.decode("json", body, "partial", NOW).columns, partitions)
        found = message.decode(message.encode(built.values()))
        assert sorted(line for part in message.records(found) for line in part) == sorted(lines)
        block = built[0]
        [records] = block.originals
        assert isinstance(records, Lines)
        assert not isinstance(records, Body)
        before = message.decode(message.encode([msgspec.structs.replace(block, originals=[list(records)])]))
        assert message.records(before) == [list(records)]


def taken(text: bytes, body: Body | None, partitions: int = 1) -> dict[int, Block]:
    records, _ = ndjson.split(text, 100)
    decoded = codec.decode("json", records, "partial", NOW)
    assert not decoded.faults
    return build_blocks(SOURCE, decoded.columns, partitions, body)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "text",
    [
        to_ndjson([make_event() for _ in range(12)]),
        b"\xef\xbb\xbf\r\n\r\n" + to_ndjson([make_event() for _ in range(3)]).replace(b"\n", b"  \r\n\n \t\n"),
        to_json_line(make_event()),
    ],
    ids=["as most write it", "blank lines and spaces", "one without an end"],
)
def test_a_body_is_kept_as_it_came_and_its_lines_are_its_rows(coding: Coding, text: bytes) -> None:
    data = gzip.compress(text) if coding == "gzip" else zstandard.compress(text)
    block = taken(text, Body(coding, data, len(text)))[0]
    assert block.size == len(text)
    value = message.encode([block, *taken(text, None).values(), block])
    assert value.count(data) == 2
    found = message.decode(value)
    wanted = [line.strip() for line in text.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    assert [list(lines) for lines in message.records(found)] == [wanted] * 3
    for (_, rows), (_, events) in zip(found.by_request(), message.events(found), strict=True):
        assert [UUID(event.event_id).bytes for event in events] == [row["id"].tobytes() for row in rows]


def test_a_body_whose_events_go_to_several_partitions_is_cut_up() -> None:
    text = to_ndjson([make_event() for _ in range(30)])
    body = Body("gzip", gzip.compress(text), len(text))
    assert all(not isinstance(block.originals[0], Body) for block in taken(text, body, 3).values())
    one = to_ndjson([make_event()])
    [block] = taken(one, Body("gzip", gzip.compress(one), len(one)), 3).values()
    assert isinstance(block.originals[0], Body)


def test_a_body_of_other_lines_than_rows_is_an_error() -> None:
    text = to_ndjson([make_event() for _ in range(3)])
    block = taken(text, None)[0]
    for other in (to_ndjson([make_event()]), text * 2, b""):
        body = Body("gzip", gzip.compress(other), len(other))
        found = message.decode(message.encode([msgspec.structs.replace(block, originals=[body])]))
        with pytest.raises(MessageError, match="records"):
            message.events(found)


def test_what_intake_has_decided_is_read_from_the_columns() -> None:
    event = make_event(cost_usd=None, input_tokens=10)
    decoded = codec.decode("json", [to_json_line(event), to_json_line(make_event(cost_usd=3))], "lenient", NOW)
    priced = with_prices(decoded.columns, {0: (1_234, "list:own@1")})
    priced.rows["input"][0] = 17
    source = msgspec.structs.replace(SOURCE, handling="lenient")
    unpriced = build_blocks(source, decoded.columns, 1)[0]
    found = message.decode(message.encode([unpriced, build_blocks(source, priced, 1)[0]]))
    stated = [
        [(event.cost, event.cost_source, event.priced, event.input_tokens) for event in events]
        for _, events in message.events(found)
    ]
    client = (3 * 10**12, CLIENT, True, make_event()["input_tokens"])
    assert stated == [[(0, None, False, 10), client], [(1_234, "list:own@1", True, 17), client]]
    assert decoded.columns.rows["flags"].tolist() == [UNPRICED_FLAG, 0]
    assert priced.rows["digest"].tolist() == decoded.columns.rows["digest"].tolist()
    assert found.cost_sources == [CLIENT, "list:own@1"]


# --- version 4 -------------------------------------------------------------------------------------------------------


def test_messages_of_version_4_are_what_they_were() -> None:
    blocks: list[Block] = []
    for number in range(2):
        json = Source("org", f"project {number}", "key", NOW + number, "json", "partial", "lease", rules=4)
        protobuf = msgspec.structs.replace(json, payload="protobuf", api="grpc")
        blocks += [build_blocks(each, sent_columns(each.payload, 4, number), 1)[0] for each in (json, protobuf)]
    unpriced = codec.decode("json", [to_json_line(make_event(cost_usd=None))], "lenient", NOW).columns
    blocks.append(build_blocks(msgspec.structs.replace(SOURCE, handling="lenient", rules=4), unpriced, 1)[0])
    old, new = message.decode(encode_v4(blocks)), message.decode(message.encode(blocks))
    assert (old.version, new.version) == (4, 5)
    assert {request.source.rules for request in old.requests} == {4}
    assert facts(old) == facts(new)
    assert message.events(old) == message.events(new)
    assert np.array_equal(old.rows, new.rows)


RECENT = {"kind": "span", "name": "plan", "cache_write_tokens": -1, "reasoning_tokens": "many"}


def test_events_are_read_by_the_rules_of_their_message() -> None:
    line = to_json_line(make_event(**RECENT))
    columns = codec.decode("json", [line], "partial", NOW, rules=4).columns
    old = message.decode(encode_v4([*build_blocks(msgspec.structs.replace(SOURCE, rules=4), columns, 1).values()]))
    [(request, [event])] = message.events(old)
    assert (event.kind, event.name, event.priced, set(event.extra)) == ("call", None, True, set(RECENT))
    assert request.source.rules == 4
    kept = message.decode(message.encode(build_blocks(request.source, columns, 1).values()))
    assert message.events(kept) == message.events(old)
    assert list(differences(old)) == list(differences(kept)) == []
    with pytest.raises(MessageError):  # it would be refused today
        message.events(message.decode(message.encode(build_blocks(SOURCE, columns, 1).values())))


@pytest.mark.parametrize("payload", ["json", "protobuf"])
def test_what_a_span_says_comes_back(payload: codec.PayloadFormat) -> None:
    source = msgspec.structs.replace(SOURCE, payload=payload)
    said = {"kind": "span", "name": "plan", "reasoning_tokens": 2}
    events = [make_event(**said, cost_usd=cost, input_tokens=tokens) for cost, tokens in ((0, 5), (ABSENT, ABSENT))]
    lines = [to_json_line(e) if payload == "json" else to_proto(e).SerializeToString() for e in events]
    columns = codec.decode(payload, lines, "partial", NOW).columns
    found = message.decode(message.encode(build_blocks(source, columns, 1).values()))
    [(_, [first, second])] = message.events(found)
    assert (first.kind, first.name, first.reasoning_tokens) == ("span", "plan", 2)
    assert (first.priced, first.cost, first.cost_source, first.input_tokens) == (True, 0, None, 5)
    assert (second.priced, second.cost, second.cost_source, second.input_tokens) == (False, 0, None, None)
    assert found.rows["flags"].tolist() == [SPAN_FLAG] * 2
    assert list(differences(found)) == []


def test_a_row_of_version_4_that_points_to_nothing_is_refused() -> None:
    [block] = build_blocks(SOURCE, sent_columns("json", 3), 1).values()
    for other in (msgspec.structs.replace(block, users=block.users[:-1]), msgspec.structs.replace(block, dims=[])):
        with pytest.raises(MessageError):
            message.decode(encode_v4([other]))
