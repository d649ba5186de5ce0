"""The benchmark of the id index asks every store the same and checks each answer: so does this, with few ids."""

from pathlib import Path

import pytest

from tests.bench.id_filling import Order, run
from tests.bench.id_stores import INSTALL, STORES, missing


@pytest.mark.parametrize("name", STORES)
def test_every_store_tells_new_ids_from_duplicates(tmp_path: Path, name: str) -> None:
    if missing(name):
        pytest.skip(f"its package is not installed: {INSTALL}")
    found = run(Order(name, str(tmp_path), 3000, [1000, 3000]))
    assert found["new id at 3,000, µs"] > 0
    assert found["duplicate of any, at 1,000, µs"] > 0


def test_the_index_in_batches_of_any_size_opened_again(tmp_path: Path) -> None:
    found = run(Order("index", str(tmp_path), 3000, [3000], thorough=True))
    assert found["disk, bytes an id"] > 28
    assert found["new id, batches of 4000, µs"] > 0
