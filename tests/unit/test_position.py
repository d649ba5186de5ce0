import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import position
from server.errors import Refused


@given(st.dictionaries(st.integers(0, 1023), st.integers(0, 2**40), max_size=20))
def test_a_token_is_read_back_and_is_safe_in_urls(offsets: dict[int, int]) -> None:
    token = position.encode("c0ffee", offsets)
    assert position.decode("c0ffee", token) == offsets
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._~")


@pytest.mark.parametrize(
    "token", ["", "x", "c0ffee_", "c0ffee_1", "beef_0-1", "c0ffee_0-1_", "c0ffee_-1-1", "c0ffee_0-1\n"]
)
def test_what_this_log_did_not_give_out_is_refused(token: str) -> None:
    with pytest.raises(Refused, match="not an ingest position"):
        position.decode("c0ffee", token)
