"""The index of a segment: which row groups may have an event, trace, session or user of an id.

    file    = magic, length of the header (u32), header, pages
    header  = msgpack [checksum, sections]; checksum = XXH3-64 of the sections as they are encoded
    section = [kind, entries, first hash of each page (u32), XXH3-64 of each page (u64), bytes of each page (u32)]
    page    = up to 4,096 hashes (u32), then as many numbers of row groups (u16)

A section `counts` has other pages: those of `user_counts`. Only of these the header says how long they are.

Entries are sorted by hash and row group, each pair once. A hash is 32 bits of an id's, so that a row group may be named
that does not have the id: readers compare the ids. A look-up reads one page of a section, and checks that.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
import xxhash
from msgspec import Raw, Struct
from numpy.typing import NDArray

from processor.core.kernel.loaded import kernel
from processor.event_store.user_counts import NONE, Tally, UserCounts, key_of, page_of, tally_in

Kind = Literal["event", "trace", "session", "user"]
KINDS: Final[tuple[Kind, ...]] = ("event", "trace", "session", "user")

MAGIC: Final = b"SPSIDX03"
OLDER: Final = b"SPSIDX02"
"""Without counts; else the same. It is written where there are none, so that older programs read those files."""
PAGE: Final = 4096
"""Entries of a page."""
MAX_GROUPS: Final = 1 << 16
SHORT: Final = 64 << 10
"""Bytes of an index that is read as a whole when it is opened, to compare its digest."""

_LENGTH: Final = 4
_HASH: Final = np.dtype("<u4")
_GROUP: Final = np.dtype("<u2")
_ENTRY_BYTES: Final = _HASH.itemsize + _GROUP.itemsize
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_HALF: Final = np.uint64(32)
_MASKS: Final = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""How many of the eight bytes of a word belong to a text -> those."""

U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]


class IndexDamaged(OSError):
    """The file is not what was written; the text names it."""


class _Section(Struct, array_like=True):
    kind: Kind | Literal["counts"]
    entries: int
    firsts: bytes
    checksums: bytes
    sizes: bytes = b""


def text_hashes(texts: Iterable[str]) -> U32:
    """Return the hashes of traces, sessions or users."""
    parts = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, parts)])
    return hashes_at(b"".join(parts), ends[:-1], ends[1:])


def hashes_at(data: bytes | memoryview, starts: I64, ends: I64) -> U32:
    """Return the hashes of texts that lie in UTF-8 one behind the other, with these bounds in bytes.

    All texts together, eight bytes at a time: a third of what a call of XXH3 for each of them takes.
    """
    lengths = ends - starts
    found = lengths.astype(np.uint64) * _MIX
    if not len(found) or not lengths.max():
        return (found >> _HALF).astype(np.uint32)
    padded = np.zeros(len(data) + 7, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    words: NDArray[np.uint64] = np.ndarray((len(data),), "<u8", padded, 0, (1,))
    for done in range(0, int(lengths.max()), 8):
        open_ = slice(None) if done == 0 and lengths.min() else np.flatnonzero(lengths > done)
        rest = np.minimum(lengths[open_] - done, 8)
        word = words[starts[open_] + done] & _MASKS[rest]
        mixed = (found[open_] ^ word) * _MIX
        found[open_] = mixed ^ (mixed >> _HALF)
    return ((found * _MIX) >> _HALF).astype(np.uint32)


def event_hashes(ids: bytes) -> U32:
    """Return the hashes of events, whose ids are 16 bytes each."""
    halves = np.frombuffer(ids, "<u8").reshape(-1, 2)
    mixed = halves[:, 0] * np.uint64(_MIX) + halves[:, 1]
    found: U32 = ((mixed * np.uint64(_MIX)) >> np.uint64(32)).astype(np.uint32)
    return found


# --- writing ---------------------------------------------------------------------------------------------------------


class IndexBuilder:
    """Collects the ids of a segment, row group by row group."""

    def __init__(self) -> None:
        self._hashes: dict[Kind, list[U32]] = {kind: [] for kind in KINDS}
        self._groups: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
        self._counts = NONE

    def add(self, group: int, kind: Kind, hashes: U32) -> None:
        """Add the ids of a row group, of which the next ones have greater numbers. Raises `ValueError` for more row
        groups than an index can name."""
        if group >= MAX_GROUPS:
            raise ValueError(f"a segment has at most {MAX_GROUPS} row groups")
        self._hashes[kind].append(hashes)
        self._groups[kind].append(group)

    def set_counts(self, counts: UserCounts) -> None:
        """Set how many events users have; of those who are not there, nothing is said."""
        self._counts = counts

    def encode(self) -> list[bytes]:
        """Return the content of the file, in pieces: whole it would be there twice, 28 MB of two million rows. Once:
        each kind's ids are let go of when they are sorted."""
        sections: list[_Section] = []
        pages: list[bytes] = []
        for kind in KINDS:
            sort = sorted_pairs if kernel is None else kernel.sorted_entries
            hashes, groups = sort(self._hashes.pop(kind), self._groups.pop(kind))
            entries = len(groups) // _GROUP.itemsize
            made = [
                hashes[_HASH.itemsize * start : _HASH.itemsize * (start + PAGE)]
                + groups[_GROUP.itemsize * start : _GROUP.itemsize * (start + PAGE)]
                for start in range(0, entries, PAGE)
            ]
            firsts = np.frombuffer(hashes, _HASH)[::PAGE].tobytes()
            checksums = np.array([xxhash.xxh3_64_intdigest(page) for page in made], "<u8")
            sections.append(_Section(kind, entries, firsts, checksums.tobytes()))
            pages += made
        if len(self._counts.keys):
            section, made = _counted(self._counts)
            sections.append(section)
            pages += made
        listed = msgspec.msgpack.encode(sections)
        header = msgspec.msgpack.encode([xxhash.xxh3_64_intdigest(listed), Raw(listed)])
        magic = MAGIC if len(self._counts.keys) else OLDER
        return [magic + len(header).to_bytes(_LENGTH, "little") + header, *pages]


def _counted(counts: UserCounts) -> tuple[_Section, list[bytes]]:
    """Return the section of the counts, and its pages."""
    _, offsets, data = counts.keys.buffers()
    ends = np.frombuffer(offsets, np.int32)[counts.keys.offset : counts.keys.offset + len(counts.keys) + 1]
    hashes = hashes_at(data, ends[:-1].astype(np.int64), ends[1:].astype(np.int64))
    order = np.argsort(hashes, kind="stable")
    parts = [order[start : start + PAGE] for start in range(0, len(order), PAGE)]
    made = [page_of(hashes[part], counts.of(part)) for part in parts]
    checksums = np.array([xxhash.xxh3_64_intdigest(page) for page in made], "<u8").tobytes()
    firsts, sizes = hashes[order][::PAGE].astype(_HASH), np.array([*map(len, made)], "<u4")
    return _Section("counts", len(order), firsts.tobytes(), checksums, sizes.tobytes()), made


def sorted_pairs(hashes: Sequence[U32], groups: Sequence[int]) -> tuple[bytes, bytes]:
    """Return the hashes and row groups of all pairs, sorted, each pair once. The kernel does the same.

    `np.unique` takes five times as long for so many.
    """
    parts = [
        each.astype(np.uint64) << np.uint64(16) | np.uint64(group) for each, group in zip(hashes, groups, strict=True)
    ]
    found = np.sort(np.concatenate([np.empty(0, np.uint64), *parts]))
    if len(found):
        is_first = np.ones(len(found), np.bool_)
        np.not_equal(found[1:], found[:-1], out=is_first[1:])
        found = found[is_first]
    return (found >> np.uint64(16)).astype(_HASH).tobytes(), found.astype(_GROUP).tobytes()


# --- reading ---------------------------------------------------------------------------------------------------------

_SPARSE: Final = 16
"""Entries of a page are so many times the hashes that may be there, where each of these is looked up among them."""
_MARKED: Final = 20_000
"""Hashes from which on they have marks."""
_MARK_BITS: Final = 23
"""The first bits of a hash, for which there is a mark of a byte."""


class SoughtHashes:
    """Hashes that are looked for in many indexes: sorted, each once."""

    def __init__(self, hashes: U32) -> None:
        self.hashes: Final = hashes
        self._marks: NDArray[np.bool_] | None = None
        """Whether a hash that begins so is there: of 800,000 hashes nine in ten others are passed over by it, in the
        order of memory, where a search takes 25 ns."""
        if len(hashes) > _MARKED:
            self._marks = np.zeros(1 << _MARK_BITS, np.bool_)
            self._marks[hashes >> np.uint32(32 - _MARK_BITS)] = True

    def among(self, hashes: U32, groups: NDArray[np.uint16], start: int, end: int) -> tuple[U32, NDArray[np.uint16]]:
        """Return the entries of a page that have one of the hashes from `start` to before `end`."""
        wanted = self.hashes[start:end]
        if len(wanted) * _SPARSE < len(hashes):
            first, last = (np.searchsorted(hashes, wanted, side).tolist() for side in ("left", "right"))
            found = [place for low, high in zip(first, last, strict=True) for place in range(low, high)]
            return hashes[found], groups[found]
        if self._marks is not None:
            marked = np.flatnonzero(self._marks[hashes >> np.uint32(32 - _MARK_BITS)])
            hashes, groups = hashes[marked], groups[marked]
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        here = wanted[places] == hashes
        return hashes[here], groups[here]


class _Pages(NamedTuple):
    """A section of an open index."""

    start: int
    """Where its pages begin in the file."""
    entries: int
    firsts: U32
    checksums: NDArray[np.uint64]
    ends: I64
    """Where each page ends, counted from `start`."""

    def with_hash(self, hashed: np.uint32) -> range:
        """Return the pages that may have a hash: it may begin before the page that it is the first one of."""
        first = max(int(self.firsts.searchsorted(hashed, "left")) - 1, 0)
        return range(first, int(self.firsts.searchsorted(hashed, "right")))

    def entries_of(self, page: int) -> int:
        """Return how many entries a page has."""
        return min(PAGE, self.entries - page * PAGE)


class SegmentIndex:
    """An index that is open. For any threads.

    Pages are read, not mapped: around each page of a file that is mapped and not in memory the system reads as much as
    its disk is set to read ahead, of 8 MiB 830 MB for one trace of 100 million events.
    """

    def __init__(self, path: Path) -> None:
        """Open a file. Raises `FileNotFoundError`, and `IndexDamaged`."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._size = os.fstat(self._file).st_size
        self._sections = self._open()

    def check(self, size: int, digest: str) -> None:
        """Compare it with what a manifest says of the segment's index: an index has no name, and by that of another
        segment rows would not be found. Raises `IndexDamaged`.

        Of one that is not `SHORT` only the size, which says how many ids there are: all of it may be more than is read
        for years. What has that size, too, the scrub finds.
        """
        if self._size != size:
            raise self._damaged(f"it has {self._size} bytes, and that of its segment {size}")
        if size <= SHORT and xxhash.xxh3_128_hexdigest(os.pread(self._file, size, 0)) != digest:
            raise self._damaged("it is not that of its segment: its digest does not match")

    def _open(self) -> dict[str, _Pages]:
        start = len(MAGIC) + _LENGTH
        begin, size = os.pread(self._file, start, 0), self._size
        if begin[: len(MAGIC)] not in {MAGIC, OLDER}:
            raise self._damaged("it does not begin as an index does" if size else "it is empty")
        end = min(start + int.from_bytes(begin[len(MAGIC) :], "little"), size)
        try:
            checksum, listed = _decode_header(os.pread(self._file, end - start, start))
            if xxhash.xxh3_64_intdigest(listed) != checksum:
                raise self._damaged("its header does not match its checksum")
            sections = _decode_sections(listed)
        except msgspec.MsgspecError as error:
            raise self._damaged(f"its header cannot be read: {error}") from None
        found: dict[str, _Pages] = {}
        for each in sections:
            firsts, checksums = np.frombuffer(each.firsts, _HASH), np.frombuffer(each.checksums, "<u8")
            ends = np.cumsum(np.frombuffer(each.sizes, "<u4"), dtype=np.int64) if each.sizes else _ends(each.entries)
            found[each.kind] = _Pages(end, each.entries, firsts, checksums, ends)
            end += int(ends[-1]) if len(ends) else 0
        if end != size:
            raise self._damaged(f"it has {size} bytes, not {end}")
        return found

    def _damaged(self, why: str) -> IndexDamaged:
        return IndexDamaged(f"the index {self._path.name} is damaged: {why}")

    def row_groups(self, kind: Kind, text: str) -> list[int]:
        """Return the row groups that may have this id, in their order; no other has it. Raises `IndexDamaged`."""
        hashed = _hash(kind, text)
        if hashed is None:
            return []
        section = self._sections[kind]
        found: list[int] = []
        for page in section.with_hash(hashed):
            hashes, groups = self._page(section, page)
            found += groups[hashes.searchsorted(hashed, "left") : hashes.searchsorted(hashed, "right")].tolist()
        return found

    def tally(self, project: str, user: str) -> Tally | None:
        """Return how many events a user of a project has; None: it is not said. Raises `IndexDamaged`."""
        section, key = self._sections.get("counts"), key_of(project, user)
        hashed = _hash("user", key)
        if section is None or hashed is None:
            return None
        for page in section.with_hash(hashed):
            found = tally_in(self._bytes(section, page), section.entries_of(page), hashed, key.encode())
            if found is not None:
                return found
        return None

    def entries(self, kind: Kind, wanted: SoughtHashes) -> tuple[U32, NDArray[np.uint16]]:
        """Return the hash and the row group of each entry with one of many hashes.

        Of a hundred thousand it takes 0.02 s; `row_groups` of each of them 3 s. Raises `IndexDamaged`.
        """
        section, hashes = self._sections[kind], wanted.hashes
        # A hash may begin before the page that it is the first one of, and go on over several.
        starts = np.searchsorted(hashes, section.firsts, "left").tolist()
        ends = [*np.searchsorted(hashes, section.firsts[1:], "right").tolist(), len(hashes)]
        bounds = enumerate(zip(starts, ends, strict=False))  # an empty section has no page
        found = [wanted.among(*self._page(section, page), start, end) for page, (start, end) in bounds if start < end]
        none = np.empty(0, np.uint32), np.empty(0, np.uint16)
        hashes, groups = (np.concatenate(each) for each in zip(none, *found, strict=True))
        return hashes, groups

    def _page(self, section: _Pages, page: int) -> tuple[U32, NDArray[np.uint16]]:
        count, data = section.entries_of(page), self._bytes(section, page)
        return np.frombuffer(data, _HASH, count), np.frombuffer(data, _GROUP, count, count * _HASH.itemsize)

    def _bytes(self, section: _Pages, page: int) -> bytes:
        start = section.start + (int(section.ends[page - 1]) if page else 0)
        data = os.pread(self._file, section.start + int(section.ends[page]) - start, start)
        if xxhash.xxh3_64_intdigest(data) != int(section.checksums[page]):
            raise self._damaged(f"page {page} of a section does not match its checksum")
        return data


def _ends(entries: int) -> I64:
    """Return where each page of a section of ids ends."""
    pages = np.arange(1, -(-entries // PAGE) + 1, dtype=np.int64)
    return np.minimum(pages * PAGE, entries) * _ENTRY_BYTES


@lru_cache(1024)
def _hash(kind: Kind, text: str) -> np.uint32 | None:
    """Return the hash of an id; None: of no event. Each segment is asked for the same one: hashing was two thirds of
    that."""
    if kind != "event":
        return np.uint32(text_hashes([text])[0])
    try:
        digits = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return np.uint32(event_hashes(digits)[0]) if len(digits) == 16 else None


_decode_header: Final[Callable[[bytes], tuple[int, Raw]]] = msgspec.msgpack.Decoder(tuple[int, Raw]).decode
_decode_sections: Final[Callable[[Raw], list[_Section]]] = msgspec.msgpack.Decoder(list[_Section]).decode
