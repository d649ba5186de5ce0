"""The second stage without Kafka: whoever owns a partition of the topic, in the end it says what was sent."""

import json
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.core.tables import table_rows
from processor.core.tables.table_rows import Sums
from processor.users_topic import merged_rows as feeds
from processor.users_topic.merged_rows import MergedRows
from processor.users_topic.partitioner import key_of, partitions_of
from tests.support.tables import NOON, Usage, Worker

PARTITIONS = 3
Topic = list[dict[bytes, bytes]]
"""Partition -> what compaction would leave of it."""


def write(topic: Topic, partition: int, rows: list[feeds.Row]) -> None:
    for key, value in rows:
        assert partitions_of([key], len(topic)).tolist() == [partition]
        if value is None:
            topic[partition].pop(key, None)
        else:
            topic[partition][key] = value


def publish(topic: Topic, feed: MergedRows, owned: set[int]) -> int:
    """Returns how many rows were published."""
    taken = feed.drain(owned)
    for partition, rows in taken.items():
        assert partition in owned
        write(topic, partition, rows)
    return sum(map(len, taken.values()))


def said(topic: Topic) -> dict[tuple[str, str | None], dict[str, Any]]:
    return {
        tuple(json.loads(key)): json.loads(value, parse_float=Decimal)
        for partition in topic
        for key, value in partition.items()
    }


def expected(sent: list[tuple[str, Usage]]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What the topic must say, from the events themselves."""
    by_user: dict[tuple[str, str | None], list[Usage]] = defaultdict(list)
    for project, usage in sent:
        by_user[project, usage.user].append(usage)
    return {
        key: {
            "project_id": key[0],
            "user_id": key[1],
            "requests": len(own),
            "errors": sum(usage.error for usage in own),
            "input_tokens": sum(usage.input_tokens for usage in own),
            "output_tokens": sum(usage.output_tokens for usage in own),
            "cached_tokens": sum(usage.cached_tokens for usage in own),
            "cost_usd": Decimal(sum(usage.cost for usage in own)) / 10**12,
            "unpriced": sum(usage.unpriced for usage in own),
            "first_seen": seen(min(usage.at for usage in own)),
            "last_seen": seen(max(usage.at for usage in own)),
        }
        for key, own in by_user.items()
    }


def seen(at: int) -> str:
    assert at - NOON < 1_000_000
    assert (at - NOON) % 1000 == 0
    return f"2026-04-20T12:00:00.{(at - NOON) // 1000:03d}Z"


usages = st.builds(
    lambda user, model, tokens, cost, at, error: Usage(
        0, user, at=NOON + at * 1000, model=model, input_tokens=tokens, cost=cost, error=error
    ),
    st.sampled_from([None, "u1", "u2", "ü", "日本"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([0, 7, 2**53 - 1]),
    st.integers(0, 10**18),
    st.integers(0, 999),
    st.booleans(),
)
owners = st.lists(st.sampled_from([0, 1]), min_size=PARTITIONS, max_size=PARTITIONS)
steps = st.lists(
    st.tuples(st.just("send"), st.tuples(st.sampled_from(["p1", "p2"]), usages))
    | st.tuples(st.just("read"), st.tuples(st.integers(0, 1), st.integers(0, PARTITIONS - 1), st.integers(0, 3)))
    | st.tuples(st.just("publish"), st.integers(0, 1))
    | st.tuples(st.just("own"), owners),
    max_size=40,
)


@given(steps=steps, chunk=st.sampled_from([2, 2048]))
@settings(deadline=None)
def test_every_owner_leaves_the_truth_behind(steps: list[tuple[str, Any]], chunk: int) -> None:
    """Two workers read the changelog each at its own pace and sometimes again; partitions go from one to the other."""
    worker, topic = Worker(PARTITIONS), [{} for _ in range(PARTITIONS)]  # type: ignore[var-annotated]
    readers = [MergedRows(PARTITIONS), MergedRows(PARTITIONS)]
    positions = [[0] * PARTITIONS, [0] * PARTITIONS]
    owner = [0] * PARTITIONS
    sent: list[tuple[str, Usage]] = []

    def read(reader: int, partition: int, again: int) -> None:
        start = max(0, positions[reader][partition] - again)
        readers[reader].apply(partition, worker.changelog[partition][start:])
        positions[reader][partition] = len(worker.changelog[partition])

    def catch_up(reader: int) -> None:
        for partition in range(PARTITIONS):
            read(reader, partition, 0)

    def take_over(reader: int, partition: int) -> None:
        catch_up(reader)
        there = dict(topic[partition])
        for rows in readers[reader].everything(partition):
            write(topic, partition, [row for row in rows if there.get(row[0]) != row[1]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "CHUNK", chunk)
        for step, given_ in steps:
            if step == "send":
                project, usage = given_
                sent.append((project, usage._replace(id=len(sent))))
                worker.send([sent[-1][1]], project=project)
                worker.work_all()
            elif step == "read":
                read(*given_)
            elif step == "publish":
                publish(topic, readers[given_], {number for number in range(PARTITIONS) if owner[number] == given_})
            else:
                for partition, (old, new) in enumerate(zip(owner, given_, strict=True)):
                    if old != new:
                        owner[partition] = new
                        take_over(new, partition)
        for reader in (0, 1):
            catch_up(reader)
            publish(topic, readers[reader], {number for number in range(PARTITIONS) if owner[number] == reader})
    assert said(topic) == expected(sent)


def filled() -> tuple[Worker, MergedRows]:
    worker, feed = Worker(2), MergedRows(2)
    worker.send([Usage(number, f"u{number % 5}") for number in range(40)])
    worker.work_all()
    for partition, records in enumerate(worker.changelog):
        feed.apply(partition, records)
    return worker, feed


def test_only_what_changed_is_published() -> None:
    worker, feed = filled()
    topic: Topic = [{}, {}]
    assert len(feed) == 5
    assert publish(topic, feed, {0, 1}) == 5
    assert publish(topic, feed, {0, 1}) == 0
    worker.send([Usage(100, "u3")])
    for partition, records in enumerate(worker.work_all()):
        feed.apply(partition, records)
    assert publish(topic, feed, {0, 1}) == 1
    assert said(topic)["default", "u3"]["requests"] == 9


def test_a_partition_of_somebody_else_is_left_to_him() -> None:
    _, feed = filled()
    topic: Topic = [{}, {}]
    publish(topic, feed, {1})
    assert not topic[0]
    assert publish(topic, feed, {0, 1}) == 0  # what changed before partition 0 came is its take-over's to publish
    assert {key for rows in feed.everything(0) for key, _ in rows} == {
        key for key in (key_of("default", f"u{number}") for number in range(5)) if partitions_of([key], 2)[0] == 0
    }


@pytest.mark.parametrize("rewrite", [lambda key, value: None, lambda key, value: table_rows.encode_value(Sums(key))])
def test_a_user_without_rows_is_gone_and_one_without_requests_is_not(
    rewrite: Callable[[bytes, bytes | None], bytes | None],
) -> None:
    worker, feed = filled()
    feed.drain({0, 1})
    for partition, records in enumerate(worker.changelog):
        gone = [(key, rewrite(key, value)) for key, value in records if b'"u2"' in key]
        assert gone
        feed.apply(partition, gone)
    ((key, value),) = (row for rows in feed.drain({0, 1}).values() for row in rows)
    assert key == key_of("default", "u2")
    if rewrite(key, b"") is None:
        assert value is None
    else:
        assert value is not None
        assert (json.loads(value)["requests"], json.loads(value)["last_seen"]) == (0, None)


def test_records_of_other_kinds_are_passed_over_and_rows_of_other_formats_are_not() -> None:
    feed = MergedRows(1)
    feed.apply(0, [(b'[0,"novelty",1]', b"{}"), (b'[0,"progress"]', None)])
    assert feed.drain({0}) == {}
    with pytest.raises(ValueError, match="not a row of the changelog"):
        feed.apply(0, [(b'[0,"user","p","u",1,"openai","m","e"]', b"\0of another length")])
    assert feed.drain({0}) == {}
    assert len(feed) == 0
