import json

import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from processor.users_topic import partitioner
from processor.users_topic.partitioner import key_of, partitions_of

users = st.none() | st.text(min_size=1, max_size=6)


@given(keys=st.lists(st.binary(max_size=40), max_size=12), count=st.integers(1, 1024), batch=st.integers(1, 5))
def test_keys_are_where_kafka_puts_them(keys: list[bytes], count: int, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioner, "_BATCH", batch)
        assert partitions_of(keys, count).tolist() == [(murmur2(key) & 0x7FFFFFFF) % count for key in keys]


@given(one=st.tuples(st.text(max_size=6), users), other=st.tuples(st.text(max_size=6), users))
def test_a_key_names_one_user_of_one_project(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    assert (key_of(*one) == key_of(*other)) is (one == other)
    assert json.loads(key_of(*one)) == list(one)


def test_the_users_of_a_log_never_move() -> None:
    keys = [b'["default","u1"]', b'["default",null]', '["default","日本"]'.encode()]
    assert [key_of("default", "u1"), key_of("default", None), key_of("default", "日本")] == keys
    assert partitions_of(keys, 6).tolist() == [3, 1, 1]
