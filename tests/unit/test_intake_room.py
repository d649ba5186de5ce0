"""What a refusal costs when there is no room: nothing is decoded for it, and what was good beside it is not lost."""

from collections.abc import Sequence

import pytest

from processor.core.events import codec
from processor.core.events.codec import PayloadFormat
from processor.core.events.event import Handling
from server.errors import Refused
from server.ingest.batch import Batch
from server.ingest.intake import Intake
from server.limits.memory_budget import MemoryBudget
from server.tenancy.keys import make_key, new_secret
from tests.contract.fakes import NOW, FakeQuotas
from tests.support.events import make_event, to_json_line
from tests.support.publisher import FakePublisher

KEY = make_key(new_secret(), at=0)


async def test_without_room_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    record = to_json_line(make_event())
    batch = Batch("http", "json", [record], [1], "partial")
    room, publisher = MemoryBudget(2 * len(record)), FakePublisher()
    taken = Intake(publisher, FakeQuotas(), lambda: NOW, pending=room)
    decode, decoded = codec.decode, list[int]()

    def counting(payload: PayloadFormat, records: Sequence[bytes], handling: Handling, now: int) -> codec.Decoded:
        decoded.append(len(records))
        return decode(payload, records, handling, now)

    monkeypatch.setattr(codec, "decode", counting)
    with room.hold("other", "k") as other:
        other.reserve(len(record) + 1)
        with pytest.raises(Refused) as caught:
            await taken.accept(KEY, batch)
    assert (caught.value.reason, caught.value.retry_after, decoded) == ("unavailable", 1, [])
    assert (await taken.accept(KEY, batch)).accepted == 1
    assert (len(publisher.messages[0]), room.used) == (1, 0)
    with pytest.raises(Refused, match="No valid event"):
        await taken.accept(KEY, Batch("http", "json", [b"{}"], [1], "partial"))
    assert room.used == 0
