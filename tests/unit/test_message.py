import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core import claims, codec, message
from processor.core.message import MessageError, Source, build_blocks
from tests.support.events import make_event, to_json_line, to_proto

NOW = 1_790_000_000_000_000


def hot(wire: codec.Wire, count: int) -> list[codec.Hot]:
    events = [make_event(user_id=f"u{i}", mystery={"a": [i]}) for i in range(count)]
    records = [to_json_line(event) if wire == "json" else to_proto(event).SerializeToString() for event in events]
    decoded = codec.decode(wire, records, "partial", NOW)
    assert not decoded.faults
    return decoded.hot


@pytest.mark.parametrize("wire", ["json", "proto"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_nothing_is_lost_on_the_way_through_a_message(wire: codec.Wire, partitions: int) -> None:
    source = Source("org", "project", "key", NOW, wire, "partial")
    sent = hot(wire, 40)
    parts = build_blocks(source, sent, partitions)
    assert len(parts) == partitions
    seen = []
    for block, records in parts.values():
        decoded = message.decode(message.encode([(block, records), (block, records)]))
        assert decoded.blocks == [block, block]
        for _, events in message.events(decoded)[:1]:
            seen += [event.event_id for event in events]
            assert [event.user_id for event in events] == [block.dims[code][0] for code in block.codes]
            assert [event.cost for event in events] == block.costs
            assert all(bytes(event.extra["mystery"]).startswith(b'{"a":[') for event in events)
    assert sorted(seen) == sorted(event[0] for event in sent)


@given(st.binary(max_size=200))
def test_junk_is_no_message(junk: bytes) -> None:
    with pytest.raises(MessageError):
        message.decode(junk)


def test_a_message_of_another_version_or_with_torn_columns_is_refused() -> None:
    source = Source("org", "project", "key", NOW, "json", "partial")
    block, records = build_blocks(source, hot("json", 3), 1)[0]
    whole = message.decode(message.encode([(block, records)]))
    with pytest.raises(MessageError, match="version 9"):
        message.decode(msgspec.msgpack.encode(msgspec.structs.replace(whole, version=9)))
    for torn in (
        msgspec.structs.replace(block, ids=block.ids[:-1]),
        msgspec.structs.replace(block, costs=block.costs[:-1]),
        msgspec.structs.replace(block, codes=[0, 1, 3]),
        msgspec.structs.replace(block, codes=[0, 1, -1]),
    ):
        with pytest.raises(MessageError, match="unequal"):
            message.decode(message.encode([(torn, records)]))
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
