from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.events import codec, message
from processor.core.events.columns import Columns
from processor.core.events.lines import Lines
from processor.core.events.message import STORED, MessageError, Source, UnknownVersion, build_blocks
from processor.core.tables import claims
from tests.support.events import make_event, to_json_line, to_proto

NOW = 1_790_000_000_000_000


def sent_columns(payload: codec.PayloadFormat, count: int) -> Columns:
    events = [make_event(user_id=f"u{i}", mystery={"a": [i]}) for i in range(count)]
    records = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event in events]
    decoded = codec.decode(payload, records, "partial", NOW)
    assert not decoded.faults
    return decoded.columns


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_is_lost_on_the_way_through_a_message(payload: codec.PayloadFormat, partitions: int) -> None:
    source = Source("org", "project", "key", NOW, STORED[payload], "partial")
    sent = sent_columns(payload, 40)
    parts = build_blocks(source, sent, partitions)
    assert len(parts) == partitions
    seen = []
    for block, records in parts.values():
        decoded = message.decode(message.encode([(block, records), (block, records)]))
        assert decoded.blocks == [block, block]
        for _, events in message.events(decoded)[:1]:
            seen += [event.event_id for event in events]
            assert [event.user_id for event in events] == [block.users[code] for code in block.columns()["user"]]
            assert [event.cost for event in events] == block.columns()["cost"].tolist()
            assert all(bytes(event.extra["mystery"]).startswith(b'{"a":[') for event in events)
    assert sorted(UUID(found).bytes for found in seen) == sorted(row.tobytes() for row in sent.rows["id"])


@given(st.binary(max_size=200))
def test_junk_is_no_message(junk: bytes) -> None:
    with pytest.raises(MessageError):
        message.decode(junk)


@pytest.mark.parametrize(
    "junk",
    [[7], [0, 1, 2], [-1, 1, 2], [10_000, 1, 2], ["5", 1], {"version": 5}, 5, [message.VERSION, "no blocks", b""]],
)
def test_what_names_no_version_is_garbage_and_no_other_version(junk: object) -> None:
    with pytest.raises(MessageError) as caught:
        message.decode(msgspec.msgpack.encode(junk))
    assert not isinstance(caught.value, UnknownVersion)


def test_a_message_of_another_version_or_with_torn_columns_is_refused() -> None:
    source = Source("org", "project", "key", NOW, "json", "partial")
    block, records = build_blocks(source, sent_columns("json", 3), 1)[0]
    value = message.encode([(block, records)])
    whole = message.decode(value)
    for version in (1, 3, message.VERSION + 1):
        parts = msgspec.msgpack.decode(value)[1:]
        for other in ([version, *parts], [version, {"blocks": parts}, 7, "and more"]):
            with pytest.raises(UnknownVersion, match=f"version {version}") as caught:
                message.decode(msgspec.msgpack.encode(other))
            assert caught.value.version == version
    for reason, torn in {
        "torn": msgspec.structs.replace(block, rows=block.rows[:-1]),
        "no user": msgspec.structs.replace(block, users=block.users[:-1]),
        "no dim": msgspec.structs.replace(block, dims=[]),
    }.items():
        for parts in ([(torn, records)], [(block, records), (torn, records)]):
            with pytest.raises(MessageError, match=reason):
                message.decode(message.encode(parts))
    with pytest.raises(MessageError, match="torn"):
        message.decode(msgspec.msgpack.encode([message.VERSION, [], b""]))
    broken = msgspec.structs.replace(whole, records=b"not zstd")
    with pytest.raises(MessageError, match="unreadable"):
        message.events(broken)


def test_claims_come_back() -> None:
    sent = [claims.Claimed(7, b"k" * 32, b"d" * 16), claims.Claimed(9, b"", b"")]
    assert claims.decode(claims.encode(sent)) == sent
    with pytest.raises(ValueError, match="claims record"):
        claims.decode(b"junk")
    with pytest.raises(ValueError, match="version"):
        claims.decode(msgspec.msgpack.encode([2, []]))


def test_a_body_of_lines_travels_as_it_came() -> None:
    lines = [to_json_line(make_event(user_id=f"u{i}")) for i in range(20)]
    body = Lines(b"\n".join(lines), 20)
    source = Source("org", "project", "key", NOW, "json", "partial")
    for partitions in (1, 2):
        built = build_blocks(source, codec.decode("json", body, "partial", NOW).columns, partitions)
        found = message.decode(message.encode(built.values()))
        assert sorted(line for part in message.records(found) for line in part) == sorted(lines)
        block, records = built[0]
        assert isinstance(records, Lines) == (partitions == 1)
        before = message.decode(message.encode([(block, list(records))]))
        assert message.records(before) == [list(records)]
