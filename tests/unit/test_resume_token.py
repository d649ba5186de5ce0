from base64 import urlsafe_b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.live import resume_token
from server.live.resume_token import Bookmark

positions = st.dictionaries(st.integers(0, 1023), st.integers(0, 2**62), max_size=20)


@given(positions, st.none() | st.text(max_size=256))
def test_a_token_is_read_back(position: dict[int, int], place: str | None) -> None:
    token = resume_token.encode("fa4e", "b1", position, place)
    assert token.isascii()
    assert token.replace("-", "").replace("_", "").isalnum()
    found = resume_token.decode(token)
    assert (found.identity, found.binding, found.position, found.place) == ("fa4e", "b1", position, place)


def test_the_largest_token_fits_into_a_header() -> None:
    position = dict.fromkeys(range(1024), 2**32 - 1)
    assert len(resume_token.encode("f" * 16, "b" * 12, position)) < 8000


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.hex()))
def test_nothing_else_is_a_token(text: str) -> None:
    with pytest.raises(ValueError, match="not a token"):
        resume_token.decode(text)


@pytest.mark.parametrize("offsets", [[-2], [0] * 1025])
def test_a_forged_token_is_none(offsets: list[int]) -> None:
    raw = msgspec.msgpack.encode(Bookmark("fa4e", "b1", offsets))
    with pytest.raises(ValueError, match="not a token"):
        resume_token.decode(urlsafe_b64encode(raw).decode())
