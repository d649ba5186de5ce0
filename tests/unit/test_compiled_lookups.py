"""The compiled kernel finds in the tables of numpy arrays what its twin, in rounds of numpy, finds there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processor.core import growing_arrays, hash_index
from processor.core.growing_arrays import Records
from processor.core.hash_index import HASH, HashIndex
from processor.core.kernel.loaded import RUNNING, kernel
from processor.core.partitioning import U64
from processor.ids import probe
from processor.ids.index import IdIndex

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")


def hashes(count: int, seed: int, spread: int = 2**64) -> Records:
    rng = np.random.default_rng(seed)
    found = np.empty(count, HASH)
    found["low"] = rng.integers(0, spread, count, dtype=np.uint64)
    found["high"] = rng.integers(0, 2**64, count, dtype=np.uint64)
    return found


@pytest.mark.parametrize("spread", [2**64, 7])
def test_rows_are_found_as_in_rounds(monkeypatch: pytest.MonkeyPatch, spread: int) -> None:
    monkeypatch.setattr(growing_arrays, "BITS", 8)
    monkeypatch.setattr(growing_arrays, "SIZE", 256)
    index, known = HashIndex(), hashes(1500 if spread > 7 else 150, 1, spread)
    for start in range(0, len(known), 97):
        index.add(known[start : start + 97].copy())
        asked = np.concatenate([known, hashes(500, 2, spread)])
        found = index.find(asked)
        with monkeypatch.context() as patch:
            patch.setattr(hash_index, "kernel", None)
            assert found.tolist() == index.find(asked).tolist()


def test_claims_are_found_as_in_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[tuple[Any, Any]] = []
    compiled, rounds = probe.find, probe.find

    def both(*arguments: Any) -> probe.Found:
        mine = compiled(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(probe, "kernel", None)
            found.append((mine, rounds(*arguments)))
        return mine

    monkeypatch.setattr(probe, "find", both)
    rng = np.random.default_rng(5)
    everyone: U64 = rng.integers(0, 2**64, (6000, 2), dtype=np.uint64)
    index = IdIndex(tmp_path, "a", first_capacity=256, max_capacity=1024)
    try:
        for offset in range(60):
            again = everyone[rng.integers(0, 100 * (offset + 1), 40)]
            keys = np.concatenate([everyone[100 * offset : 100 * (offset + 1)], again])
            keys = np.unique(keys, axis=0)
            index.claim(keys, keys[:, 0].copy(), np.full(len(keys), offset))
    finally:
        index.close()
    assert sum(len(mine.held) > probe.FEW for mine, _ in found) >= 60
    assert any((mine.held >= 0).any() for mine, _ in found)
    for mine, other in found:
        assert [column.tolist() for column in mine] == [column.tolist() for column in other]


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    assert kernel is not None
    words, one = np.zeros(8 + 56 * 4, np.uint32), np.zeros(1, np.int64)
    layout = [one + 1, one + 3, np.full(1, 62, np.uint64), np.ones(1, np.uint64), np.ones(1, np.uint64), one]
    keys = np.ones((3, 2), np.uint64)
    held, _, ends = kernel.find(words, *layout, keys, one, one)
    assert np.frombuffer(held, np.int64).tolist() == [-1]
    assert (np.frombuffer(ends, np.int64)[0] - 8) % 56 == 0
    for wrong in (
        (words[:-1], *layout, keys, one, one),
        (words, *layout, keys, one + 3, one),
        (words, *layout, keys, one - 1, one),
        (words, *layout, keys, one, one + 1),
        (words, one - 1, *layout[1:], keys, one, one),
        (words, layout[0], one + 7, *layout[2:], keys, one, one),
        (words, *layout, keys, np.zeros(2, np.int64), one),
        (np.ones_like(words), *layout, keys, one, one),
    ):
        with pytest.raises(ValueError, match=r"segment|key|array"):
            kernel.find(*wrong)
    table = np.zeros(8, np.uint64)
    some = np.zeros(3, HASH)
    assert np.frombuffer(kernel.probe(table, [some], some, 4), np.int64).tolist() == [-1, -1, -1]
    full = np.full(8, 1 << 32, np.uint64)
    for refused in ((table[:7], [some], some, 4), (full, [some], some, 4), (np.full(8, 9, np.uint64), [some], some, 4)):
        with pytest.raises(ValueError, match=r"table|size"):
            kernel.probe(*refused)
