from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from processor.core.tables import row_bytes, row_dtype
from processor.core.tables.row_dtype import words_of
from processor.core.tables.row_sums import AMOUNTS, COUNTS, NO_SUMS, SUMS, TIMES, TOTALS, RowSums, Totals
from processor.core.tables.table_rows import Sums
from processor.view.limbs import SUMMED
from processor.view.query import SORTS
from protos.spendstream.v1 import usage_pb2
from server.http_api import openapi_schemas

numbers = st.integers(0, 9) | st.integers(0, 2**70)
times = st.integers(-(2**60), 2**60)
totals = st.builds(Totals, *[numbers] * len(TOTALS))


@st.composite
def row_sums(draw: st.DrawFn) -> RowSums:
    first, last = sorted((draw(times), draw(times)))
    return RowSums(*[*astuple(draw(totals)), first, last])


def test_the_record_is_that_of_the_log() -> None:
    counts = [("zero", "<u4"), ("requests", "<u4"), ("errors", "<u4"), ("unpriced", "<u4"), ("offset", "<i8")]
    amounts = [("input_tokens", "<i8"), ("output_tokens", "<i8"), ("cached_tokens", "<i8"), ("cost", "<i8")]
    assert row_dtype.DTYPE.descr == [*counts, *amounts, ("first_seen", "<i8"), ("last_seen", "<i8")]
    assert row_bytes.SIZE == row_dtype.DTYPE.itemsize == 72
    assert words_of(row_dtype.DTYPE, AMOUNTS) == slice(3, 7)


def test_whatever_has_sums_has_them_by_the_same_names() -> None:
    assert sorted((*COUNTS, *AMOUNTS, *TIMES)) == sorted(SUMS)
    assert Sums.__struct_fields__[2 : 2 + len(SUMS)] == SUMS
    shown = ["cost_usd" if name == "cost" else name for name in TOTALS]
    assert list(openapi_schemas.SUMS) == shown
    assert [field.name for field in usage_pb2.Sums.DESCRIPTOR.fields] == shown
    assert [name for name in SUMMED if name != "cost_high"] == [
        "cost_low" if name == "cost" else name for name in TOTALS
    ]
    assert set(SORTS.values()) <= set(SUMS)


@given(totals, totals)
def test_what_was_added_can_be_taken_away(one: Totals, other: Totals) -> None:
    both = one.plus(other)
    assert astuple(both) == tuple(map(int.__add__, astuple(one), astuple(other)))
    assert both.minus(other) == one


@given(st.lists(row_sums(), max_size=4))
def test_rows_together_are_their_totals_and_the_times_of_those_with_requests(rows: list[RowSums]) -> None:
    found, total = NO_SUMS, Totals()
    for row in rows:
        found, total = found.merge(row), total.plus(row)
    seen = [row for row in rows if row.requests]
    first, last = min((row.first_seen for row in seen), default=0), max((row.last_seen for row in seen), default=0)
    assert (found.totals(), found.first_seen, found.last_seen) == (total, first, last)
    kept = Sums(b"")
    for row in seen:
        kept.add(row)
    if seen == rows:
        assert kept.value()[1:] == list(astuple(found))
