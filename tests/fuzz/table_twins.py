"""The compiled kernel makes the tables of messages that its twin makes, and every byte of the changelog."""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Raw

from processor.core import growing_arrays
from processor.core.events import compiled_rows
from processor.core.events.message import Message, build_blocks, opened
from processor.core.events.source import Source
from processor.core.tables import row_block, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.table_rows import Sums
from processor.core.tables.user_places import UserPlaces, user_places
from processor.ids.index import IdIndex
from processor.view.query import Range
from processor.view.view import View
from server.reads.params import parse_users
from tests.support.pure import pure
from tests.support.tables import NOON, Usage, columns

HOUR: Final = 3_600_000_000
USERS: Final = (None, "", "u", "ü" * 9, "name", "a" * 17, 'quoted "\\\n', "x" * 130, "y" * 241, "\U0001f600")
MOST: Final = 2**63 - 1
EDGES: Final = (0, 1, 2**40, 2**61, 2**62 - 1, 2**62, -(2**62), MOST, -MOST - 1)
"""Numbers at which sums leave 64 bits."""
COUNTS: Final = (1, 2**31 - 41, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
"""Numbers at which counts leave columns, and records."""

encode = msgspec.json.Encoder().encode
pack = msgspec.msgpack.Encoder().encode

Record = tuple[bytes, bytes | None]


class World:
    """A partition's tables and ids."""

    def __init__(self, directory: Path, *, has_view: bool) -> None:
        self.directory = directory
        self.index = IdIndex(directory, "a", first_capacity=64, max_capacity=256)
        self.tables = Tables(0, b"salt", self.index)
        self.changelog: list[Record] = []
        self.view = View() if has_view else None

    def apply(self, messages: Sequence[tuple[int, Message]]) -> None:
        """Apply messages together."""
        self.tables.apply_all([(offset, each, self.tables.prepare(each)) for offset, each in messages])

    def flush(self, *, packs: bool) -> list[Any]:
        """Drain; returns all that follows from it."""
        tables = self.tables
        said = [tables.changed, tables.tally]
        changes = tables.drain_changes(packs=packs)
        if changes is None:
            return said
        records, start = changes.records, len(self.changelog)
        self.changelog += records
        if self.view is not None:
            self.view.apply(0, records)
        dead = changes.wrote(range(start, len(self.changelog)))
        claimed = [(each.offset, each.keys, each.digests) for each in changes.claimed]
        return [*said, records, claimed, dead, tables.newest_offsets().tolist(), *map(self.seen, ("p", "q"))]

    def seen(self, project: str) -> list[Any]:
        """What the view says of a project."""
        view, query = self.view, parse_users(project, {"limit": "1000"})
        if view is None:
            return []
        dims = [
            (dim.number, dim.at, dim.provider, dim.model, dim.environment, list(dim.rows)) for dim in view.dims(project)
        ]
        users = view.all_time(query)
        rows = [[(dim.number, sums) for dim, sums in view.user(project, user)] for user, _ in users.users]
        return [len(view), dims, users, rows, view.hours(project), view.latencies(project, Range(None, None))]

    def edit(self, rng: random.Random, edges: Sequence[int]) -> None:
        """Write some rows again with other sums."""
        latest = dict(each for key, value in self.changelog for each in row_block.expand(0, key, value))
        edited = [
            (key, _edited(rng, key, value, edges))
            for key, value in latest.items()
            if value is not None and table_rows.decode_key(key)[1] in {"user", "hour"} and rng.random() < 0.3
        ]
        self.changelog += edited
        if self.view is not None:
            self.view.apply(0, edited)

    def restart(self) -> None:
        """Read the tables back."""
        self.tables = Tables(0, b"salt", self.index)
        self.tables.restore_all((key, value, number) for number, (key, value) in enumerate(self.changelog))


def _edited(rng: random.Random, key: bytes, value: bytes, edges: Sequence[int]) -> bytes:
    row = Sums(key, *table_rows.decode_value(value))
    row.requests = rng.choice(COUNTS)
    row.errors, row.unpriced = rng.randrange(row.requests + 1), rng.randrange(row.requests + 1)
    row.input_tokens, row.output_tokens, row.cached_tokens, row.cost = rng.choices(edges, k=4)
    return table_rows.encode_value(row)


def compare(number: int) -> Counter[str]:
    """Compare both ways on the messages that a number stands for; returns what was counted.

    Raises `AssertionError` where they differ.
    """
    rng = random.Random(number)
    counts: Counter[str] = Counter()
    _compare_bytes(rng)
    with tempfile.TemporaryDirectory() as directory, small_segments(rng.choice((4, 6, 18))):
        edges = rng.choice((EDGES, tuple(number for number in EDGES if number >= 0)))
        has_view = min(edges) >= 0  # which sorts by sums
        worlds = [World(Path(directory, name), has_view=has_view) for name in ("compiled", "pure")]
        try:
            _compare(rng, worlds, counts, edges)
        finally:
            for world in worlds:
                world.index.close()
    return counts


@contextmanager
def small_segments(bits: int) -> Iterator[None]:
    """Arrays of so few records that there are several."""
    before = growing_arrays.BITS, growing_arrays.SIZE, growing_arrays.FIRST
    names = vars(growing_arrays)
    names.update(BITS=bits, SIZE=1 << bits, FIRST=min(1 << bits, before[2]))
    try:
        yield
    finally:
        names.update(zip(("BITS", "SIZE", "FIRST"), before, strict=True))


def _compare(rng: random.Random, worlds: Sequence[World], counts: Counter[str], edges: Sequence[int]) -> None:
    log: list[Message] = []
    ids, edge = rng.choice((50, 2000)), rng.choice((0.0, 0.0, 0.01, 0.3))
    for _ in range(rng.randrange(1, 8)):
        start = len(log)
        log += [_message(rng, ids, edge, edges) for _ in range(rng.randrange(1, 6))]
        if rng.random() < 0.2:
            start = rng.randrange(len(log))  # a replay
        restarts, packs = rng.random() < 0.2, rng.random() < 0.7
        edited = rng.getrandbits(32) if rng.random() < 0.1 else 0
        messages = list(enumerate(log))[start:]
        counts["events applied"] += sum(map(len, log[start:]))
        said = []
        ways: list[AbstractContextManager[None]] = [nullcontext(), pure()]
        for world, way in zip(worlds, ways, strict=True):
            with way:
                if edited:
                    world.edit(random.Random(edited), edges)
                if restarts or edited:
                    world.restart()
                world.apply(messages)
                said.append(world.flush(packs=packs))
        for mine, other in zip(*said, strict=True):
            assert mine == other
    keys = np.concatenate([worlds[0].tables.prepare(each) for each in log])
    found = [[column.tolist() for column in world.index.find(keys)] for world in worlds]
    assert found[0] == found[1]


def _compare_bytes(rng: random.Random) -> None:
    """Damaged bytes of a log: kinds of a message, and keys of rows."""
    names = ["openai", "m", "", "ü", "\U0001f600", "x" * rng.randrange(300)]
    dims = [(rng.choice((0, 127, 500_000, 2**32)), *rng.choices(names, k=5)) for _ in range(rng.randrange(20))]
    users = rng.choices([None, *names], k=rng.randrange(20))
    keys = [encode([0, "user", "p", rng.choice((None, *names)), rng.randrange(9), *rng.choices(names, k=3)])]
    keys *= rng.randrange(1, 5)
    for _ in range(20):
        packed, packed_users = _damaged(rng, pack(dims)), _damaged(rng, pack(users))
        damaged = [_damaged(rng, key) for key in keys]
        said = []
        for way in (nullcontext(), pure()):
            with way:
                read = _outcome(lambda: list(compiled_rows.read_dims(Raw(packed))))  # noqa: B023 - called at once
                found = _outcome(
                    lambda: list(compiled_rows.read_users(Raw(packed_users), stay_packed=True))  # noqa: B023
                )
                places = _outcome(lambda: _plain(user_places(0, damaged)))  # noqa: B023 - called at once
                said.append([read, found, places])
        assert said[0] == said[1], (packed, packed_users, damaged)


def _damaged(rng: random.Random, text: bytes) -> bytes:
    """Bytes as they are, or some of them flipped, left out or cut off."""
    found = bytearray(text)
    for _ in range(rng.choice((0, 1, 1, 3))):
        place = rng.randrange(len(found) + 1)
        if rng.random() < 0.3:
            del found[place : place + rng.choice((1, 1, 1000))]
        elif place < len(found):
            found[place] = rng.choice((rng.randrange(256), 0x22, 0x5C, 0xC3, 0xF0, 0xD9, 0xDC))
    return bytes(found)


def _plain(places: UserPlaces) -> list[Any]:
    return [(*places.groups[code], user) for code, user in zip(places.codes.tolist(), places.users, strict=True)]


def _outcome(work: Callable[[], Any]) -> object:
    """What it returns, or the type of what it raises."""
    try:
        return work()
    except (ValueError, msgspec.MsgspecError) as error:
        return type(error)


def _message(rng: random.Random, ids: int, edge: float, edges: Sequence[int]) -> Message:
    blocks = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        project = rng.choice(("p", "q"))
        source = Source("org", project, "key", NOON, "json", "partial")
        events = [_event(rng, ids, edge, edges) for _ in range(rng.choice((1, 3, 40)))]
        blocks.append(build_blocks(source, columns(events), 1)[0])
    return opened(blocks)


def _event(rng: random.Random, ids: int, edge: float, edges: Sequence[int]) -> Usage:
    def some(most: int) -> int:
        return rng.choice(edges) if rng.random() < edge else rng.randrange(most)

    return Usage(
        rng.randrange(ids),
        rng.choice(USERS) if rng.random() < 0.5 else f"user-{rng.randrange(300)}",
        NOON + rng.randrange(-30, 30) * HOUR + rng.randrange(HOUR),
        model=rng.choice(("gpt-4o", "m")),
        input_tokens=some(5000),
        output_tokens=some(5000),
        cached_tokens=some(100),
        cost=some(10**12),
        error=rng.random() < 0.1,
        unpriced=rng.random() < 0.1,
        latency=rng.randrange(256) if rng.random() < 0.8 else 0,
        span=rng.random() < 0.02,
    )
