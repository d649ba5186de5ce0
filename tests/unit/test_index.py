"""The id index on disk, against the dict that says what it should do; and what crashes may leave of it."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.dedupe import U64, DictIndex, resolve
from processor.state import probe
from processor.state.arena import Arena
from processor.state.filters import Filter
from processor.state.index import IdIndex
from processor.state.segment import HEADER, MAX_LOAD, WORDS, Segment

PAGE = 512
"""What a disk writes whole or not at all."""


def keys(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


def zeros(count: int) -> U64:
    return np.zeros(count, np.uint64)


def small(path: Path, first: int = 64, most: int = 256) -> IdIndex:
    """An index that soon has many segments, and filters."""
    return IdIndex(path, "log", first_capacity=first, max_capacity=most)


def settled(index: IdIndex) -> IdIndex:
    """The same when its thread has done all there is to do."""
    if index._thread is not None:
        index._thread.submit(int).result()
    return index


def filtered(index: IdIndex) -> int:
    """Segments that a search passes over without a filter's word."""
    return len(index._segments) - len(index._view.unfiltered)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@settings(max_examples=40)  # each makes dozens of files and waits for the disk
@given(st.integers(0, 2**32), st.sampled_from([64, 256, 1 << 22]), st.data())
def test_behaves_like_the_dict(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("index")
    index = small(path, most=most)
    model = DictIndex()
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 2**64, (300, 2), dtype=np.uint64)
    offset = 0
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = pool[rng.integers(0, len(pool), data.draw(st.integers(1, 120)))]
        digests = rng.integers(1, 4, len(chosen), dtype=np.uint64)
        found, expected = resolve(index, chosen, digests, offset), resolve(model, chosen, digests, offset)
        assert found[0].tolist() == expected[0].tolist()
        assert found[1].tolist() == expected[1].tolist()
        offset = max(0, offset + data.draw(st.integers(-2, 3)))
        match data.draw(st.integers(0, 5)):
            case 0:
                settled(index)
            case 1:
                settled(index).sync(offset)
            case 2:  # as after kill -9: what was written is there, whatever was under way is not finished
                index._closing.set()
                settled(index)
                index = small(path, most=most)
            case 3:
                index.close()
                index = small(path, most=most)
            case _:
                pass
    assert len(index) == len(model)
    index.close()


@settings(max_examples=40)  # each makes dozens of files and waits for the disk
@given(st.integers(0, 2**32), st.integers(0, 8), st.integers(1, 6))
def test_after_a_power_cut_the_claims_since_the_checkpoint_make_it_whole(
    tmp_path_factory: pytest.TempPathFactory, seed: int, before: int, after: int
) -> None:
    """Of what was written since the checkpoint any sector may be on the disk, or not."""
    path, cut = (tmp_path_factory.mktemp(name) for name in ("index", "cut"))
    rng = np.random.default_rng(seed)
    batches = [keys(150, int(rng.integers(2**32))) for _ in range(before + after)]
    index = small(path)
    for offset, batch in enumerate(batches[:before]):
        index.claim(batch, np.full(150, offset, np.uint64), offset)
    settled(index).sync(before)
    held = {file.name: file.read_bytes() for file in path.iterdir()}
    for offset, batch in enumerate(batches[before:], before):
        index.claim(batch, np.full(150, offset, np.uint64), offset)
    settled(index)
    shutil.copytree(path, cut, dirs_exist_ok=True)
    for file in cut.iterdir():
        now = np.frombuffer(file.read_bytes(), np.uint8)
        then = np.frombuffer(held.get(file.name, b"").ljust(len(now), b"\0"), np.uint8)
        if file.name not in held and file.suffix in {".idx", ".filter"}:  # both are made whole, then named
            then = np.concatenate([now[:HEADER], np.zeros(len(now) - HEADER, np.uint8)])
        sectors = rng.random(-(-len(now) // PAGE)) < 0.5
        mixed = np.where(np.repeat(sectors, PAGE)[: len(now)], now, then)
        file.write_bytes(held[file.name] if file.suffix == ".json" else mixed.tobytes())
    again = small(cut)
    assert again.checkpointed == before
    for offset, batch in enumerate(batches[before:], before):
        claimed, _ = again.claim(batch, np.full(150, offset, np.uint64), offset)
        assert (claimed == offset).all(), "the first copy is fresh again"
    for offset, batch in enumerate(batches):
        claimed, digests = settled(again).claim(batch, zeros(150), 999)
        assert (claimed == offset).all()
        assert (digests == offset).all()
    index.close()
    again.close()


@pytest.mark.parametrize("most", [256, 1 << 22])
def test_grows_by_segments_and_finds_everything_again(path: Path, most: int) -> None:
    index = small(path, most=most)
    every = keys(20_000)
    for offset, start in enumerate(range(0, len(every), 500)):
        held, _ = index.claim(every[start : start + 500], np.full(500, offset, np.uint64), offset)
        assert (held == offset).all()
    assert len(index) == len(every)
    assert len(list(path.glob("*.idx"))) > 3
    index.close()
    again = small(path, most=most)
    held, digests = again.claim(every, zeros(len(every)), 999)
    assert (held == np.arange(len(every)) // 500).all()
    assert (digests == held.astype(np.uint64)).all()
    assert len(again) == len(every)


def test_keys_that_share_a_bucket_or_half_a_key_are_told_apart(path: Path) -> None:
    index = small(path)
    same_half = np.array(
        [[7, number] for number in range(40)] + [[number, 7] for number in range(40) if number != 7], np.uint64
    )
    held, _ = index.claim(same_half, np.arange(len(same_half), dtype=np.uint64), 3)
    assert (held == 3).all()
    held, digests = index.claim(same_half[::-1], zeros(len(same_half)), 4)
    assert (held == 3).all()
    assert digests.tolist() == list(range(len(same_half)))[::-1]


def test_the_zero_key_is_a_key(path: Path) -> None:
    index = IdIndex(path, "log")
    zero = np.zeros((1, 2), np.uint64)
    assert index.claim(zero, np.ones(1, np.uint64), 0)[0].tolist() == [0]
    assert index.claim(zero, np.ones(1, np.uint64), 5)[0].tolist() == [0]


def test_a_segment_that_is_full_takes_no_more_than_its_load(path: Path) -> None:
    index = small(path)
    index.claim(keys(1000), zeros(1000), 0)
    arena = Arena()
    for segment in (Segment(file, arena) for file in path.glob("*.idx")):
        assert segment.used <= segment.capacity * MAX_LOAD


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


def test_there_are_filters_from_a_quarter_of_a_full_segment_on(path: Path) -> None:
    index = small(path)
    for offset in range(200):
        index.claim(keys(200, offset), zeros(200), offset)
    settled(index)
    assert len(index._view.unfiltered) == 1
    filters = {file.name for file in path.glob("*.filter")}
    assert filters == {"0000.filter", "0001.filter", "0002.filter", "0003.filter", "0004.filter"}
    index.sync(7)
    index.close()
    again = small(path)
    assert filtered(again) == len(list(path.glob("*.idx"))) - 1
    for offset in range(200):
        assert (again.find(keys(200, offset))[0] == offset).all()
    assert (again.find(keys(10_000, 999))[0] == -1).all()
    again.close()


def test_a_filter_that_no_checkpoint_names_is_made_again(path: Path) -> None:
    index = small(path)
    for offset in range(20):
        index.claim(keys(200, offset), zeros(200), offset)
    settled(index).close()
    for file in path.glob("*.filter"):  # the page cache of a machine that lost its power
        file.write_bytes(file.read_bytes()[:HEADER] + bytes(file.stat().st_size - HEADER))
    again = small(path)
    for offset in range(20):
        assert (again.find(keys(200, offset))[0] == offset).all()
    assert filtered(settled(again)) == len(again._segments) - 1
    for offset in range(20):
        assert (again.find(keys(200, offset))[0] == offset).all()
    again.close()


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(b"{"), lambda file: os.truncate(file, HEADER)]
)
def test_a_filter_that_is_lost_is_made_again(path: Path, damage: object) -> None:
    index = small(path)
    for offset in range(20):
        index.claim(keys(200, offset), zeros(200), offset)
    settled(index).sync(1)
    index.close()
    assert callable(damage)
    damage(path / "0001.filter")
    again = small(path)
    for _ in range(2):
        for offset in range(20):
            assert (again.find(keys(200, offset))[0] == offset).all()
        assert filtered(settled(again)) == len(again._segments) - 1
    again.close()


def test_the_newest_segment_is_never_passed_over(path: Path) -> None:
    """A checkpoint may name what became the newest segment again: one that came after it was lost."""
    index = small(path)
    for offset in range(20):
        index.claim(keys(200, offset), zeros(200), offset)
    settled(index).sync(1)
    lost = index._segments[-1].path
    index.close()
    lost.unlink()
    again = small(path)
    again.claim(keys(200, 77), zeros(200), 77)
    assert (again.find(keys(200, 77))[0] == 77).all()
    assert (small(path).find(keys(200, 77))[0] == 77).all()


# --- older directories ------------------------------------------------------------------------------------------------


@pytest.fixture
def old(path: Path) -> Path:
    """A directory as it was before there were filters: files with holes, with secrets of their own, growing."""
    path.mkdir()
    arena = Arena()
    for number, capacity in enumerate([64, 256, 1024, 4096]):
        file = path / f"{number:04d}.idx"
        header = {"capacity": capacity, "base": 0, "multiplier": 2**60 + 2 * number, "twist": number}
        file.write_bytes(json.dumps(header).encode())
        os.truncate(file, HEADER + 4 * WORDS * (capacity // 8))
        segment = Segment(file, arena)
        theirs = keys(int(capacity * 0.7), number)
        rows = np.arange(len(theirs))
        layout = probe.layout_of([segment])
        ends = probe.find(arena, layout, theirs, rows, np.zeros(len(rows), np.int64)).ends
        probe.insert(arena, layout, 0, theirs, zeros(len(theirs)), np.full(len(rows), number), ends)
        segment.close()
    (path / "checkpoint.json").write_text(json.dumps({"log": "log", "claims": 4}))
    return path


@pytest.mark.parametrize("most", [256, 4096, 1 << 22])
def test_a_directory_without_filters_opens_and_gets_them(old: Path, most: int) -> None:
    index = small(old, most=most)
    assert index.checkpointed == 4
    for offset in range(10, 30):
        for number, capacity in enumerate([64, 256, 1024, 4096]):
            theirs = keys(int(capacity * 0.7), number)
            held, _ = index.claim(theirs, zeros(len(theirs)), 99)
            assert (held == number).all()
        held, _ = index.claim(keys(200, offset), zeros(200), offset)
        assert (held == offset).all()
        settled(index)
    too_large = sum(segment.capacity > most for segment in index._segments[:-1])
    if most < 1 << 22:
        assert len(index._view.unfiltered) == 1 + too_large
    index.close()


def test_a_file_that_is_not_whole_is_refused(old: Path) -> None:
    os.truncate(old / "0001.idx", HEADER + 100)
    with pytest.raises(ValueError, match="shorter"):
        small(old)


# --- room on the disk -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_and_no_signal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = small(path)
    index.claim(keys(20), zeros(20), 0)
    with monkeypatch.context() as full:

        def no_space(fd: int, start: int, length: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(OSError, match="space"):
            index.claim(keys(500, 2), zeros(500), 1)
    assert not list(path.glob("*.new"))
    held, _ = index.claim(keys(500, 2), zeros(500), 1)
    assert (held == 1).all(), "all of it is fresh when it is applied again"
    assert len(index) == 520


def test_a_filter_for_which_there_is_no_room_is_done_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = small(path)
    with monkeypatch.context() as full:

        def no_space(*_: object) -> Filter:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(Filter, "create", no_space)
        for offset in range(10):
            index.claim(keys(200, offset), zeros(200), offset)
        assert not filtered(settled(index))
    index.claim(keys(500, 77), zeros(500), 77)
    assert filtered(settled(index)) == len(index._segments) - 1
    for offset in range(10):
        assert (index.find(keys(200, offset))[0] == offset).all()


def test_the_next_segment_is_made_ahead_in_a_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    create = Segment.create

    def noted(*arguments: object) -> Segment:
        made.append(threading.current_thread() is threading.main_thread())
        return create(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Segment, "create", noted)
    index = small(path)
    for offset in range(200):
        index.claim(keys(20, offset), zeros(20), offset)
        settled(index)
    assert made[0]
    assert len(made) > 10
    assert not any(made[1:])
    index.close()
    assert not list(path.glob("*.new"))


def test_a_file_takes_its_room_when_it_is_made(path: Path) -> None:
    index = small(path)
    for offset in range(20):
        index.claim(keys(200, offset), zeros(200), offset)
    for file in settled(index)._directory.iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_the_index_of_another_log_is_thrown_away(path: Path) -> None:
    index = small(path)
    index.claim(keys(1000), zeros(1000), 0)
    settled(index).sync(5)
    index.close()
    same = small(path)
    assert (len(same), same.checkpointed) == (1000, 5)
    same.close()
    other = IdIndex(path, "other")
    assert (len(other), other.checkpointed) == (0, 0)
    assert [file.name for file in path.iterdir()] == ["checkpoint.json"]


def test_a_torn_checkpoint_means_from_the_beginning(path: Path) -> None:
    index = IdIndex(path, "log")
    index.claim(keys(10), zeros(10), 0)
    index.sync(5)
    index.close()
    (path / "checkpoint.json").write_text('{"log": "lo')
    assert IdIndex(path, "log").checkpointed == 0


def test_unfinished_files_are_swept_away(path: Path) -> None:
    path.mkdir()
    (path / "0000.new").write_bytes(b"half")
    (path / "0000.filter.new").write_bytes(b"half")
    index = IdIndex(path, "log")
    assert not list(path.glob("*.new"))
    index.claim(keys(10), zeros(10), 0)
    assert len(index) == 10


def test_an_id_whose_offset_was_lost_in_a_power_cut_is_no_claim(path: Path) -> None:
    """The word written last is zero again: as after a power cut that took this page's last state."""
    index = small(path)
    chosen = keys(20)
    index.claim(chosen, np.full(20, 9, np.uint64), 7)
    index.close()
    [file] = path.glob("*.idx")
    with file.open("r+b") as torn:
        words = 56 * 8
        table = np.frombuffer(file.read_bytes()[HEADER:], "<u4").reshape(-1, 56).copy()
        assert table.nbytes == words * 4
        table[:, :8] = 0
        torn.seek(HEADER)
        torn.write(table.tobytes())
        os.fsync(torn.fileno())
    again = IdIndex(path, "log")
    held, _ = again.claim(chosen, np.full(20, 9, np.uint64), 7)
    assert (held == 7).all(), "the replayed first copy is fresh again"
    assert len(again) == 20


def test_offsets_far_apart_go_to_segments_of_their_own(path: Path) -> None:
    index = small(path)
    first, second = keys(5, 1), keys(5, 2)
    index.claim(first, zeros(5), 10)
    index.claim(second, zeros(5), 2**33)
    assert index.claim(first, zeros(5), 2**34)[0].tolist() == [10] * 5
    assert index.claim(second, zeros(5), 2**34)[0].tolist() == [2**33] * 5


def test_a_segment_made_ahead_for_other_offsets_is_not_used(path: Path) -> None:
    index = small(path)
    index.claim(keys(40, 1), zeros(40), 10)
    settled(index)
    index.claim(keys(200, 2), zeros(200), 2**33)
    assert (index.find(keys(200, 2))[0] == 2**33).all()
    assert (index.find(keys(40, 1))[0] == 10).all()
    index.close()
    assert not list(path.glob("*.new"))
