"""A worker that nobody supervises, on a cluster: where it would end with 70 it begins anew, in the same process."""

from pathlib import Path
from typing import Any

from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.writer import PartitionWriter
from processor.log.topics import GROUP
from tests.support import clients
from tests.support.clients import Tally, reader
from tests.support.server import server, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker


async def test_a_fenced_worker_begins_anew_by_itself(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    traffic = make_traffic(21, 2_000)
    log: dict[str, Any] = {"broker": kafka.url, "kafka_prefix": prefix}
    with (
        server(tmp_path / "worker", "worker", partitions=2, **log) as worker,
        server(tmp_path / "api", "api", **log) as api,
    ):
        pid = worker.process.pid
        PartitionWriter(KafkaAccess(kafka.bootstrap, prefix=prefix), f"{GROUP}.tables.0")  # as another owner would
        await clients.send(api, traffic, Tally())
        wait_until(lambda: worker.entries("worker.restarting"))
        assert worker.entries("worker.fenced")
        wait_until(lambda: len(worker.entries("worker.ready")) == 2)
        async with reader(api) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=True, details=5) == []
        assert worker.process.pid == pid
        assert [entry["code"] for entry in worker.entries("worker.restarting")] == [70]
        wait_until(lambda: len(worker.banner()) >= 2)  # which goes another way than the log
        assert len(worker.banner()) == 2, "a ready line for each life"
        code, _ = worker.stop()
        assert code == 0, worker.log()


def test_a_broker_that_is_away_ends_no_worker_that_was_there_before(tmp_path: Path) -> None:
    with server(tmp_path / "data", "worker", start=False, broker="kafka://127.0.0.1:9", worker_lives="1:0.1") as worker:
        worker.launch()
        wait_until(lambda: worker.entries("worker.restarting"))
        assert "no Kafka broker answers at 127.0.0.1:9" in worker.log()
        assert worker.is_running
