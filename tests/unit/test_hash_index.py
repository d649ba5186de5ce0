import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.growing_arrays import Segments
from processor.core.hash_index import HASH, HashIndex, hashes_of

batches = st.lists(st.lists(st.integers(0, 300), max_size=60, unique=True), max_size=12)


@given(batches=batches, crowded=st.booleans())
def test_the_index_numbers_keys_in_the_order_in_which_they_come(batches: list[list[int]], crowded: bool) -> None:
    def hashes(keys: list[int]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        found = hashes_of(keys, [b"%d" % key for key in keys])
        if crowded:  # all want the same places, and only the other half of the hash tells them apart
            found["low"] %= 4
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processor.core.hash_index.FIRST", 4)
        patch.setattr("processor.core.hash_index.MOVED", 1)
        patch.setattr("processor.core.growing_arrays.FIRST", 2)
        patch.setattr("processor.core.growing_arrays.BITS", 4)
        patch.setattr("processor.core.growing_arrays.SIZE", 16)
        index = HashIndex()
        kept: dict[int, int] = {}
        for keys in batches:
            found = index.find(hashes(keys))
            assert found.tolist() == [kept.get(key, -1) for key in keys]
            new = [key for key in keys if key not in kept]
            if new:
                numbers = index.add(hashes(new)).tolist()
                kept.update(zip(new, numbers, strict=True))
        assert list(kept.values()) == list(range(len(index)))
        assert index.find(hashes(list(kept))).tolist() == list(kept.values())


def test_hashes_of_one_key_are_the_same() -> None:
    assert hashes_of([b"a", b"b"]).tolist() == hashes_of([bytearray(b"a").decode().encode(), b"b"]).tolist()
    assert len(hashes_of([])) == 0


def test_segments_keep_what_was_put_in_while_they_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.core.growing_arrays.FIRST", 2)
    monkeypatch.setattr("processor.core.growing_arrays.BITS", 3)
    monkeypatch.setattr("processor.core.growing_arrays.SIZE", 8)
    segments = Segments(np.array((7, 8), HASH))
    assert segments.extend(0).tolist() == []
    for count in (1, 1, 3, 2, 1, 9, 30):
        numbers = segments.extend(count)
        assert segments.take(numbers).tolist() == [(7, 8)] * count
        new = np.array([(number, 2 * number) for number in numbers], HASH)
        segments.put(numbers, new)
        everything = np.arange(len(segments))[::-1]
        assert segments.column("high", everything).tolist() == (2 * everything).tolist()
        some = everything[::-1][count % 3 :: 2]
        assert segments.column("high", some, ascending=True).tolist() == (2 * some).tolist()
        assert segments.take(everything).tolist() == [(number, 2 * number) for number in everything]
        assert segments.item("low", len(segments) - 1) == len(segments) - 1
