"""The benchmark of the id index checks each answer of the index: so does this, with few ids."""

from pathlib import Path

import pytest

from tests.bench.id_filling import Order, run


@pytest.mark.slow
def test_new_ids_and_duplicates_in_batches_of_any_size_also_opened_again(tmp_path: Path) -> None:
    found = run(Order(str(tmp_path), 3000, [1000, 3000]))
    assert found["new id at 3,000, µs"] > 0
    assert found["duplicate of any, at 1,000, µs"] > 0
    assert found["disk, bytes an id"] > 28
    assert found["new id, batches of 4000, µs"] > 0
