"""The whole product on a real broker: one command, several processes, owners that are fenced, failures in short."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from processor.log.errors import LogUnavailable
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.kafka.writer import LARGE, Fenced, PartitionWriter
from processor.log.port import scan
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, ROWS
from tests.chaos.kafka_rows import run_row
from tests.support import clients
from tests.support.clients import Tally, reader
from tests.support.server import run_cli, server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker

R0 = TopicPartition(ROWS, 0)
OwnBroker = Callable[..., Broker]


async def test_serve_on_kafka_is_exact_and_stays_so(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    log: dict[str, Any] = {"broker": kafka.url, "kafka_prefix": prefix}
    traffic = make_traffic(11, 6_000, conflicts=20)
    tally = Tally()
    with server(tmp_path / "data", partitions=3, **log) as started:
        assert f"  log   {kafka.url}" in started.banner()
        await clients.send(started, traffic, tally)
        assert tally.acknowledged == traffic.events
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=40) == []
        assert clients.verify(started) == []
        code, _ = started.stop()
        assert code == 0, started.log()
        assert not started.entries("child.killed")
        started.start()
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=40) == []
        users = started.cli("users", "--json", "--limit", "1")
        assert users.returncode == 0, users.stderr
    refused = run_cli(tmp_path / "data", "worker", partitions=4, **log)
    assert refused.returncode == 2
    assert "has 3 partition(s), not 4" in refused.stderr


def test_an_owner_is_fenced_by_the_next_and_a_flush_is_all_or_nothing(kafka: Broker, prefix: str) -> None:
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    log = KafkaLog(access, partitions=1)
    first = PartitionWriter(access, "owner")
    flush = [Append(R0, [(b"a", b"1"), (b"b", b"2")]), Append(TopicPartition(CLAIMS, 0), [(None, b"c")])]
    assert first.append(flush, 0) == [0, 0]
    second = PartitionWriter(access, "owner")
    with pytest.raises(Fenced):
        first.append([Append(R0, [(b"a", b"of the zombie")])], 0)
    assert second.append([Append(R0, [(b"a", b"3")])], 0)[0] > 1
    assert [record.value for record in scan(log, R0)] == [b"1", b"2", b"3"]
    log.close()


@pytest.mark.parametrize("behind", [0, 300_000])
def test_a_transaction_fails_by_records_whose_outcome_is_not_reported(kafka: Broker, prefix: str, behind: int) -> None:
    """Only of an append's first record the writer asks what became of it: the transaction fails by any, as soon as
    the broker has answered, which may be while records `behind` are still produced."""
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    log = KafkaLog(access, partitions=1)
    entry = ConfigEntry("max.message.bytes", "150000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, access.wire(ROWS), incremental_configs=[entry])
    admin = AdminClient(access.client())
    admin.incremental_alter_configs([resource])[resource].result(10)
    writer = PartitionWriter(access, "owner")
    one = [(b"a", b"1")]
    assert writer.append([Append(R0, one)], 0) == [0]
    # librdkafka's first batch is of 10,000 records; the second one is larger than what the topic takes.
    rng = random.Random(1)
    rows = [*one * 10_000, *((b"b", rng.randbytes(LARGE)) for _ in range(20)), *one * behind]
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="Message size too large"):
            writer.append([Append(R0, rows), Append(TopicPartition(CLAIMS, 0), [(None, b"c")])], 0)
    assert [record.value for record in scan(log, R0)] == [b"1"]
    assert list(scan(log, TopicPartition(CLAIMS, 0))) == []
    writer.append([Append(R0, one)], 0)  # and it is good for the next one at once
    with pytest.raises(LogUnavailable, match="a record is too large"):
        writer.append([Append(R0, [(b"b", rng.randbytes(200_000))])], 0)
    again = PartitionWriter(access, "owner")
    again.append([Append(R0, one)], 0)
    assert [record.value for record in scan(log, R0)] == [b"1", b"1", b"1"]
    log.close()


def test_a_broker_that_is_away_is_an_error_that_passes(own_broker: OwnBroker) -> None:
    broker = own_broker().start()
    log = KafkaLog(KafkaAccess(broker.bootstrap), partitions=1)
    events = [Append(R0, [(b"k", b"v")])]
    log.append(events, 0)
    broker.kill()
    with pytest.raises(LogUnavailable, match="took no write"):
        log.append(events, 0)
    with pytest.raises(LogUnavailable):
        log.probe(0)
    broker.start()

    def takes_a_write() -> bool:
        try:
            log.append(events, 0)
        except LogUnavailable:
            return False
        return True

    wait_until(takes_a_write)
    log.close()


async def test_killed_workers_lose_and_repeat_nothing(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    place = tmp_path / "cluster"
    report = await run_row(
        "kafka-worker", seed=seed, events=8_000, times=3, directory=place, shared=kafka, prefix=prefix
    )
    assert report.is_exact, f"seed {seed}: {report}"
