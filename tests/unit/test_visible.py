"""Text from outside as it is printed."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.visible import HIDDEN, visible, visible_json, visible_lines

ANY = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice [admin]", "alice [admin]"),
        ("zoë 日本 😀 \u0646\u200c\u0645 👨\u200d👩", "zoë 日本 😀 \u0646\u200c\u0645 👨\u200d👩"),
        ("\x1b]52;c;eA==\x07", r"\x1b]52;c;eA==\x07"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("a\tb\nc\r", r"a\tb\nc\r"),
        ("\u202eabc\u2066\u200f\u2028", r"\u202eabc\u2066\u200f\u2028"),
        ("\ud83d\u200b\ufeff\u00ad", r"\ud83d\u200b\ufeff\xad"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_becomes_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_every_control_character_and_lone_surrogate_is_hidden() -> None:
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(chr(code)) in {
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        }:
            assert HIDDEN.fullmatch(chr(code)), hex(code)
        elif unicodedata.category(chr(code))[0] in "LMNPS":
            assert not HIDDEN.fullmatch(chr(code)), hex(code)


@given(ANY)
def test_escapes_are_those_of_python_and_nothing_is_lost(text: str) -> None:
    escaped = visible(text.replace("\\", "\\\\"))
    assert HIDDEN.search(escaped) is None
    assert HIDDEN.sub(lambda found: found[0], text) == text
    assert escaped.encode("ascii", "backslashreplace").decode("unicode_escape") == text
    assert visible(escaped) == escaped


@given(st.recursive(ANY | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_json_keeps_its_value(value: object) -> None:
    for indent in (None, 2):
        for ascii_only in (False, True):
            text = json.dumps(value, ensure_ascii=False, indent=indent)
            shown = visible_json(text, ascii_only=ascii_only)
            assert json.loads(shown) == json.loads(text)
            assert HIDDEN.search(shown.replace("\n", "")) is None
            assert shown.isascii() or not ascii_only


def test_lines_stay_lines() -> None:
    assert visible_lines("Traceback:\n  a\x1b[2J\n\u2028") == "Traceback:\n  a\\x1b[2J\n\\u2028"
