"""Rebuild and verify on the directories of real servers and on a real broker: exact, whatever was damaged."""

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient

from processor.log.embedded.log import Log
from processor.log.kafka.config import KafkaAccess
from processor.log.kafka.log import KafkaLog
from processor.log.records import Append, TopicPartition
from processor.log.topics import CLAIMS, DEAD_LETTERS, EVENTS, ROWS
from tests.support import clients
from tests.support.beginnings import delete_beginnings
from tests.support.clients import Tally, reader
from tests.support.damage import empty, flip
from tests.support.server import Server, environment, run_cli, server, wait_until
from tests.support.tables import NOON
from tests.support.traffic import Traffic, make_traffic
from tools.kafka import Broker

PARTITIONS = 3


async def fill(started: Server, traffic: Traffic) -> None:
    """Send all of it, in two parts with a dead letter of each partition between them, and wait until it is counted."""
    tally = Tally()
    half = len(traffic.http) // 2
    await clients.send_http(started, clients.http_batches(traffic.http[:half]), tally)
    log = Log(started.data_dir, create=False)
    for number in range(PARTITIONS):
        log.append([Append(TopicPartition(EVENTS, number), [(None, b"junk")])], time.time_ns() // 1000)
    log.close()
    await clients.send_http(started, clients.http_batches(traffic.http[half:]), tally)
    await clients.send_streams(started, clients.grpc_batches(traffic.grpc), tally)
    await clients.send_http(started, clients.http_batches(traffic.late), Tally())
    assert tally.acknowledged == traffic.events
    await check(started, traffic)


async def check(started: Server, traffic: Traffic) -> None:
    """What the server shows is the ground truth, and `verify` beside it finds nothing."""
    async with reader(started) as tables:
        assert await tables.differences(traffic.truth, exact_duplicates=True, details=20) == []
    verified = await asyncio.to_thread(started.cli, "verify", "--json")
    assert verified.returncode == 0, verified.stderr
    answer = json.loads(verified.stdout)
    assert (answer["differences"], answer["problems"]) == ([], [])


def rebuild(directory: Path, *arguments: str, says: str = "", **settings: Any) -> list[dict[str, Any]]:
    """Run it; nothing may be lost. On standard error are lines with `says` only."""
    done = run_cli(directory, "rebuild", "--json", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not says or says not in line] == []
    assert not says or says in done.stderr
    partitions: list[dict[str, Any]] = json.loads(done.stdout)["partitions"]
    assert [each["lost"] for each in partitions] == [[]] * len(partitions)
    return partitions


def is_bad(directory: Path) -> list[str]:
    """What is wrong, as `verify` says: the kinds of its problems, and `row` if rows differ."""
    done = run_cli(directory, "verify", "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    return sorted({each["kind"] for each in answer["problems"]} | ({"row"} if answer["differences"] else set()))


async def test_whatever_of_the_state_is_damaged_or_gone_is_made_anew(tmp_path: Path) -> None:
    traffic = make_traffic(51, 4_000, conflicts=20)
    with server(tmp_path / "data", partitions=PARTITIONS, start=False) as started:
        started.start()
        await fill(started, traffic)
        refused = started.cli("rebuild")
        assert refused.returncode == 2
        assert "stop it first" in refused.stderr
        started.stop()
        data = started.data_dir
        log = Log(data, create=False)

        # Flipped bits in rows of each partition.
        for number in range(PARTITIONS):
            rows = TopicPartition(ROWS, number)
            for record in log.read(rows, 0)[::3]:
                flip(log, rows, record.offset)
        assert "damaged_record" in is_bad(data)
        rebuild(data)
        started.start()
        await check(started, traffic)
        started.stop()

        # No rows at all in one partition, none of the claims in another, and no index.
        empty(log, ROWS, 0)
        empty(log, CLAIMS, 1)
        shutil.rmtree(data / "index")
        assert {"rows_missing", "claims_missing"} <= set(is_bad(data))
        done = rebuild(data)
        assert done[1]["claims"] > 1000
        assert not (data / "index").exists() or not list((data / "index").rglob("*.idx"))
        started.start()
        await check(started, traffic)
        # Ids that were counted are known again: everything once more changes nothing but the duplicates.
        await clients.send_http(started, clients.http_batches(traffic.http), Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=False, details=20) == []
        started.stop()
        log.close()


def run_for(directory: Path, seconds: float) -> None:
    """Run a rebuild and kill it after so many seconds, if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "rebuild"],
        env=environment(directory),
        cwd=directory.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.wait()


async def test_a_rebuild_that_is_killed_leaves_what_a_start_and_another_rebuild_can_use(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    traffic = make_traffic(52, 6_000)
    with server(tmp_path / "data", partitions=PARTITIONS, start=False) as started:
        started.start()
        await fill(started, traffic)
        started.stop()
        log = Log(started.data_dir, create=False)
        rows = TopicPartition(ROWS, 1)
        for record in log.read(rows, 0)[::5]:
            flip(log, rows, record.offset)
        empty(log, CLAIMS, 2)
        log.close()
        began = time.monotonic()
        whole = tmp_path / "whole"
        shutil.copytree(started.data_dir, whole)
        rebuild(whole)
        took = time.monotonic() - began
        for _ in range(6):
            await asyncio.to_thread(run_for, started.data_dir, rng.uniform(0.3 * took, took))
        rebuild(started.data_dir)
        assert not list(started.data_dir.glob("rebuild-*")), f"seed {seed}"
        started.start()
        await check(started, traffic)


def test_the_letter_of_a_damaged_event_is_never_sent_again(tmp_path: Path) -> None:
    with server(tmp_path / "data", start=False) as started:
        started.start()
        started.stop()
        log = Log(started.data_dir, create=False)
        log.append([Append(TopicPartition(EVENTS, 0), [(None, b"some bytes of an event")])], NOON)
        flip(log, TopicPartition(EVENTS, 0), 0)
        started.start()
        letters = TopicPartition(DEAD_LETTERS, 0)
        wait_until(lambda: log.end(letters) == 1)
        [letter] = json.loads(started.cli("dlq", "list", "--json").stdout)
        assert (letter["damaged"], letter["events"]) == (True, None)
        assert "is damaged" in letter["reason"]
        assert "damaged" in started.cli("dlq", "list").stdout
        one = started.cli("dlq", "retry", "--partition", "0", "--offset", "0")
        assert one.returncode == 1
        assert "cannot be sent again" in one.stdout
        every = json.loads(started.cli("dlq", "retry", "--all", "--again", "--json").stdout)
        assert every == {"retried": [], "retriedBefore": 0, "unreadable": 0, "damaged": 1}
        assert log.end(TopicPartition(EVENTS, 0)) == 1
        verified = started.cli("verify")
        assert verified.returncode == 0
        assert "it is a dead letter" in verified.stdout
        log.close()


# --- on a real broker -----------------------------------------------------------------------------------------------


async def test_rows_that_are_gone_from_a_broker_are_made_anew(kafka: Broker, prefix: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"broker": kafka.url, "kafka_prefix": prefix}
    access = KafkaAccess(kafka.bootstrap, prefix=prefix)
    rows = access.wire(ROWS)
    admin: Any = AdminClient({"bootstrap.servers": kafka.bootstrap})
    traffic = make_traffic(54, 3_000, conflicts=10)
    with server(tmp_path / "data", partitions=2, **settings, start=False) as started:
        started.start()
        # From another data directory: the group has members, which are waited for.
        trying = asyncio.create_task(asyncio.to_thread(run_cli, tmp_path / "other", "rebuild", **settings))
        await clients.send(started, traffic, Tally())
        await check(started, traffic)
        refused = started.cli("rebuild")
        assert refused.returncode == 2
        assert "stop it first" in refused.stderr
        elsewhere = await trying
        assert elsewhere.returncode == 2
        assert "workers run on the log" in elsewhere.stderr
        started.stop()

        # The topic is deleted.
        await asyncio.to_thread(lambda: admin.delete_topics([rows], operation_timeout=60)[rows].result(20))
        verified = run_cli(started.data_dir, "verify", "--json", **settings)
        assert verified.returncode == 1
        problems = json.loads(verified.stdout)["problems"]
        assert {(each["kind"], each["topic"]) for each in problems} == {("topic_missing", rows)}
        assert {each["text"].rpartition(" ")[2] for each in problems} == {rows}
        await asyncio.to_thread(rebuild, started.data_dir, says="topic.missing", **settings)
        started.start()
        await check(started, traffic)
        started.stop()

        # Its head is deleted.
        log = KafkaLog(access, create=False)
        ends = {number: log.end(TopicPartition(ROWS, number)) for number in range(2)}
        heads = [Assigned(rows, number, end - end // 3) for number, end in ends.items()]
        log.close()
        await asyncio.to_thread(delete_beginnings, admin, heads, is_compacted=True)
        assert run_cli(started.data_dir, "verify", **settings).returncode == 1
        done = await asyncio.to_thread(rebuild, started.data_dir, **settings)
        assert sum(each["rows"] for each in done) > 100
        started.start()
        await check(started, traffic)
