import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.tables import row_bytes, row_dtype, table_rows
from processor.core.tables.table_rows import Counts, Progress, Sums, decode_value, encode_value

numbers = st.integers(0, 2**70) | st.integers(0, 9)
rows = st.builds(
    Sums,
    key=st.just(b""),
    offset=st.integers(-1, 2**48),
    requests=st.integers(0, 2**33),
    errors=numbers,
    input_tokens=numbers,
    output_tokens=numbers,
    cached_tokens=numbers,
    cost=numbers,
    unpriced=numbers,
    first_seen=st.integers(-(2**60), 2**60),
    last_seen=st.integers(-(2**60), 2**60),
)


@given(rows)
def test_a_row_comes_back_as_it_was(row: Sums) -> None:
    value = encode_value(row)
    assert decode_value(value) == row.value()
    fits = max(row.requests, row.errors, row.unpriced) < 2**32
    fits = fits and max(row.input_tokens, row.output_tokens, row.cached_tokens, row.cost) < 2**63
    assert (value[:1], len(value)) == (row_bytes.MARK, row_bytes.SIZE) if fits else value[:1] == b"["


def test_the_form_is_fixed() -> None:
    row = Sums(b"", 1, 2, 3, 4, 5, 6, 7, 8, -9, 10)
    fields = ((0, 4), (2, 4), (3, 4), (8, 4), (1, 8), (4, 8), (5, 8), (6, 8), (7, 8), (-9, 8), (10, 8))
    assert encode_value(row) == b"".join(field.to_bytes(size, "little", signed=True) for field, size in fields)
    assert row_dtype.DTYPE.itemsize == row_bytes.SIZE


def test_other_rows_are_lists() -> None:
    values = [encode_value(row) for row in (Progress(b"", 1, 2), Sums(b"", 1), Counts(b"", 1, 2, 3, 4))]
    assert [value[:1] for value in values] == [b"[", row_bytes.MARK, b"["]
    assert values[0] == b"[1,2,-1,-1,0,-1,-1,-1]"
    assert values[2] == b"[1,2,3,4]"


def test_what_was_written_before_can_be_read() -> None:
    assert decode_value(b"[1,2,3,4,5,6,7,8,9,10]") == list(range(1, 11))


@pytest.mark.parametrize("value", [row_bytes.MARK, row_bytes.MARK * (row_bytes.SIZE + 1)])
def test_a_value_of_another_length_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not the numbers of a row"):
        table_rows.decode_value(value)
