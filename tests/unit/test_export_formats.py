"""The forms of an export."""

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq
import pytest

from processor.core.clock import format_timestamp
from server.explore.event_json import MEMBERS
from server.explore.export_formats import EXPORTED, GROUP, CsvForm, Form, NdjsonForm, ParquetForm
from tests.support.event_store import NOON, Row, make_row, table_of

Cells = dict[str, str]


def table(rows: list[Row]) -> Any:
    return table_of([{**row, "log_partition": 0, "log_offset": 0, "log_index": 0} for row in rows]).select(
        list(MEMBERS)
    )


def written(form: Form, *parts: list[Row]) -> bytes:
    return b"".join([form.head(), *(form.rows(table(rows)) for rows in parts), form.tail()])


def read_csv(raw: bytes) -> list[Cells]:
    return list(csv.DictReader(io.StringIO(raw.decode(), newline="")))


def cells(**fields: Any) -> Cells:
    (found,) = read_csv(written(CsvForm(), [make_row(**fields)]))
    return found


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|'/c calc'!A0"])
def test_what_a_spreadsheet_would_run_is_made_safe(text: str) -> None:
    found = cells(model=text, error_message=text)
    assert found["model"] == found["error_message"] == "'" + text


def test_other_texts_and_numbers_stay_as_they_are() -> None:
    odd = 'a "quoted", two\nlines; ünï =x'
    found = cells(model=odd, latency_ms=0.5, cost_usd=1, ttft_ms=1e-7)
    assert found["model"] == odd
    assert (found["latency_ms"], found["cost_usd"], found["ttft_ms"]) == ("0.5", "0.000000000001", "1e-7")
    assert (found["stream"], found["timestamp"]) == ("false", format_timestamp(NOON))


def test_absent_fields_are_empty_and_parts_are_json() -> None:
    found = cells(cost_usd=None, tags={"a": '=1,"x"'}, tools_used=["=x"], eval_scores={"s": -1.5}, extra='{"n":1.50}')
    assert list(found) == list(MEMBERS)
    assert (found["cost_usd"], found["user_id"], found["ttft_ms"]) == ("", "", "")
    assert json.loads(found["tags"]) == {"a": '=1,"x"'}
    assert (found["tools_used"], found["eval_scores"], found["extra"]) == ('["=x"]', '{"s":-1.5}', '{"n":1.50}')


def test_csv_has_its_names_without_rows() -> None:
    assert written(CsvForm()) == ",".join(MEMBERS).encode() + b"\r\n"


def test_ndjson_is_an_event_a_line() -> None:
    rows = [make_row(extra='{"a":"\\n"}'), make_row(cost_usd=None)]
    lines = written(NdjsonForm(), rows[:1], rows[1:]).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == [row["event_id"] for row in rows]
    assert json.loads(lines[0])["extra"] == {"a": "\n"}
    assert written(NdjsonForm()) == b""


def test_parquet_is_typed_as_in_the_store() -> None:
    rows = [make_row(cost_usd=10**18 - 1, tags={"k": "v"}), make_row(cost_usd=None)]
    found = pq.ParquetFile(io.BytesIO(written(ParquetForm(), rows[:1], rows[1:])))
    assert found.schema_arrow.equals(EXPORTED)
    read = found.read()
    assert read["cost_usd"].to_pylist() == [Decimal("999999.999999999999"), None]
    assert read["tags"].to_pylist() == [[("k", "v")], None]
    assert read.schema.names == list(MEMBERS)


def test_parquet_without_rows_can_be_read() -> None:
    assert len(pq.read_table(io.BytesIO(written(ParquetForm())))) == 0


@pytest.mark.slow
def test_parquet_row_groups_are_of_a_useful_size() -> None:
    rows = [make_row() for _ in range(GROUP // 4 + 1)]
    form = ParquetForm()
    pieces = [form.head(), *(form.rows(table(rows)) for _ in range(9)), form.tail()]
    assert sum(map(bool, pieces[1:-1])) == 2
    found = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert found.metadata.num_rows == 9 * len(rows)
    assert found.metadata.num_row_groups == 3
