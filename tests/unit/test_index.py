"""The id index on disk, against the dict that says what it should do; and what crashes may leave of it."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.dedupe import U64, DictIndex, resolve
from processor.state.index import IdIndex
from processor.state.segment import HEADER, MAX_LOAD, Segment


def keys(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index"


@given(st.integers(0, 2**32), st.data())
def test_behaves_like_the_dict(tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    index = IdIndex(tmp_path_factory.mktemp("index"), "log", first_capacity=64)
    model = DictIndex()
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 2**64, (300, 2), dtype=np.uint64)
    offset = 0
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = pool[rng.integers(0, len(pool), data.draw(st.integers(1, 120)))]
        digests = rng.integers(0, 3, len(chosen), dtype=np.uint64)
        found, expected = resolve(index, chosen, digests, offset), resolve(model, chosen, digests, offset)
        assert found[0].tolist() == expected[0].tolist()
        assert found[1].tolist() == expected[1].tolist()
        offset = max(0, offset + data.draw(st.integers(-2, 3)))
    assert len(index) == len(model)
    index.close()


def test_grows_by_segments_and_finds_everything_again(path: Path) -> None:
    index = IdIndex(path, "log", first_capacity=64)
    every = keys(20_000)
    for offset, start in enumerate(range(0, len(every), 500)):
        held, _ = index.claim(every[start : start + 500], np.full(500, offset, np.uint64), offset)
        assert (held == offset).all()
    assert len(index) == len(every)
    assert len(list(path.glob("*.idx"))) > 3
    index.close()
    again = IdIndex(path, "log")
    held, digests = again.claim(every, np.zeros(len(every), np.uint64), 999)
    assert (held == np.arange(len(every)) // 500).all()
    assert (digests == held.astype(np.uint64)).all()
    assert len(again) == len(every)


def test_keys_that_share_a_bucket_or_half_a_key_are_told_apart(path: Path) -> None:
    index = IdIndex(path, "log", first_capacity=64)
    same_half = np.array(
        [[7, number] for number in range(40)] + [[number, 7] for number in range(40) if number != 7], np.uint64
    )
    held, _ = index.claim(same_half, np.arange(len(same_half), dtype=np.uint64), 3)
    assert (held == 3).all()
    held, digests = index.claim(same_half[::-1], np.zeros(len(same_half), np.uint64), 4)
    assert (held == 3).all()
    assert digests.tolist() == list(range(len(same_half)))[::-1]


def test_the_zero_key_is_a_key(path: Path) -> None:
    index = IdIndex(path, "log")
    zero = np.zeros((1, 2), np.uint64)
    assert index.claim(zero, np.ones(1, np.uint64), 0)[0].tolist() == [0]
    assert index.claim(zero, np.ones(1, np.uint64), 5)[0].tolist() == [0]


def test_a_segment_that_is_full_takes_no_more_than_its_load(path: Path) -> None:
    index = IdIndex(path, "log", first_capacity=64)
    index.claim(keys(1000), np.zeros(1000, np.uint64), 0)
    for segment in (Segment(file) for file in path.glob("*.idx")):
        assert segment.used <= segment.capacity * MAX_LOAD


def test_the_index_of_another_log_is_thrown_away(path: Path) -> None:
    index = IdIndex(path, "log")
    index.claim(keys(10), np.zeros(10, np.uint64), 0)
    index.sync(5)
    index.close()
    same = IdIndex(path, "log")
    assert (len(same), same.checkpointed) == (10, 5)
    same.close()
    other = IdIndex(path, "other")
    assert (len(other), other.checkpointed) == (0, 0)


def test_a_torn_checkpoint_means_from_the_beginning(path: Path) -> None:
    index = IdIndex(path, "log")
    index.claim(keys(10), np.zeros(10, np.uint64), 0)
    index.sync(5)
    index.close()
    (path / "checkpoint.json").write_text('{"log": "lo')
    assert IdIndex(path, "log").checkpointed == 0


def test_an_unfinished_segment_is_swept_away(path: Path) -> None:
    path.mkdir()
    (path / "0000.new").write_bytes(b"half")
    index = IdIndex(path, "log")
    index.claim(keys(10), np.zeros(10, np.uint64), 0)
    assert len(index) == 10


def test_an_id_whose_offset_was_lost_in_a_power_cut_is_no_claim(path: Path) -> None:
    """The word written last is zero again: as after a power cut that took this page's last state."""
    index = IdIndex(path, "log", first_capacity=64)
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
    index = IdIndex(path, "log", first_capacity=64)
    first, second = keys(5, 1), keys(5, 2)
    index.claim(first, np.zeros(5, np.uint64), 10)
    index.claim(second, np.zeros(5, np.uint64), 2**33)
    assert index.claim(first, np.zeros(5, np.uint64), 2**34)[0].tolist() == [10] * 5
    assert index.claim(second, np.zeros(5, np.uint64), 2**34)[0].tolist() == [2**33] * 5
