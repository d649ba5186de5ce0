"""The compiled kernel makes the log's messages that its twin makes, byte for byte, and cuts requests as it does."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from processor.core.events.columns import CLIENT, ROW, Columns, Dim, Rows, one_dictionary, pointed_to
from processor.core.events.message import Block, build_blocks, encode
from processor.core.events.source import Request, Source
from protos.spendstream.v1 import ingest_pb2 as pb
from server.errors import Refused
from server.ingest import protobuf
from tests.fuzz import mutations
from tests.support.pure import pure

SOURCE: Final = Source("o", "p", "k", 1, "protobuf", "strict", "", "grpc")
LIMIT: Final = 100


def compare(number: int) -> Counter[str]:
    """Compare both ways on what a number stands for; returns what was counted. Raises `AssertionError`."""
    rng = random.Random(number)
    counts: Counter[str] = Counter()
    blocks = _blocks(rng)
    _compare(lambda: encode(blocks), "a message")
    counts["messages made"] += 1
    _compare(lambda: [_split(block) for block in blocks], "blocks of partitions")
    counts["blocks split"] += len(blocks)
    rows, parts, sizes = _odd_column(rng)
    _compare(lambda: _with_rows(rows, lambda found: one_dictionary(found, "user", parts, sizes)), "a column")
    _compare(lambda: _with_rows(rows, lambda found: pointed_to(found, "user", parts[0])), "a column")
    raw = _request(rng)
    _compare(lambda: protobuf.parse(raw, LIMIT), "a request")
    counts["requests cut"] += 1
    return counts


def _compare(make: Callable[[], Any], what: str) -> None:
    found = _outcome(make)
    with pure():
        expected = _outcome(make)
    assert found == expected, f"{what}: {found!r} is not {expected!r}"


def _outcome(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (Refused, ValueError, IndexError) as error:
        return type(error), *([str(error)] if isinstance(error, Refused) else [])


def _with_rows(rows: Rows, change: Callable[[Rows], Any]) -> tuple[Any, bytes]:
    rows = rows.copy()
    return change(rows), rows.tobytes()


def _split(block: Block) -> list[Any]:
    (records,) = block.originals
    assert isinstance(records, list)
    columns = Columns(block.rows, block.users, block.dims, records, block.cost_sources)
    return [
        (home, block.rows.tobytes(), block.users, block.dims, block.originals)
        for home, block in build_blocks(SOURCE, columns, 6).items()
    ]


def _blocks(rng: random.Random) -> list[Block]:
    """Blocks of which neighbours may share dictionaries, as batches that were decoded together do."""
    found: list[Block] = []
    names = rng.choice([3, 50, 5000])
    for _ in range(rng.randint(1, 6)):
        count = rng.choice([1, 2, 17, 100])
        if found and rng.random() < 0.3:
            users, dims = found[-1].users, found[-1].dims
        else:
            users, dims = _users(rng, rng.randint(1, 120), names), _dims(rng, rng.randint(1, 9))
        rows = np.frombuffer(bytearray(rng.randbytes(count * ROW.itemsize)), ROW)
        rows["user"] = [rng.randrange(len(users)) for _ in range(count)]
        rows["dim"] = [rng.randrange(len(dims)) for _ in range(count)]
        rows["cost_source"], rows["flags"] = 1, 0
        records = [rng.randbytes(rng.randint(0, 40)) for _ in range(count)]
        found.append(Block([Request(SOURCE, count)], users, dims, [CLIENT], rows, [records]))
    return found


def _users(rng: random.Random, count: int, names: int) -> list[str | None]:
    found: list[str | None] = [rng.choice(["", "ü", "u"]) + str(rng.randrange(names)) for _ in range(count)]
    if rng.random() < 0.3:
        found[rng.randrange(count)] = None
    return found


def _dims(rng: random.Random, count: int) -> list[Dim]:
    return [(rng.randrange(3), "openai", rng.choice("mn"), "prod", "chat", "success") for _ in range(count)]


def _odd_column(rng: random.Random) -> tuple[Rows, list[list[str | None]], Sequence[int]]:
    """Rows of which some may point to nothing, or whose number is not the one that is said."""
    parts = [_users(rng, rng.randint(0, 3) + 1, 4) for _ in range(rng.randint(1, 3))]
    sizes = [rng.randint(0, 4) for _ in parts]
    rows = np.frombuffer(bytearray(rng.randbytes(sum(sizes) * ROW.itemsize)), ROW)
    rows["user"] = [rng.randint(0, 4) if rng.random() < 0.2 else 0 for _ in rows]
    return rows, parts, sizes


def _request(rng: random.Random) -> bytes:
    """A request, of which some bytes may be changed."""
    events = [pb.Event.FromString(each) for each in mutations.messages(rng, 0)]
    events += [pb.Event(model="m" * rng.choice([0, 1, 127, 128, 300, 16_384])) for _ in range(rng.choice([0, 3, 120]))]
    raw = bytearray(pb.IngestRequest(sequence=rng.choice([0, 1, 2**32, 2**64 - 1]), events=events).SerializeToString())
    raw += rng.choice([b"", b"", b"\x08\x05", b"\x18\x01", b"\x12", b"\x08\x80\x00", b"\x92\x00\x00"])
    for _ in range(rng.choice([0, 0, 1, 3])):
        if raw:
            raw[rng.randrange(min(len(raw), 64))] = rng.randrange(256)
    return bytes(raw[: len(raw) if rng.random() < 0.7 else rng.randint(0, len(raw))])
