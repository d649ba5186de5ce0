"""Several products on one Kafka, and what its administrator may have changed."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Final

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewPartitions

from processor.log.errors import LogError
from processor.log.kafka import topics
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.kafka.writer import Appender
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, DIRECTORY, EVENTS, ROWS, USERS
from tests.support import clients, users_topic
from tests.support.clients import Answer, Tally, reader
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import run_cli, server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker

HOME: Final = TopicPartition(DIRECTORY, 0)
NEEDED_BYTES: Final = str(32 << 20)


def admin(broker: Broker) -> AdminClient:
    return AdminClient({"bootstrap.servers": broker.bootstrap})


def alter(broker: Broker, topic: str, **settings: str) -> None:
    """Change settings of a topic, dots written as underscores; `topic` by its name on the cluster."""
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    asked = admin(broker)
    asked.incremental_alter_configs([resource])[resource].result(10)


def add_partitions(broker: Broker, counts: dict[str, int]) -> None:
    """Have so many partitions in all; topics by their names on the cluster."""
    asked = admin(broker)
    for future in asked.create_partitions([NewPartitions(*each) for each in counts.items()]).values():
        future.result(10)


async def test_two_products_on_one_kafka_share_nothing(kafka: Broker, tmp_path: Path, prefix: str) -> None:
    prefixes = (prefix, f"another-{prefix}")
    traffics = [make_traffic(seed, 1_500) for seed in (51, 52)]
    first, second = (
        server(tmp_path / name, broker=kafka.url, kafka_prefix=name, partitions=partitions)
        for name, partitions in zip(prefixes, (1, 2), strict=True)
    )
    with first as one, second as two:
        for started, traffic, name in zip((one, two), traffics, prefixes, strict=True):
            await clients.send(started, traffic, Tally())
            async with reader(started) as tables:
                assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
                assert await users_topic.differences(kafka.bootstrap, tables, topic=f"{name}users") == []
            assert clients.verify(started) == []
        asked = admin(kafka)
        topics = asked.list_topics(timeout=PROCESS_PATIENCE).topics
        groups = {group.group_id for group in asked.list_consumer_groups().result(10).valid}
        assert [len(topics[f"{name}events"].partitions) for name in prefixes] == [1, 2]
        assert {f"{name}workers" for name in prefixes} <= groups
        assert [started.stop()[0] for started in (one, two)] == [0, 0]

    # a directory of one of them is not for the other, nor for an embedded log; nor is that of one for Kafka
    for role in ("serve", "worker", "api"):
        refused = run_cli(tmp_path / prefixes[0], role, broker=kafka.url, kafka_prefix=prefixes[1], http_bind="[::1]:0")
        assert refused.returncode == 2, refused.stderr
        assert "belongs to the log" in refused.stderr
        assert "another SPENDSTREAM_DATA_DIR, or the SPENDSTREAM_BROKER and SPENDSTREAM_KAFKA_PREFIX" in refused.stderr
        assert "Traceback" not in refused.stderr
    refused = run_cli(tmp_path / prefixes[0], "serve")
    assert refused.returncode == 2
    assert "belongs to the log" in refused.stderr
    assert not (tmp_path / prefixes[0] / "log.db").exists()
    with server(tmp_path / "embedded") as started:
        assert started.stop()[0] == 0
    refused = run_cli(tmp_path / "embedded", "serve", broker=kafka.url, kafka_prefix=prefixes[0])
    assert refused.returncode == 2
    assert "holds an embedded log (log.db)" in refused.stderr

    # and a name that no product has is said
    missing = run_cli(tmp_path / "no", "verify", broker=kafka.url, kafka_prefix="nobody.")
    assert missing.returncode == 2
    assert "there is no log at" in missing.stderr
    assert "begin with nobody." in missing.stderr


async def test_partitions_that_were_added_are_not_used(kafka: Broker, tmp_path: Path, prefix: str) -> None:
    traffic = make_traffic(53, 2_000)
    with server(tmp_path / "data", broker=kafka.url, kafka_prefix=prefix, partitions=2) as started:
        await clients.send(started, traffic, Tally())
        wire = KafkaAccess("", prefix=prefix).wire
        add_partitions(kafka, {wire(EVENTS): 5, wire(ROWS): 3, wire(CLAIMS): 5, wire(DIRECTORY): 2, wire(USERS): 4})
        # while it runs, and started anew, the same events are the same events
        for _ in range(2):
            await clients.send(started, traffic, Tally())
            async with reader(started) as tables:
                assert await tables.differences(traffic.truth, exact_duplicates=False, details=5) == []
            assert clients.verify(started) == []
            exported = started.cli("export")
            assert exported.returncode == 0, exported.stderr
            assert len({json.loads(line)["event_id"] for line in exported.stdout.splitlines()}) >= traffic.truth.unique
            assert started.stop()[0] == 0
            started.start()
            wait_until(lambda: started.entries("partitions.loaded"))
            assert started.entries("partitions.assigned")[-1]["partitions"] == [0, 1]
        refused = run_cli(tmp_path / "other", "worker", broker=kafka.url, kafka_prefix=prefix, partitions=5)
        assert refused.returncode == 2
        assert "has 2 partition(s), not 5" in refused.stderr
    log = KafkaLog(KafkaAccess(kafka.bootstrap, prefix=prefix))
    assert (log.partitions, log.topics()[EVENTS], log.topics()[ROWS]) == (2, 2, 2)
    log.close()


def test_a_log_of_before_the_number_was_kept_gets_it_at_its_next_start(
    kafka: Broker, tmp_path: Path, prefix: str
) -> None:
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    topics.create(access, topics.layout(access), 2)
    old = {"format": 1, "salt": "ab" * 32, "identity": "fa4e0001"}
    Appender(access).append([Append(HOME, [(b"meta/0001", json.dumps(old).encode())])], 0)
    for _ in range(2):
        log = KafkaLog(access)
        assert (log.partitions, log.identity, log.salt) == (2, "fa4e0001", bytes.fromhex("ab" * 32))
        found = [record.value or b"" for record in scan(log, HOME) if (record.key or b"").startswith(b"meta/")]
        log.close()
        assert [json.loads(value) for value in found] == [old, {**old, "partitions": 2}], "it is written once"
    add_partitions(kafka, {access.wire(EVENTS): 4})
    verified = run_cli(tmp_path / "data", "verify", "--json", broker=kafka.url, kafka_prefix=prefix)
    assert verified.returncode == 0, verified.stderr
    assert len(json.loads(verified.stdout)["partitions"]) == 2


def test_settings_that_lose_or_repeat_events_are_refused_by_name(kafka: Broker, tmp_path: Path, prefix: str) -> None:
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    KafkaLog(access, partitions=1).close()
    wrong = {
        CLAIMS: ("cleanup.policy", "compact", "delete"),
        ROWS: ("cleanup.policy", "compact,delete", "compact"),
        DEAD_LETTERS: ("retention.ms", "86400000", "-1"),
        EVENTS: ("max.message.bytes", "1048588", NEEDED_BYTES),
    }
    for topic, (name, value, _) in wrong.items():
        alter(kafka, access.wire(topic), **{name.replace(".", "_"): value})
    with pytest.raises(LogError) as refused:
        KafkaLog(access)
    for topic, (name, value, needed) in wrong.items():
        wire = access.wire(topic)
        assert f"{wire}: {name} is {value}, and must be {needed}: kafka-configs.sh" in str(refused.value)
        assert f"--entity-name {wire} --add-config {name}={needed}" in str(refused.value)
    for role in ("worker", "api", "serve"):
        done = run_cli(tmp_path / "data", role, broker=kafka.url, kafka_prefix=prefix)
        assert done.returncode == 2
        assert f"{prefix}claims: cleanup.policy is compact" in done.stderr
    for topic, (name, _, needed) in wrong.items():
        alter(kafka, access.wire(topic), **{name.replace(".", "_"): needed})

    alter(kafka, access.wire(EVENTS), retention_ms="86400000")  # of events that are counted: `verify` misses them
    with server(tmp_path / "data", "worker", broker=kafka.url, kafka_prefix=prefix) as started:
        (warned,) = started.entries("topic.setting")
        assert warned["level"] == "warning"
        assert f"{prefix}events: retention.ms is 86400000, and must be -1: kafka-configs.sh" in warned["problem"]


async def test_a_topic_that_takes_no_large_message_is_unready_until_it_does(
    kafka: Broker, tmp_path: Path, prefix: str
) -> None:
    large = to_ndjson([make_event(note=secrets.token_urlsafe(45_000)) for _ in range(40)])
    small = to_ndjson([make_event()])
    with server(tmp_path / "data", broker=kafka.url, kafka_prefix=prefix, partitions=1) as started:
        alter(kafka, f"{prefix}events", max_message_bytes="1048588")
        async with reader(started) as tables:
            refused = await tables.ingest(large)
            assert refused.status == 503
            assert f"too large for the topic {prefix}events" in refused.json["error"]
            said: list[Answer] = []
            for _ in range(25):  # five tries to find out whether the log takes events again
                said.append(await tables.request("GET", "/readyz"))
                await asyncio.sleep(0.2)
            assert {answer.status for answer in said} == {503}
            assert f"{prefix}events: max.message.bytes is 1048588, and must be {NEEDED_BYTES}" in str(said[-1].json)
            alter(kafka, f"{prefix}events", max_message_bytes=NEEDED_BYTES)
            for body, count in ((large, 40), (small, 1)):
                answer = await tables.ingest(body, patience=PROCESS_PATIENCE)
                assert (answer.status, answer.json["accepted"]) == (202, count)
            assert (await tables.caught_up(41))["used"] == 41
            assert (await tables.request("GET", "/readyz")).status == 200
