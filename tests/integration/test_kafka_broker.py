"""The broker that the other Kafka tests stand on: it keeps what it acknowledged, and it goes when it should."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, UnknownTopicOrPartitionError

from tests.support.kafka import OwnBroker
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import is_alive, wait_until
from tools.kafka import Broker, answers
from tools.kafka_jars import ROOT
from tools.tied_process import NotStarted


async def make_topic(bootstrap: str) -> str:
    topic = f"topic-{uuid.uuid4()}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    return topic


async def produce(bootstrap: str, topic: str, *values: bytes) -> list[int]:
    """Acknowledged by all replicas; returns the offsets."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        return [(await producer.send_and_wait(topic, value)).offset for value in values]
    finally:
        await producer.stop()


async def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"group-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(PROCESS_PATIENCE):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_what_is_produced_is_consumed(kafka: Broker) -> None:
    topic = await make_topic(kafka.bootstrap)
    assert await produce(kafka.bootstrap, topic, b"one", b"two") == [0, 1]
    assert await consume(kafka.bootstrap, topic, 2) == [b"one", b"two"]


async def test_what_makes_the_archive_of_classes_goes_through_a_transaction(kafka: Broker) -> None:
    assert kafka.exercise()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        assert {"__transaction_state", "__consumer_offsets"} <= set(await admin.list_topics())
    finally:
        await admin.close()


async def test_a_topic_is_not_made_by_a_misspelling(kafka: Broker) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=1_000)
    await producer.start()
    try:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.partitions_for(f"misspelled-{uuid.uuid4()}")
    finally:
        await producer.stop()


async def test_records_outlive_kill_9_and_a_clean_stop_at_the_same_address(own_broker: OwnBroker) -> None:
    broker = own_broker().start()
    address = broker.bootstrap
    topic = await make_topic(address)
    await produce(address, topic, b"before the kill")
    broker.kill()
    assert not broker.is_running
    assert not answers(int(address.rpartition(":")[2]))

    broker.start()
    assert broker.bootstrap == address
    await produce(address, topic, b"after the kill")
    assert await consume(address, topic, 2) == [b"before the kill", b"after the kill"]
    assert broker.stop()
    assert (broker.directory / "data" / ".kafka_cleanshutdown").exists()

    broker.start()
    assert await consume(address, topic, 2) == [b"before the kill", b"after the kill"]


async def test_the_secure_listener_wants_the_password(secure_kafka: Broker) -> None:
    broker = secure_kafka
    assert broker.security is not None
    context = ssl.create_default_context(cafile=str(broker.security.authority))
    topic = await make_topic(broker.bootstrap)
    for offset, mechanism in enumerate(("SCRAM-SHA-256", "PLAIN")):
        for password, is_right in ((broker.security.password, True), ("a guess", False)):
            producer = AIOKafkaProducer(
                bootstrap_servers=broker.secure_bootstrap,
                security_protocol="SASL_SSL",
                sasl_mechanism=mechanism,
                sasl_plain_username=broker.security.user,
                sasl_plain_password=password,
                ssl_context=context,
            )
            try:
                if is_right:
                    await producer.start()
                    assert (await producer.send_and_wait(topic, b"with TLS")).offset == offset
                else:
                    with pytest.raises(KafkaConnectionError):
                        await producer.start()
            finally:
                await producer.stop()


async def test_a_taken_port_is_named(kafka: Broker, own_broker: OwnBroker) -> None:
    port = int(kafka.bootstrap.rpartition(":")[2])
    with pytest.raises(NotStarted, match=f"port {port} is taken"):
        own_broker(port).start()


def test_a_broker_that_cannot_start_tells_why(own_broker: OwnBroker) -> None:
    broker = own_broker(overrides={"num.io.threads": "none"})
    with pytest.raises(NotStarted, match=r"num\.io\.threads"):
        broker.start()
    assert not broker.is_running


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not end a child with its parent")
def test_it_ends_with_the_process_that_started_it(own_broker: OwnBroker, tmp_path: Path) -> None:
    program = """if True:
        import sys, threading, time
        from pathlib import Path
        from tools.kafka import Broker
        broker = Broker(Path(sys.argv[1]))
        starter = threading.Thread(target=broker.start) # a thread that is gone before the process is
        starter.start()
        starter.join()
        time.sleep(0.5)
        print(broker.pid if broker.is_running else 0, flush=True)
        time.sleep(100)
    """
    command = [sys.executable, "-c", program, str(tmp_path / "orphan")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert pid
    try:
        wait_until(lambda: not is_alive(pid))
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
