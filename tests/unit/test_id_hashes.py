"""The hashes of ids that are written into an index are those that readers look for."""

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from processor.core.kernel.loaded import kernel
from processor.event_store import id_hashes
from processor.event_store.id_index import event_hashes, text_hashes

TEXTS = ["", "a", "trace-1", "12345678", "123456789", "é" * 9, "x" * 300, *(f"user_{number}" for number in range(40))]


def arrays(texts: list[str | None]) -> list[Any]:
    """The texts as an array, and as parts of longer ones."""
    whole = pa.array(["before", None, *texts, "behind"], pa.string())
    return [
        pa.array(texts, pa.string()),
        whole.slice(2, len(texts)),
        whole.slice(2, len(texts)).take(pa.array(range(len(texts)), pa.int64())),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_those_of_texts_are_found_without_the_nulls(seed: int) -> None:
    rng = random.Random(seed)
    texts = [rng.choice([None, *TEXTS, *TEXTS]) for _ in range(rng.choice([0, 1, 9, 70]))]
    expected = text_hashes(text for text in texts if text is not None).tolist()
    for each in arrays(texts):
        assert id_hashes.of_texts(each).tolist() == expected
        assert set(id_hashes.of_distinct(each).tolist()) == set(expected)
    nothing = pa.nulls(len(texts), pa.string())
    assert id_hashes.of_texts(nothing).tolist() == []


def test_those_of_events_are_of_their_16_bytes() -> None:
    ids = np.random.default_rng(1).integers(0, 256, (50, 16), np.uint8)
    texts = [
        f"{each[:8]}-{each[8:12]}-{each[12:16]}-{each[16:20]}-{each[20:]}"
        for each in (row.tobytes().hex() for row in ids)
    ]
    for each in arrays(list(texts)):
        assert id_hashes.of_events(each).tolist() == event_hashes(ids.tobytes()).tolist()


@pytest.mark.skipif(kernel is None, reason="the compiled kernel does not run")
def test_buffers_that_do_not_have_the_texts_are_refused() -> None:
    assert kernel is not None
    offsets = np.array([0, 3, 2, 9], np.int32)
    for start, count in ((0, 3), (0, 4), (-1, 2), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match=r"texts|ids"):
            kernel.id_hashes(None, b"abcdefgh", offsets, start, count, False)
    assert len(kernel.id_hashes(None, b"abc", offsets, 0, 1, False)) == 4
    for wrong in (b"abc", b"g" * 36, b"0" * 36):
        with pytest.raises(ValueError, match="ids"):
            kernel.id_hashes(None, wrong, np.array([0, len(wrong)], np.int32), 0, 1, True)
    with pytest.raises(ValueError, match="texts"):
        kernel.id_hashes(b"", b"abc", offsets, 0, 1, False)
