"""Tables of the command line: nothing is cut, whatever is in them and however narrow the terminal is."""

from io import BytesIO, StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from processor.core.visible import HIDDEN, visible
from server.cli.sheet import Column, Sheet
from tests.support.terminal import plain, squeezed

CELLS = st.text(st.characters(exclude_characters="│\u00a0", exclude_categories=("M", "Cs")), max_size=60)
COLUMNS = (Column("user"), Column("requests", "number"), Column("cost USD", "number"), Column("seen", "whole"))


def drawn(sheet: Sheet, width: int) -> str:
    file = StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False, force_terminal=True)
    console.print(sheet)
    return file.getvalue()


@given(st.lists(st.tuples(CELLS, st.integers(0, 2**60)), min_size=1, max_size=4), st.integers(4, 150))
def test_nothing_is_cut_at_any_width(rows: list[tuple[str, int]], width: int) -> None:
    sheet = Sheet(*COLUMNS)
    for name, count in rows:
        sheet.add(name, count, f"{count}.000000000001", None)
    sheet.set_sums("all", 1, "2.5", "")
    sheet.notes.append(rows[0][0])
    text = drawn(sheet, width)
    assert max(cell_len(line) for line in plain_lines(text)) <= width
    for name, count in rows:
        for part in (name, f"{count:,}", f"{count}.000000000001"):
            assert "".join(visible(part).split()) in squeezed(text)


def plain_lines(text: str) -> list[str]:
    shown = plain(text)
    assert HIDDEN.search(shown.replace("\n", "")) is None
    return shown.split("\n")


def test_numbers_are_never_broken_while_there_is_room_for_them() -> None:
    sheet = Sheet(*COLUMNS)
    sheet.add("auth0|5f7c8ec7c33c6c004bbafe82", 1_234_567, "1234.567890123456", "2026-11-28T06:02:45.000Z")
    for width in range(28, 150):
        text = drawn(sheet, width)
        assert "1,234,567" in text
        assert "1234.567890123456" in text
        assert "2026-11-28T06:02:45.000Z" in text or width < 32


def test_a_narrow_terminal_gets_lines_with_titles() -> None:
    sheet = Sheet(Column("user"), Column("requests", "number"), Column("cost USD", "number"), nothing="(none)")
    sheet.add("[/]\x1b[2J", 1234, "0.5")
    sheet.add(None, 1, "1234.567890123456")
    assert plain_lines(drawn(sheet, 36)) == [
        r"[/]\x1b[2J",
        "  requests 1,234  cost USD 0.5",
        "(none)",
        "  requests 1",
        "  cost USD 1234.567890123456",
        "",
    ]


def test_lone_surrogates_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = Sheet(Column("user"))
    sheet.add("\ud800\\")
    sheet.print()
    assert capsys.readouterr().out == "user\n\\ud800\\\\\n"
    assert r"\ud800" in drawn(sheet, 80)


def test_what_the_encoding_lacks_is_an_escape() -> None:
    sheet = Sheet(Column("user"))
    sheet.add("zoë 日本")
    file = TextIOWrapper(BytesIO(), "latin-1")
    Console(file=file, width=80).print(sheet)
    file.flush()
    file.seek(0)
    shown = file.read()
    assert "zoë \\u65e5\\u672c |" in shown.replace("  ", " ")
    assert len({len(line) for line in shown.splitlines()}) == 1, "the frame fits what is shown"
