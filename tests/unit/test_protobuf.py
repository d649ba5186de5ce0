import time

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Refused
from server.ingest.protobuf import RawRequest, parse, sequence_of

SIZES = st.sampled_from([0, 1, 127, 128, 129, 300, 16_383, 16_384])


@given(st.integers(0, 2**64 - 1), st.lists(SIZES, max_size=8))
def test_the_events_come_out_as_they_went_in(sequence: int, sizes: list[int]) -> None:
    request = pb.IngestRequest(sequence=sequence, events=[pb.Event(model="m" * size) for size in sizes])
    found = parse(request.SerializeToString(), 100)
    assert found == RawRequest(sequence, [event.SerializeToString() for event in request.events])
    assert sequence_of(request.SerializeToString()) == sequence


def test_the_sequence_of_a_refused_request_is_found_wherever_it_stands() -> None:
    events = pb.IngestRequest(events=[pb.Event(model="m")] * 100).SerializeToString()
    sequence = pb.IngestRequest(sequence=2**40).SerializeToString()
    assert sequence_of(events + sequence) == sequence_of(sequence + events) == 2**40
    assert sequence_of(sequence + events + pb.IngestRequest(sequence=3).SerializeToString()) == 3


@given(st.binary(max_size=40))
def test_takes_no_more_than_the_generated_class(raw: bytes) -> None:
    try:
        found = parse(raw, 100)
    except Refused:
        return
    try:
        message = pb.IngestRequest.FromString(raw)
    except DecodeError:  # an event inside is no Event, which is that event's fault alone, or a field number is too high
        return
    assert (found.sequence, len(found.events)) == (message.sequence, len(message.events))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12",
        b"\x12\x05abc",
        b"\x08",
        b"\x08\xff",
        b"\xff" * 11,
        b"\x00\x00",
        b"\x1b",
        b"\x1f",
        b"\x1d\x00",
        b"\x19\x00",
        b"\x1a\x05",
        b"not protobuf",
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(Refused, match="not a valid IngestRequest"):
        parse(raw, 100)
    assert sequence_of(raw) == 0


def test_fields_of_a_later_version_are_skipped() -> None:
    unknown = b"\x18\x96\x01" + b"\x21" + b"8 bytes." + b"\x2a\x03abc" + b"\x35" + b"4 b."
    assert parse(b"\x08\x07" + unknown + b"\x12\x02\x08\x01" + unknown, 100) == RawRequest(7, [b"\x08\x01"])


def test_stops_one_after_the_limit() -> None:
    began = time.thread_time()
    assert len(parse(b"\x12\x00" * 10_000_000, 100).events) == 101
    assert time.thread_time() - began < 0.5
