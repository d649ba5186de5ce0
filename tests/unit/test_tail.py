import json
from decimal import Decimal
from io import StringIO

import msgspec
import pytest
from rich.console import Console

from processor.core.clock import format_timestamp
from processor.core.tables.row_sums import RowSums
from processor.view.listing import UserSums
from server.cli.remote import Parser, StreamMessage
from server.cli.tail import Shown, print_rows
from server.http_api.user_stream import event
from server.live.frames import Frame
from tests.support.tables import NOON


def user(name: str | None, requests: int, cost: int) -> UserSums:
    return UserSums(name, RowSums(requests, 0, 10, 5, 0, cost, 0, NOON, NOON))


def message(snapshot: bool, *rows: UserSums) -> tuple[str, StreamMessage]:
    """As the server writes it and the command reads it."""
    (sent,) = Parser().feed(event(Frame(snapshot, rows, NOON, "t")))
    return sent.kind, msgspec.json.decode(sent.data, type=StreamMessage)


def drawn(shown: Shown) -> str:
    file = StringIO()
    Console(file=file, width=160).print(shown.table())
    return file.getvalue()


def test_the_table_shows_the_first_rows_and_the_sums_of_all() -> None:
    shown = Shown("cost_usd", 2)
    assert "waiting" in drawn(shown)
    shown.take(*message(True, user(None, 1, 1), user("b", 2, 10**31 + 1), user("a", 3, 5)))
    assert [row.user_id for row in shown.first()] == ["b", "a"]
    assert shown.first()[0].cost_usd == Decimal("10000000000000000000.000000000001")
    text = drawn(shown)
    assert "10000000000000000000.000000000007" in text
    assert "3 users" in text
    assert format_timestamp(NOON) in text
    assert "(none)" not in text
    shown.take(*message(False, user("b", 0, 0), user("a", 4, 5)))
    assert [(row.user_id, row.requests) for row in shown.first()] == [("a", 4), (None, 1)], "who has gone is not shown"
    assert "(none)" in drawn(shown)
    shown.take(*message(True, user("c", 1, 1)))
    assert [row.user_id for row in shown.first()] == ["c"]


def test_ties_are_in_the_order_of_the_ids() -> None:
    shown = Shown("last_seen", 10)
    shown.take(*message(True, *(user(name, 1, 1) for name in ("b", None, "a"))))
    assert [row.user_id for row in shown.first()] == [None, "a", "b"]


def test_lines_keep_all_digits(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_rows(*message(False, user("ä", 1, 1), user(None, 2, 10**31)))
    first, second = capfdbinary.readouterr().out.splitlines()
    assert b'"cost_usd":0.000000000001' in first
    assert b'"cost_usd":10000000000000000000,' in second
    assert json.loads(first)["event"] == "update"
    assert json.loads(first)["asOf"] == format_timestamp(NOON)
    assert (json.loads(first)["user"]["user_id"], json.loads(second)["user"]["requests"]) == ("ä", 2)
