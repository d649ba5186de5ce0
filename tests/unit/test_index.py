"""The id index against the dict that says what it should do, whatever a crash or a bad disk leaves of its files."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from processor.core.partitioning import U64
from processor.core.tables.dedupe import resolve
from processor.core.tables.history import OffsetRange
from processor.ids import id_segment as segment_module
from processor.ids import index as module
from processor.ids.filters import Filter
from processor.ids.id_segment import BLOCK_BYTES, HEADER, WORDS, DamagedIndex, IdSegment
from processor.ids.index import MAX_WAITING, IdIndex
from processor.ids.index_checkpoint import NOTHING, Covered
from processor.ids.journal import CHUNK, Journal
from tests.support.dict_index import DictIndex
from tests.support.examples import examples, tries

RECORD = 200
"""Ids of one record in the claims log of these tests."""


class WatchedIndex(IdIndex):
    """An index that shows what it is made of."""

    def settle(self) -> None:
        """Wait until its thread has done all there is to do."""
        if self._thread is not None:
            self._thread.submit(int).result()

    def leave_undone(self) -> None:
        """Have its thread do nothing more."""
        self._closing.set()

    def segments(self) -> list[IdSegment]:
        return list(self._segments)

    def filtered(self) -> int:
        """Segments that a search passes over without a filter's word."""
        return len(self._segments) - len(self._view.unfiltered)


def keys(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


def failing(number: int) -> Callable[..., Any]:
    """A call of the system that fails with this errno."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def zeros(count: int) -> U64:
    return np.zeros(count, np.uint64)


class ClaimsLog:
    """A claims log: the ids of each record, which were claimed at the record's own offset."""

    def __init__(self, history: str = "a") -> None:
        self.records: list[tuple[U64, U64]] = []
        self.history = history
        """Records of another history differ."""

    def digest(self, offset: int) -> str | None:
        return f"{self.history}{offset}" if offset < len(self.records) else None

    def cut(self, count: int) -> "ClaimsLog":
        """The log as it was when it had so many records."""
        older = ClaimsLog(self.history)
        older.records = self.records[:count]
        return older

    def covered(self, index: WatchedIndex) -> Covered:
        """What to say to `sync` when all ids of the index are in the log."""
        return Covered(len(self.records), self.digest(len(self.records) - 1) or "", len(index))

    def replay(self, index: WatchedIndex) -> WatchedIndex:
        """What a start does: put in the claims since the checkpoint."""
        for offset in range(index.checkpointed, len(self.records)):
            resolve(index, *self.records[offset], offset)
            if index.waits:
                index.sync(Covered(offset + 1, f"{self.history}{offset}", len(index)))
        return index

    def append(self, index: WatchedIndex, some: U64, digests: U64 | None = None) -> None:
        """Claim ids, and have it in the log."""
        digests = np.full(len(some), len(self.records), np.uint64) if digests is None else digests
        resolve(index, some, digests, len(self.records))
        self.records.append((some, digests))

    def expected(self) -> DictIndex:
        model = DictIndex()
        for offset, (some, digests) in enumerate(self.records):
            resolve(model, some, digests, offset)
        return model


def opened(path: Path, log: ClaimsLog, first: int = 64, most: int = 256, identity: str = "log") -> WatchedIndex:
    """An index that soon has many segments, and filters; what is in memory only is not in it."""
    return WatchedIndex(path, identity, log.digest, first_capacity=first, max_capacity=most)


def settled(index: WatchedIndex) -> WatchedIndex:
    """The same when its thread has done all there is to do."""
    index.settle()
    return index


def is_exact(index: WatchedIndex, log: ClaimsLog, strangers: int = 300) -> None:
    """Every id of the log is claimed where the log says, with its digest, and no other id is."""
    model = log.expected()
    assert len(index) == len(model)
    for offset, (some, digests) in enumerate(log.records):
        held, kept = index.find(some)
        expected, expected_digests = model.claim(some, digests, offset)
        assert (held == expected).all()
        assert (kept == expected_digests).all()
    assert (index.find(keys(strangers, 2**31))[0] == -1).all()


def filled(path: Path, records: int, log: ClaimsLog, *, most: int = 256, final: bool = True) -> None:
    """Make an index with so many records of the log in its files, and close it."""
    index = opened(path, log, most=most)
    for seed in range(records):
        log.append(index, keys(RECORD, seed))
        index.sync(log.covered(index))
        settled(index)
    index.sync(log.covered(index), final=final)
    settled(index).close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def log() -> ClaimsLog:
    return ClaimsLog()


@pytest.fixture(autouse=True)
def small_tails_and_no_waiting() -> Iterator[None]:
    """Tails of a few ids, so that there are several; nobody cuts the power here, so nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "TAIL", 90)
        patched.setattr(module, "MAX_WAITING", 1000)
        patched.setattr(os, "fsync", lambda fd: None)
        yield


@examples(20)
@given(st.integers(0, 2**32), st.sampled_from([64, 256, 1 << 21]), st.data())
def test_behaves_like_the_dict_whatever_is_killed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: int, data: st.DataObject
) -> None:
    """What was claimed and is not in the claims log is gone after a kill; all that is in it is there."""
    path = tmp_path_factory.mktemp("index")
    log = ClaimsLog()
    index, model = opened(path, log, most=most), DictIndex()
    pool = np.random.default_rng(seed).integers(0, 2**64, (400, 2), dtype=np.uint64)
    rng = np.random.default_rng(seed)
    for _ in range(data.draw(st.integers(1, 14))):
        chosen = pool[rng.integers(0, len(pool), data.draw(st.integers(1, 150)))]
        digests = rng.integers(1, 4, len(chosen), dtype=np.uint64)
        offset = len(log.records)
        found, expected = resolve(index, chosen, digests, offset), resolve(model, chosen, digests, offset)
        assert found[0].tolist() == expected[0].tolist()
        assert found[1].tolist() == expected[1].tolist()
        what = data.draw(st.sampled_from(["kill", "kill durable", "stop", "sync", "ahead", "settle", "nothing"]))
        durable = log.covered(index)._replace(ids=len(log.expected()))
        if what != "kill":
            log.records.append((chosen, digests))
        match what:
            case "kill" | "kill durable":  # what the thread is at is not finished
                index.leave_undone()
                settled(index)
                index = log.replay(opened(path, log, most=most))
                model = log.expected()
            case "stop":
                index.sync(log.covered(index), final=True)
                index.close()
                index = log.replay(opened(path, log, most=most))
            case "sync":
                index.sync(log.covered(index))
            case "ahead":  # the claims of the newest message are still on their way to the log
                index.sync(durable)
            case "settle":
                settled(index)
            case _:
                pass
        assert len(index) == len(model)
    is_exact(index, log)
    index.close()


@examples(20)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32))
def test_no_file_has_an_id_whose_claim_is_not_in_the_log(
    tmp_path_factory: pytest.TempPathFactory, durable: int, more: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("index")
    log = ClaimsLog()
    index = opened(path, log)
    for number in range(durable):
        log.append(index, keys(RECORD, seed + number))
    covered = log.covered(index)
    for number in range(min(more, 2)):  # applied, and the flush that brings their claims to the log is under way
        resolve(index, keys(RECORD, seed + 100 + number), zeros(RECORD), durable + number)
    index.sync(covered, final=True)
    settled(index).close()
    again = opened(path, log)
    assert again.covered == (covered if durable else NOTHING)
    is_exact(again, log)
    again.close()


@pytest.mark.parametrize("most", [256, 1 << 21])
def test_grows_by_segments_and_finds_everything_again(path: Path, log: ClaimsLog, most: int) -> None:
    filled(path, 100, log, most=most)
    assert len(list(path.glob("*.idx"))) > 3
    again = opened(path, log, most=most)
    assert again.checkpointed == 100
    is_exact(again, log)
    again.close()


def test_keys_that_share_a_bucket_or_half_a_key_are_told_apart(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log)
    same_half = np.array(
        [[7, number] for number in range(40)] + [[number, 7] for number in range(40) if number != 7], np.uint64
    )
    held, _ = index.claim(same_half, np.arange(len(same_half), dtype=np.uint64), 3)
    assert (held == 3).all()
    held, digests = index.claim(same_half[::-1], zeros(len(same_half)), 4)
    assert (held == 3).all()
    assert digests.tolist() == list(range(len(same_half)))[::-1]


def test_the_zero_key_is_a_key(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log)
    zero = np.zeros((1, 2), np.uint64)
    assert index.claim(zero, np.ones(1, np.uint64), 0)[0].tolist() == [0]
    assert index.claim(zero, np.ones(1, np.uint64), 5)[0].tolist() == [0]


def test_offsets_far_apart_go_to_segments_of_their_own(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log)
    first, second = keys(5, 1), keys(5, 2)
    index.claim(first, zeros(5), 10)
    index.claim(second, zeros(5), 2**33)
    index.sync(Covered(1, "a0", 10), final=True)
    for _ in range(2):
        assert index.claim(first, zeros(5), 2**34)[0].tolist() == [10] * 5
        assert index.claim(second, zeros(5), 2**34)[0].tolist() == [2**33] * 5
        index.claim(keys(5, 3), zeros(5), 2**33 + 1)
        assert (index.find(keys(5, 3))[0] == 2**33 + 1).all()
        index.close()
        index = opened(path, log_of(1))


def log_of(count: int) -> ClaimsLog:
    """One with so many records of no ids."""
    log = ClaimsLog()
    log.records = [(keys(0), zeros(0))] * count
    return log


# --- an index and a log of different moments --------------------------------------------------------------------------


@pytest.mark.parametrize("records", range(0, 31, 3))
def test_an_index_newer_than_the_log_is_thrown_away(path: Path, log: ClaimsLog, records: int) -> None:
    filled(path, 30, log)
    older = log.cut(records)
    with capture_logs() as logged:
        again = opened(path, older)
    if records < 30:
        assert again.covered == NOTHING
        [entry] = logged
        assert entry["event"] == "index.discarded"
        assert "claims record 29, which the log does not have" in entry["reason"]
        assert list(path.iterdir()) == []
    is_exact(older.replay(again), older)
    again.close()


def test_an_index_of_another_history_is_thrown_away(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log)
    other = ClaimsLog("b")
    other.records = [*log.records[:29], (keys(RECORD, 999), zeros(RECORD)), *log.records[:5]]
    with capture_logs() as logged:
        again = opened(path, other)
    assert "claims record 29 of the log is not the one that it was made from" in logged[0]["reason"]
    assert len(again) == 0
    again.close()


def test_an_index_older_than_the_log_is_read_on(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log)
    older = path.with_name("older")
    shutil.copytree(path, older)
    index = log.replay(opened(path, log))
    for seed in range(30, 50):
        log.append(index, keys(RECORD, seed))
        index.sync(log.covered(index))
    settled(index).close()
    again = opened(older, log)
    assert again.checkpointed == 30
    is_exact(log.replay(again), log)
    again.close()


def test_the_index_of_another_log_is_thrown_away(path: Path, log: ClaimsLog) -> None:
    filled(path, 5, log)
    with capture_logs() as logged:
        other = opened(path, log, identity="other")
    assert "another log (log, not other)" in logged[0]["reason"]
    assert (len(other), other.checkpointed) == (0, 0)
    assert list(path.iterdir()) == []


def test_a_directory_of_the_format_before_is_thrown_away(path: Path, log: ClaimsLog) -> None:
    """Its segments were changed in their files, so nothing tells what is in them."""
    path.mkdir()
    header = {"capacity": 64, "base": 0, "multiplier": 2**60 + 1, "twist": 5}
    table = bytes(4 * WORDS * 8)
    (path / "0000.idx").write_bytes(json.dumps(header).encode().ljust(HEADER, b"\0") + table)
    (path / "0001.new").write_bytes(b"half")
    (path / "0000.filter").write_bytes(bytes(HEADER))
    (path / "checkpoint.json").write_text(json.dumps({"log": "log", "claims": 4, "sealed": {}}))
    for seed in range(4):
        log.records.append((keys(RECORD, seed), zeros(RECORD)))
    with capture_logs() as logged:
        index = opened(path, log)
    assert "format of an older version" in logged[0]["reason"]
    assert index.checkpointed == 0
    assert list(path.iterdir()) == []
    is_exact(log.replay(index), log)


def test_an_empty_directory_is_nothing_to_speak_of(path: Path, log: ClaimsLog) -> None:
    with capture_logs() as logged:
        opened(path, log).close()
        opened(path, log).close()
    assert logged == []


def test_what_no_checkpoint_names_is_swept_away(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log)
    named = {file.name for file in path.iterdir()}
    for name in ("9007.idx", "0000.idx.new", "00000099.tail", "0009.filter", "checkpoint.json.new"):
        (path / name).write_bytes(b"half")
    again = opened(path, log)
    assert {file.name for file in path.iterdir()} == named
    is_exact(again, log)
    again.close()


# --- damage -----------------------------------------------------------------------------------------------------------


def whole(path: Path, log: ClaimsLog) -> tuple[bool, list[str]]:
    """Open an index as a worker does, again after damage; whether it was damaged while it ran, and what was logged."""
    with capture_logs() as logged:
        damaged = False
        index = log.replay(opened(path, log))
        try:
            is_exact(index, log)
        except DamagedIndex:
            damaged = True
            with pytest.raises(DamagedIndex):  # once and for all
                index.find(keys(1))
            index.close()
            index = log.replay(opened(path, log))
            is_exact(index, log)
        settled(index).close()
    return damaged, [entry["event"] for entry in logged]


@pytest.mark.parametrize("kind", ["idx", "tail", "filter", "json"])
def test_a_flipped_bit_changes_nothing(path: Path, kind: str) -> None:
    """Any bit of any file; whatever it does, the answers are those of the claims log."""
    log = ClaimsLog()
    filled(path, 6, log)
    rng = np.random.default_rng(len(kind))
    files = sorted(path.glob(f"*.{kind}"))
    assert files
    noticed, flips = 0, tries(40)
    for number in range(flips):
        copy = path.with_name(f"copy-{number}")
        shutil.copytree(path, copy)
        file = copy / files[number % len(files)].name
        content = bytearray(file.read_bytes())
        # The rows of a filter are few; a quarter of the flips are in the first bytes, where a header is.
        bit = int(rng.integers(0, 8 * (len(content) if number % 4 else 200)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        damaged, events = whole(copy, log)
        noticed += damaged or bool(events)
        assert damaged == ("index.damaged" in events)
        shutil.rmtree(copy)
    if kind in {"idx", "tail"}:
        assert noticed == flips


@pytest.mark.parametrize("cut", [0, 1, 100, HEADER - 1, HEADER + 100])
@pytest.mark.parametrize("kind", ["idx", "tail", "filter", "json"])
def test_a_file_that_is_cut_off_or_lost_changes_nothing(path: Path, log: ClaimsLog, kind: str, cut: int) -> None:
    filled(path, 6, log)
    file = max(path.glob(f"*.{kind}"))
    if cut == 0:
        file.unlink()
    elif cut < file.stat().st_size:
        os.truncate(file, cut)
    else:
        os.truncate(file, file.stat().st_size + cut)
    damaged, events = whole(path, log)
    assert not damaged
    assert events
    is_exact(opened(path, log), log)


def test_a_bad_block_is_named(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log, most=1 << 21)
    file = path / "0002.idx"
    content = bytearray(file.read_bytes())
    begin = HEADER + BLOCK_BYTES
    content[begin] ^= 4
    file.write_bytes(content)
    index = opened(path, log, most=1 << 21)
    every = np.concatenate([some for some, _ in log.records])
    with capture_logs() as logged, pytest.raises(DamagedIndex, match=r"0002\.idx, block 1 \(bytes 18432 to 32768\)"):
        index.find(every)
    assert logged[0]["event"] == "index.damaged"
    assert not (path / "checkpoint.json").exists(), "the next start builds it from the claims log"
    index.sync(Covered(31, "a30", len(index)), final=True)
    settled(index).close()
    assert not (path / "checkpoint.json").exists()


def test_a_bad_block_is_found_by_who_fills_a_filter(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log)
    for file in path.glob("*.filter"):
        file.unlink()
    file = path / "0003.idx"
    content = bytearray(file.read_bytes())
    content[HEADER] ^= 1
    file.write_bytes(content)
    index = settled(opened(path, log))
    with pytest.raises(DamagedIndex, match="block 0"):
        index.claim(keys(1, 77), zeros(1), 30)
    index.close()


def test_an_error_of_the_disk_is_no_signal(path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, 30, log)
    index = opened(path, log)

    fails = failing(errno.EIO)

    with monkeypatch.context() as bad:
        bad.setattr(os, "pread", fails)
        with pytest.raises(DamagedIndex, match="Input/output error"):
            index.find(log.records[0][0])
    index.close()
    is_exact(log.replay(opened(path, log)), log)


# --- filters ----------------------------------------------------------------------------------------------------------


def test_a_filter_forgets_no_id_and_is_seldom_wrong(path: Path) -> None:
    path.mkdir()
    made = Filter.create(path / "0000.filter", 1 << 14, 16, (12345, 678))
    theirs = [keys(1600, seed) for seed in range(16)]
    for bit, each in enumerate(theirs):
        made.add(each, bit)
    for bit, each in enumerate(theirs):
        rows, bits = made.look(made.spots(each), 0xFFFF)
        assert (rows[bits == bit] == np.arange(1600)).all()
        assert (made.look(made.spots(each), 1 << bit)[1] == bit).all(), "bits that are not trusted say nothing"
    rows, _ = made.look(made.spots(keys(10_000, 99)), 0xFFFF)
    assert len(rows) < 10_000 * 16 * 0.02


def test_the_digest_of_a_filter_is_of_its_trusted_bits(path: Path) -> None:
    path.mkdir()
    made = Filter.create(path / "0000.filter", 1 << 14, 16, (12345, 678))
    made.add(keys(100, 0), 3)
    before = made.digest(1 << 3)
    made.add(keys(100, 1), 4)
    made.sync()
    assert made.digest(1 << 3) == before
    assert made.digest(3 << 3) != before
    again = Filter(path / "0000.filter")
    assert again.digest(1 << 3) == before
    again.add(keys(1, 2), 3)
    assert again.digest(1 << 3) != before


@pytest.mark.slow
def test_there_are_filters_from_a_quarter_of_a_full_segment_on(path: Path, log: ClaimsLog) -> None:
    filled(path, 200, log)
    assert {file.name for file in path.glob("*.filter")} == {"0000.filter", "0001.filter", "0002.filter", "0003.filter"}
    again = opened(path, log)
    assert again.filtered() == len(list(path.glob("*.idx")))
    is_exact(again, log, 10_000)
    again.close()


def test_a_filter_that_no_checkpoint_names_is_made_again(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log)
    for seed in range(3):
        log.append(index, keys(RECORD, seed))
    index.leave_undone()  # the thread does nothing
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index, "_closing", _Never())
        index.sync(log.covered(index), final=True)
    index.close()
    again = settled(opened(path, log))
    assert again.filtered() == len(list(path.glob("*.idx"))) > 0
    is_exact(again, log)
    again.close()


class _Never:
    """An event that is not set for who asks before and is for who asks after."""

    def __init__(self) -> None:
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        return self._asked > 1

    def set(self) -> None:
        pass


def test_a_filter_that_is_lost_is_made_again(path: Path, log: ClaimsLog) -> None:
    filled(path, 30, log)
    (path / "0000.filter").write_bytes(b"{")
    again = opened(path, log)
    for _ in range(2):
        is_exact(again, log)
        assert settled(again).filtered() == len(list(path.glob("*.idx")))
    again.close()
    with capture_logs() as logged:
        once_more = opened(path, log)
    assert logged == []
    is_exact(once_more, log)
    once_more.close()


def test_a_filter_for_which_there_is_no_room_is_done_without(
    path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = opened(path, log)
    with monkeypatch.context() as full:
        full.setattr(Filter, "create", failing(errno.ENOSPC))
        for seed in range(10):
            log.append(index, keys(RECORD, seed))
            index.sync(log.covered(index))
        assert not settled(index).filtered()
    log.append(index, keys(500, 77))
    index.sync(log.covered(index))
    assert settled(index).filtered() > 10
    is_exact(index, log)
    index.close()


def test_a_filter_that_could_not_be_flushed_is_trusted_no_more(
    path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk has of it is unknown then, also when a later flush says nothing."""
    index = opened(path, log)

    fails = failing(errno.EIO)

    with monkeypatch.context() as bad:
        bad.setattr(Filter, "sync", fails)
        for seed in range(10):
            log.append(index, keys(RECORD, seed))
            index.sync(log.covered(index))
        assert not settled(index).filtered()
        assert not list(path.glob("*.filter"))
    log.append(index, keys(500, 77))
    index.sync(log.covered(index), final=True)
    assert settled(index).filtered() > 10
    index.close()
    is_exact(opened(path, log), log)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_never_changes(path: Path, log: ClaimsLog) -> None:
    """But for filters, of which bits are added, and the checkpoint, which is replaced."""
    index = opened(path, log)
    known: dict[tuple[str, int], bytes] = {}
    for seed in range(60):
        log.append(index, keys(RECORD, seed))
        index.sync(log.covered(index), final=seed % 7 == 0)
        for file in path.iterdir():
            if file.suffix in {".idx", ".tail"}:
                content = known.setdefault((file.name, file.stat().st_ino), file.read_bytes())
                assert file.read_bytes() == content
    settled(index).close()
    assert {name for name, _ in known if name.endswith(".tail")}


def test_tails_are_as_many_as_their_ids_need(path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAIL", 1000)
    index = opened(path, log, most=1 << 21)
    for seed in range(400):
        log.append(index, keys(20, seed))
        index.sync(log.covered(index), final=seed % 3 == 0)
        small = [file for file in path.glob("*.tail") if file.stat().st_size < 1000 * 32]
        assert len(small) <= 1
        assert len(list(path.glob("*.tail"))) <= 1 + 1 + 8000 // 1000
    index.close()
    is_exact(log.replay(opened(path, log, most=1 << 21)), log)


def test_a_checkpoint_is_made_when_it_is_worth_it(path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAIL", 100)
    monkeypatch.setattr(module, "RECORDS", 5)
    index = opened(path, log, first=1 << 16, most=1 << 21)
    at = []
    for seed in range(12):
        log.append(index, keys(1, seed))
        index.sync(log.covered(index))
        at.append(index.checkpointed)
    assert at == [0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10, 10]
    log.append(index, keys(100, 99))
    index.sync(log.covered(index))
    assert index.checkpointed == 13
    log.append(index, keys(1, 100))
    index.sync(log.covered(index), final=True)
    assert index.checkpointed == 14
    index.close()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_refuses_costs_a_checkpoint_and_no_id(
    path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    index = opened(path, log)
    log.append(index, keys(100))
    index.sync(log.covered(index), final=True)
    before = index.covered

    fails = failing(errno.ENOSPC)

    with monkeypatch.context() as full:
        if call == "rename":
            full.setattr(Path, call, fails)
        else:
            full.setattr(os, call, fails)
        log.append(index, keys(300, 2))
        with pytest.raises(OSError, match="space"):
            index.sync(log.covered(index))
    assert index.covered == before
    is_exact(index, log)
    index.close()  # its thread may be writing a filter
    assert not list(path.glob("*.new"))
    is_exact(log.replay(opened(path, log)), log)


def test_memory_has_a_bound_when_nothing_can_be_written(
    path: Path, log: ClaimsLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", MAX_WAITING)
    index = opened(path, log, most=64)

    def claim_for_ever() -> None:
        for seed in range(99):
            log.append(index, keys(10, seed))

    with pytest.raises(OSError, match="wait to be written"):
        claim_for_ever()
    assert len(index) == (MAX_WAITING + 1) * int(0.8 * 64)
    assert index.waits
    log.records.append((keys(10, len(log.records)), np.full(10, len(log.records), np.uint64)))
    index.sync(log.cut(len(log.records) - 1).covered(index)._replace(ids=10 * (len(log.records) - 1)))
    assert not index.waits
    log.replay(index)
    is_exact(index, log)
    index.close()


def test_a_scratch_index_writes_what_is_full_by_itself(path: Path, log: ClaimsLog) -> None:
    index = WatchedIndex(path, "log", first_capacity=64, max_capacity=256)
    for seed in range(40):
        log.append(index, keys(50, seed))
        settled(index)
    assert len(list(path.glob("*.idx"))) > 5
    assert index.filtered() > 5
    is_exact(index, log)
    index.close()
    again = WatchedIndex(path, "log", first_capacity=64, max_capacity=256)
    assert len(again) == 0
    assert list(path.iterdir()) == []


def test_a_segment_that_is_full_takes_no_more_than_its_load(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log)
    log.append(index, keys(500))
    for segment in index.segments():
        assert segment.used <= segment.capacity * segment_module.MAX_LOAD


def test_a_segment_looks_the_same_in_memory_and_as_a_file(path: Path, log: ClaimsLog) -> None:
    index = opened(path, log, first=4096)
    log.append(index, keys(4000))
    first = index.segments()[0]
    before = first.table.copy(), first.keys(0, first.buckets).copy()
    index.sync(log.covered(index))
    assert isinstance(first, IdSegment)
    assert first.path == path / "0000.idx"
    assert (first.table == before[0]).all()
    assert (first.keys(0, first.buckets) == before[1]).all()
    index.close()


def test_a_journal_gives_back_what_was_added(path: Path) -> None:
    every = keys(5 * CHUNK, 3)
    journal = Journal(7)
    done = 0
    for size in (1, CHUNK - 1, 10, 2 * CHUNK, CHUNK // 2):
        some = every[done : done + size]
        journal.add(some, some[:, 0], np.arange(done, done + size))
        done += size
    for start, stop in ((0, done), (5, 6), (CHUNK, 2 * CHUNK), (CHUNK - 1, CHUNK + 1), (9, 9)):
        found = journal.read(7 + start, 7 + stop)
        offsets = [number for part in found for number in part["offset"].tolist()]
        assert offsets == list(range(start, stop))
        assert all((part["key"] == every[part["offset"]]).all() for part in found)
    journal.drop(7 + 2 * CHUNK + 5)
    [part] = journal.read(7 + 2 * CHUNK + 5, 7 + 2 * CHUNK + 9)
    assert part["offset"].tolist() == list(range(2 * CHUNK + 5, 2 * CHUNK + 9))
    with pytest.raises(ValueError, match="not within"):
        journal.read(7, 8)


# --- addresses --------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from processor.ids.index import IdIndex
has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + (int(sys.argv[2]) << 20), resource.RLIM_INFINITY))
index = IdIndex(Path(sys.argv[1]), "log", lambda offset: None)
try:
    index.claim(np.arange(2000, dtype="u8").reshape(-1, 2), np.zeros(1000, "u8"), 0)
except OSError as error:
    print(error)
else:
    print(len(index))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its addresses")
@pytest.mark.parametrize("spare", [64, 1])
def test_a_limit_of_addresses_is_no_hindrance_or_is_named(tmp_path: Path, spare: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(spare)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    if spare == 64:
        assert done.stdout == "1000\n"
    else:
        assert "the id index needs 2 MiB of memory addresses more" in done.stdout
        assert "(ulimit -v)" in done.stdout
        assert "MiB at least, or no limit" in done.stdout


def test_indexes_beside_each_other_share_no_address(tmp_path: Path) -> None:
    many = [opened(tmp_path / str(number), ClaimsLog()) for number in range(20)]
    for number, index in enumerate(many):
        index.claim(keys(100, number), np.full(100, number, np.uint64), number)
    for number, index in enumerate(many):
        assert (index.find(keys(100, number))[0] == number).all()
        assert (index.find(keys(100, number + 1))[0] == -1).all()
        index.close()
    if sys.platform == "linux":
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        assert has < 100 << 30, "addresses are not reserved"


def test_an_index_made_with_other_void_events_is_thrown_away_once(tmp_path: Path) -> None:
    """What a checkpoint without the field says: no events were void."""
    log = ClaimsLog()
    index = opened(tmp_path, log)
    log.append(index, keys(RECORD))
    index.sync(log.covered(index), final=True)
    index.close()
    path = tmp_path / "checkpoint.json"
    said = json.loads(path.read_text())["checkpoint"]
    assert said.pop("void") == []
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())
    path.write_text(json.dumps({"checkpoint": said, "checksum": checksum}))
    opened(tmp_path, log).close()
    assert path.exists()
    void = [OffsetRange(7, 9), OffsetRange(3, 4)]
    for ids in (0, RECORD):
        with capture_logs() as said_of:
            index = WatchedIndex(tmp_path, "log", log.digest, void=void, first_capacity=64, max_capacity=256)
        assert (len(index), len(said_of)) == (ids, 0 if ids else 1)
        assert ids or "(none), but must skip 3 to 3, 7 to 8" in said_of[0]["reason"]
        is_exact(log.replay(index), log)
        index.sync(log.covered(index), final=True)
        index.close()


def open_segments() -> list[str]:
    """Of all segments of this process."""
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [each for each in links if each.endswith(".idx")]


def test_segments_hold_no_file_open(tmp_path: Path) -> None:
    """A process has fewer files than the ids of years have segments."""
    log = ClaimsLog()
    index = opened(tmp_path, log)
    for number in range(40):
        log.append(index, keys(RECORD, number))
        index.sync(log.covered(index), final=True)
    settled(index).close()
    assert len(list(tmp_path.glob("*.idx"))) >= 30
    again = settled(opened(tmp_path, log))
    assert open_segments() == []
    is_exact(again, log)
    assert open_segments() == []
    again.close()


def test_no_file_to_be_had_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ClaimsLog()
    index = opened(tmp_path, log)
    for number in range(4):
        log.append(index, keys(RECORD, number))
    index.sync(log.covered(index), final=True)
    settled(index).close()
    again = settled(opened(tmp_path, log, most=1 << 20))  # no filters, whose thread would read all of it
    with monkeypatch.context() as patched:
        refuse = failing(errno.EMFILE)

        patched.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            again.find(log.records[0][0])
    is_exact(again, log)
    again.close()
    assert (tmp_path / "checkpoint.json").exists()
