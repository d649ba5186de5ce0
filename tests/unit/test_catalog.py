"""Every reader of the topic of segments accepts the same ones, whoever writes and whatever compaction removes."""

from collections.abc import Iterator
from itertools import count
from random import Random

import pytest
from msgspec.structs import replace

from processor.event_store import manifest as manifests
from processor.event_store.catalog import Catalog
from processor.event_store.manifest import Kind, Manifest, ManifestError, Segment, segment_id

OFFSETS = count()


def manifest(
    kind: Kind, start: int, end: int, replaces: tuple[str, ...] = (), generation: int = 0, partition: int = 0
) -> Manifest:
    segment = Segment(id=segment_id(partition, start, end), partition=partition, start=start, end=end, rows=1)
    return Manifest(kind=kind, segment=segment, replaces=replaces, generation=generation)


def put(catalog: Catalog, found: Manifest) -> str:
    catalog.apply(next(OFFSETS), found.segment.id.encode(), manifests.encode(found))
    return found.segment.id


def drop(catalog: Catalog, name: str) -> None:
    catalog.apply(next(OFFSETS), name.encode(), None)


def ranges(catalog: Catalog, partition: int | None = None) -> list[tuple[int, int]]:
    return [(segment.start, segment.end) for segment in catalog.live(partition)]


def test_a_fresh_segment_counts_only_where_the_partition_has_been_reached() -> None:
    catalog = Catalog()
    put(catalog, manifest("fresh", 0, 10))
    late = put(catalog, manifest("fresh", 0, 20))
    put(catalog, manifest("gap", 10, 15))
    assert ranges(catalog) == [(0, 10), (10, 15)]
    assert catalog.reached == {0: 15}
    assert [each.segment.id for each in catalog.ignored()] == [late]
    assert catalog.is_whole(0)


def test_partitions_are_apart() -> None:
    catalog = Catalog()
    put(catalog, manifest("fresh", 0, 10, partition=1))
    put(catalog, manifest("fresh", 0, 5))
    assert catalog.reached == {0: 5, 1: 10}
    assert ranges(catalog, 1) == [(0, 10)]
    assert ranges(catalog) == [(0, 5), (0, 10)]


def test_a_replacement_counts_only_for_exactly_what_is_live() -> None:
    catalog = Catalog()
    names = [put(catalog, manifest("fresh", 10 * n, 10 * n + 10)) for n in range(4)]
    before = catalog.version
    put(catalog, manifest("merged", 0, 20, (names[0],)))
    put(catalog, manifest("merged", 0, 15, (names[0], names[1])))
    put(catalog, manifest("merged", 10, 30, (names[1], names[3])))
    assert len(catalog.live()) == 4
    whole = put(catalog, manifest("merged", 10, 30, (names[1], names[2])))
    assert ranges(catalog) == [(0, 10), (10, 30), (30, 40)]
    assert catalog.version != before
    again = put(catalog, manifest("merged", 10, 30, (names[1], names[2])))
    assert catalog.live()[1].id == whole
    assert again in {each.segment.id for each in catalog.ignored()}
    assert [each.segment.id for each in catalog.replaced()] == [names[1], names[2]]


def test_an_expired_range_stays_covered() -> None:
    catalog = Catalog()
    names = [put(catalog, manifest("fresh", 10 * n, 10 * n + 10)) for n in range(3)]
    put(catalog, manifest("expired", 0, 20, tuple(names[:2])))
    assert ranges(catalog) == [(0, 20), (20, 30)]
    assert catalog.reached == {0: 30}


def test_a_replacement_stands_for_what_compaction_has_removed() -> None:
    names = ["0000-10-20-00000001", "0000-20-30-00000002"]
    catalog = Catalog()
    put(catalog, manifest("fresh", 0, 10))
    later = put(catalog, manifest("fresh", 30, 40))
    assert ranges(catalog) == [(0, 10)]
    assert not catalog.is_whole(0)
    put(catalog, manifest("merged", 10, 30, tuple(names)))
    assert ranges(catalog) == [(0, 10), (10, 30), (30, 40)]
    assert catalog.live()[-1].id == later
    assert catalog.is_whole(0)


def test_a_record_that_was_read_while_the_topic_was_compacted_is_forgotten() -> None:
    """The true one was removed, an ignored one of the same start not yet: its tombstone is still to come."""
    catalog = Catalog()
    put(catalog, manifest("fresh", 0, 10))
    ignored = put(catalog, manifest("fresh", 10, 18))
    put(catalog, manifest("merged", 10, 30, ("0000-10-20-00000001", "0000-20-30-00000002")))
    drop(catalog, ignored)
    assert ranges(catalog) == [(0, 10), (10, 30)]


def test_a_new_generation_begins_anew_and_is_never_left() -> None:
    catalog = Catalog()
    old = put(catalog, manifest("fresh", 0, 10))
    put(catalog, manifest("fresh", 30, 40, generation=1))
    assert ranges(catalog) == [(0, 10)]
    put(catalog, manifest("fresh", 0, 30, generation=1))
    assert ranges(catalog) == [(0, 30), (30, 40)]
    assert catalog.generation(0) == 1
    put(catalog, manifest("fresh", 40, 50))
    assert catalog.reached == {0: 40}
    assert old in {each.segment.id for each in catalog.replaced()}
    assert not catalog.ignored()


@pytest.mark.parametrize(
    ("key", "change"),
    [("../etc", {"id": "../etc"}), ("x", {}), ("", {"start": 5, "end": 5}), ("", {"start": -1})],
)
def test_a_manifest_that_contradicts_itself_is_refused(key: str, change: dict[str, str | int]) -> None:
    good = manifest("fresh", 0, 10)
    bad = replace(good, segment=replace(good.segment, **change))
    with pytest.raises(ManifestError):
        Catalog().apply(0, (key or good.segment.id).encode(), manifests.encode(bad))


def test_what_is_no_manifest_or_a_newer_one_is_refused() -> None:
    good = manifest("fresh", 0, 10)
    with pytest.raises(ManifestError, match="newer"):
        manifests.decode(good.segment.id.encode(), manifests.encode(replace(good, format=2)))
    with pytest.raises(ManifestError, match="not a manifest"):
        manifests.decode(b"x", b"{}")


# --- any number of stores, a topic that is being compacted -----------------------------------------------------------

Entry = tuple[int, bytes, bytes | None]


class Topic:
    """A compacted topic: a pass of compaction removes, one after the other, what newer records before its end had
    replaced when it began; tombstones go in a later pass."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._end = 0
        self._due: list[int] = []

    def append(self, key: bytes, value: bytes | None) -> None:
        self.entries.append((self._end, key, value))
        self._end += 1

    @property
    def is_clean(self) -> bool:
        """Whether the last pass has ended."""
        return not self._due

    def begin_pass(self, *, tombstones: bool) -> None:
        newest = {key: offset for offset, key, _ in self.entries}
        keys = {key for _, key, _ in self.entries}
        counts = {key: sum(other == key for _, other, _ in self.entries) for key in keys}
        self._due = [
            offset
            for offset, key, value in self.entries
            if newest[key] > offset or (tombstones and value is None and counts[key] == 1)
        ]

    def clean(self, number: int) -> None:
        """Remove the first of what is due."""
        gone, self._due = set(self._due[:number]), self._due[number:]
        self.entries = [entry for entry in self.entries if entry[0] not in gone]

    def after(self, offset: int, number: int) -> list[Entry]:
        return [entry for entry in self.entries if entry[0] >= offset][:number]


class Reader:
    """A catalog, and how far its topic was read."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.position = 0

    def read(self, topic: Topic, number: int = 1_000_000) -> None:
        for offset, key, value in topic.after(self.position, number):
            self.catalog.apply(offset, key, value)
            self.position = offset + 1

    def is_current(self, topic: Topic) -> bool:
        return not topic.after(self.position, 1)


class World:
    """Stores that all write about one partition, as if each were its owner, however far they have read."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.topic = Topic()
        self.truth = Reader()  # reads everything at once: compaction hides nothing from it
        self.stores = [Reader() for _ in range(3)]
        self.planned: list[list[str]] = []
        self.late = [Reader() for _ in range(3)]
        """They go through the topic slowly, and begin anew once they have read it."""

    def step(self) -> None:
        store = self.chance.choice(self.stores)
        actions = [self.read, self.cut, self.cut, self.merge, self.sweep, self.restart, self.begin_anew]
        self.chance.choices(actions, [6, 3, 3, 4, 3, 0.5, 0.2])[0](store)
        for _ in range(self.chance.randrange(4)):
            self.compact()
        for reader in self.late:
            reader.read(self.topic, self.chance.randrange(3))

    def write(self, found: Manifest) -> None:
        self.topic.append(found.segment.id.encode(), manifests.encode(found))
        self.truth.read(self.topic)

    def read(self, store: Reader) -> None:
        store.read(self.topic, self.chance.choice([1, 3, 1000]))

    def cut(self, store: Reader) -> None:
        catalog = store.catalog
        start, size = catalog.reached.get(0, 0), self.chance.randint(1, 2)
        kind: Kind = self.chance.choice(["fresh", "gap"])
        self.write(manifest(kind, start, start + size, generation=catalog.generation(0)))

    def merge(self, store: Reader) -> None:
        catalog = store.catalog
        live = catalog.live()
        if live:
            first = self.chance.randrange(len(live))
            chosen = live[first : first + self.chance.randint(1, 4)]
            names = tuple(segment.id for segment in chosen)
            kind: Kind = self.chance.choice(["merged", "expired"])
            self.write(manifest(kind, chosen[0].start, chosen[-1].end, names, catalog.generation(0)))

    def sweep(self, store: Reader) -> None:
        """Plan tombstones for all ignored records, then for the first ones of those that were replaced: by what a store
        knows that has read all. They are written at once, or by a store that was paused in between."""
        if store.is_current(self.topic):
            replaced = store.catalog.replaced()
            chosen = replaced[: self.chance.randint(0, len(replaced))]
            self.planned.append([each.segment.id for each in [*store.catalog.ignored(), *chosen]])
        if self.planned and self.chance.randrange(3):
            for name in self.planned.pop(self.chance.randrange(len(self.planned))):
                self.topic.append(name.encode(), None)
            self.truth.read(self.topic)

    def restart(self, store: Reader) -> None:
        self.stores.remove(store)
        self.stores.append(Reader())
        self.stores[-1].read(self.topic)

    def begin_anew(self, store: Reader) -> None:
        generation = store.catalog.generation(0) + 1
        self.write(manifest("fresh", 0, self.chance.randint(1, 3), generation=generation))

    def compact(self) -> None:
        if self.topic.is_clean:
            everybody = [*self.stores, *self.late]
            self.topic.begin_pass(tombstones=all(each.is_current(self.topic) for each in everybody))
        self.topic.clean(self.chance.randint(1, 4))
        for number, reader in enumerate(self.late):
            if reader.is_current(self.topic):
                self.late[number] = Reader()

    def check(self) -> None:
        live = self.truth.catalog.live()
        assert list(_contiguous(live)) == [segment.start for segment in live]
        assert (live[-1].end if live else 0) == self.truth.catalog.reached.get(0, 0)
        now = Reader()
        now.read(self.topic)
        for each in [now, *self.late, *self.stores]:
            if each.is_current(self.topic):
                assert each.catalog.live() == live
                assert each.catalog.is_whole(0)


def _contiguous(live: list[Segment]) -> Iterator[int]:
    yield from (0, *(segment.end for segment in live[:-1])) if live else ()


@pytest.mark.parametrize("seed", range(40))
def test_live_segments_cover_everything_once_for_every_reader(seed: int) -> None:
    chance = Random(seed)
    for _ in range(5):
        world = World(chance)
        for _ in range(80):
            world.step()
            world.check()
