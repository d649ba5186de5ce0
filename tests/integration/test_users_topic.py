"""The topic `spendstream.users` says what `GET /v1/users` says, to the last digit, whoever was killed meanwhile."""

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.kafka.writer import Fenced, PartitionWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import GROUP, USERS
from processor.users_topic.partitioner import key_of, partitions_of
from tests.chaos.cluster import cluster
from tests.support import clients, users_topic
from tests.support.clients import Pace, Tally, reader
from tests.support.server import server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker


async def test_it_equals_the_list_after_kills_and_a_rebalance(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    traffic = make_traffic(seed, 10_000, conflicts=20)
    pace = Pace(traffic.events, rate=500, reserve=traffic.events // 4)
    tally = Tally()
    async with cluster(tmp_path / "cluster", random.Random(seed), shared=kafka, prefix=prefix) as made:
        sending = asyncio.create_task(clients.send(made, traffic, tally, pace))
        await asyncio.sleep(2)
        await asyncio.to_thread(made.workers[0].kill_all)
        await asyncio.sleep(2)
        await asyncio.to_thread(made.another, "worker")
        await asyncio.sleep(3)
        await asyncio.to_thread(made.workers[1].kill_all)
        assert not sending.done(), "too little traffic"
        pace.let_go()
        await sending
        assert tally.acknowledged == traffic.events
        async with reader(made.apis[0]) as tables:
            tables.page = 1000
            assert await tables.differences(traffic.truth, exact_duplicates=False, details=20) == [], f"seed {seed}"
            found = await users_topic.differences(kafka.bootstrap, tables, topic=f"{prefix}users")
            assert found == [], f"seed {seed}\n{made.tail()}"
        assert any(worker.entries("users.taken_over") for worker in made.workers)
        made.held.update(made.everyone)
        assert await asyncio.to_thread(made.stop) == []


async def test_a_worker_that_stood_still_cannot_put_an_old_row_back(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    traffic = make_traffic(12, 9_000)
    pace = Pace(traffic.events, rate=200, reserve=traffic.events // 4)
    async with cluster(tmp_path / "cluster", random.Random(12), shared=kafka, prefix=prefix) as made:
        zombie, other = made.workers
        sending = asyncio.create_task(clients.send(made, traffic, Tally(), pace))
        await asyncio.sleep(2)
        before = len(other.entries("users.taken_over"))
        made.held.add(zombie)
        zombie.signal("worker", signal.SIGSTOP)
        try:
            await asyncio.to_thread(wait_until, lambda: len(other.entries("users.taken_over")) > before)
            assert made.restarts == 0, f"the worker that took over ended meanwhile\n{made.tail()}"
            assert not sending.done(), "too little traffic"
        finally:
            zombie.signal("worker", signal.SIGCONT)
            made.held.discard(zombie)
        pace.let_go()
        await sending
        async with reader(made.apis[0]) as tables:
            tables.page = 1000
            assert await tables.differences(traffic.truth, exact_duplicates=False, details=5) == []
            assert await users_topic.differences(kafka.bootstrap, tables, topic=f"{prefix}users") == [], made.tail()


async def test_a_fenced_owner_and_what_it_left_behind_do_not_win(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    log: dict[str, Any] = {"broker": kafka.url, "kafka_prefix": prefix}
    topic = f"{prefix}users"
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    KafkaLog(access, partitions=2).close()
    keys = [key_of("default", "user-1"), key_of("default", None), key_of("default", "never sent")]
    homes = partitions_of(keys, 2).tolist()
    old = [PartitionWriter(access, f"{GROUP}.users.{number}") for number in range(2)]

    def write_old_rows() -> None:
        for key, home in zip(keys, homes, strict=True):
            project, user = json.loads(key)
            row = {"project_id": project, "user_id": user, "requests": 0, "cost_usd": 0}
            old[home].append([Append(TopicPartition(USERS, home), [(key, json.dumps(row).encode())])], 0)

    write_old_rows()
    traffic = make_traffic(13, 2_000)
    with server(tmp_path / "data", **log) as started:
        wait_until(lambda: len(started.entries("users.taken_over")) == 2)
        await clients.send(started, traffic, Tally())
        for home in set(homes):
            with pytest.raises(Fenced):
                old[home].append([Append(TopicPartition(USERS, home), [(keys[homes.index(home)], b"{}")])], 0)
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
            assert await users_topic.differences(kafka.bootstrap, tables, topic=topic) == []
        assert ("default", "never sent") not in users_topic.consume(kafka.bootstrap, topic).rows
        code, _ = started.stop()
        assert code == 0, started.log()
        assert not started.entries("child.killed")
    with server(tmp_path / "again", **log) as started:  # it publishes nothing that is there already
        wait_until(lambda: len(started.entries("users.taken_over")) == 2)
        taken = started.entries("users.taken_over")
        assert sum(entry["rows"] for entry in taken) == len(traffic.truth.users)
        assert [entry["different"] for entry in taken] == [0, 0]


async def test_what_was_acknowledged_before_a_clean_stop_is_in_the_topic(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    traffic = make_traffic(14, 1_500)
    with server(tmp_path / "data", broker=kafka.url, kafka_prefix=prefix, partitions=2) as started:
        wait_until(lambda: len(started.entries("users.taken_over")) == 2)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            await tables.caught_up(traffic.truth.unique)
            listed = {row["user_id"]: row for row in (await tables.users())[0]}
            code, _ = started.stop()
            assert code == 0
    said = users_topic.consume(kafka.bootstrap, f"{prefix}users")
    assert {user: {**row, "project_id": "default"} for user, row in listed.items()} == {
        user: row for (_, user), row in said.rows.items()
    }


async def test_a_change_in_some_partitions_is_published_at_once(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    """Not by taking all partitions over again after an error."""
    traffic = make_traffic(15, 2)
    with server(tmp_path / "data", broker=kafka.url, kafka_prefix=prefix, partitions=6) as started:
        wait_until(lambda: len(started.entries("users.taken_over")) == 6)
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=1) == []
            assert await users_topic.differences(kafka.bootstrap, tables, topic=f"{prefix}users") == []
        assert started.entries("users.failed") == []
        assert len(started.entries("users.taken_over")) == 6


def test_the_topic_is_made_to_last(kafka: Broker, prefix: str) -> None:
    KafkaLog(KafkaAccess(kafka.bootstrap, prefix=prefix), partitions=3).close()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    name = f"{prefix}users"
    assert len(admin.list_topics(name, 10).topics[name].partitions) == 3
    (future,) = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name)]).values()
    settings = {name: entry.value for name, entry in future.result(10).items()}
    wanted = {"cleanup.policy": "compact", "min.insync.replicas": "1", "compression.type": "lz4", "retention.ms": "-1"}
    assert {name: settings[name] for name in wanted} == wanted
