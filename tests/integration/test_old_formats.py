"""Data directories of earlier versions: opened and gone on with exactly, or refused by name."""

import asyncio
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from processor.core.events import message
from processor.core.events.codec import PayloadFormat
from processor.log.address import LogAddress
from processor.log.embedded.log import FORMAT, Log
from processor.log.kafka.config import KafkaAccess
from processor.log.port import LogWriter
from processor.log.records import Append, TopicPartition
from processor.log.topics import DEAD_LETTERS, EVENTS
from tests.support import clients, format3, stored
from tests.support.events import make_event, to_ndjson
from tests.support.logs import put
from tests.support.messages import encode_v4
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import server, wait_until


async def test_a_directory_of_format_3_goes_on_exactly(tmp_path: Path) -> None:
    format3.make(tmp_path / "data")
    with server(tmp_path / "data", key=None) as started:
        started.key = format3.KEY
        for _ in range(2):
            async with clients.reader(started) as reader:
                users, total = await reader.users()
                quota = await reader.get("/v1/quota")
            assert {_sums(row) for row in users} == {(user, *sums) for user, sums in format3.USERS.items()}
            assert (total["requests"], str(total["cost_usd"]), quota["limit"]) == (19, "0.0612", 1000)
            assert await asyncio.to_thread(clients.verify, started) == []
            code, _ = await asyncio.to_thread(started.stop)
            assert code == 0
            await asyncio.to_thread(started.start)
        async with clients.reader(started) as reader:  # every id it had is still known, and new ones are counted
            before = await reader.get("/v1/quota")
            sent = [make_event(event_id=each, user_id="again") for each in format3.EVENT_IDS]
            answer = await reader.ingest([*sent, make_event(user_id="dora")])
            assert answer.status == 202
            after = await reader.get(f"/v1/users?after={answer.headers['x-ingest-position']}")
            assert after["total"]["requests"] == 20
            quota = await reader.get("/v1/quota")
            assert quota["duplicates"] - before["duplicates"] == len(format3.EVENT_IDS)
        assert await asyncio.to_thread(clients.verify, started) == []
    with apsw.Connection(str(tmp_path / "data" / "log.db")) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'format'").get == FORMAT
    db.close()


@pytest.mark.parametrize("log", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_a_backlog_of_version_4_is_counted_beside_version_5(
    log: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As a stop of the version before leaves it, and as APIs of both versions write it while they are upgraded."""
    data, settings = tmp_path / "data", dict[str, Any]()
    address = LogAddress(data)
    if log == "kafka":
        broker, prefix = request.getfixturevalue("kafka"), request.getfixturevalue("prefix")
        settings = {"broker": broker.url, "kafka_prefix": prefix}
        address = LogAddress(data, KafkaAccess(broker.bootstrap, prefix=prefix))
    sent = [make_event(user_id=f"u{number % 7}", cost_usd=number) for number in range(60)]
    copies = sent[::3]

    def write(target: LogWriter) -> None:
        """Messages of both versions in turns, and copies of an event in the other version than its own."""
        for number, event in enumerate([*sent, *copies]):
            is_old = (number < len(sent)) == (number % 2 == 0)
            payload: PayloadFormat = "json" if number % 4 < 2 else "protobuf"
            put(
                target,
                [event],
                payload=payload,
                arrival=time.time_ns() // 1000,
                encode=encode_v4 if is_old else message.encode,
            )

    if log == "embedded":
        with closing(Log(data, partitions=2)) as embedded:
            write(embedded)
    with server(data, partitions=2, event_store="on", **settings) as started:
        if log == "kafka":
            with closing(await asyncio.to_thread(address.open)) as kafka:
                await asyncio.to_thread(write, kafka)
        async with clients.reader(started) as reader:
            quota = await reader.caught_up(len(sent), len(copies))
            assert (quota["used"], quota["duplicates"], quota["conflicts"]) == (len(sent), len(copies), 0), (
                started.log()
            )
            body = to_ndjson([*sent[:10], make_event(user_id="new", cost_usd=1)])
            headers = {"Content-Type": "application/x-ndjson"}
            answer = await reader.request("POST", "/v1/ingest", data=body, headers=headers)
            after = await reader.get(f"/v1/users?after={answer.headers['x-ingest-position']}")
            assert after["total"]["requests"] == len(sent) + 1
            assert after["total"]["cost_usd"] == sum(range(60)) + 1
        segments = await asyncio.to_thread(stored.wait_stored, address)
        assert sum(each.rows for each in segments) == len(sent) + 1
        assert await asyncio.to_thread(clients.verify, started) == []
        exported = await asyncio.to_thread(started.cli, "export")
        lines = [json.loads(line) for line in exported.stdout.splitlines()]
        assert len(lines) == len(sent) + len(copies) + 11
        assert {line["event_id"] for line in lines} >= {event["event_id"] for event in sent}


def _sums(row: dict[str, object]) -> tuple[object, ...]:
    names = ("user_id", "requests", "errors", "input_tokens", "output_tokens")
    return (*(row[name] for name in names), str(row["cost_usd"]), row["unpriced"])


async def test_messages_of_another_version_stop_their_partition_until_the_right_program_comes(tmp_path: Path) -> None:
    """Events that a newer API took are for a newer worker to count: until it comes they wait, as no dead letters."""
    newer = msgspec.msgpack.encode([message.VERSION + 1, b"another form of blocks", b"", 7])
    with server(tmp_path / "data", max_lag=1, partitions=2) as started:
        async with clients.reader(started) as reader:
            log = Log(tmp_path / "data", create=False)
            log.append([Append(TopicPartition(EVENTS, 0), [(None, newer)])], 0)
            await asyncio.to_thread(wait_until, lambda: started.entries("partition.stopped") != [])
            [entry] = started.entries("partition.stopped")
            assert (entry["partition"], entry["offset"]) == (0, 0)
            assert f"version {message.VERSION + 1}" in entry["reason"]
            assert (await reader.ingest([make_event(user_id="u") for _ in range(40)])).status == 202
            async with asyncio.timeout(PROCESS_PATIENCE):
                while (await reader.request("GET", "/readyz")).status != 503:  # noqa: ASYNC110 - of the server
                    await asyncio.sleep(0.1)
                while not (counted := (await reader.get("/v1/users"))["total"]["requests"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert 0 < counted < 40, "the other partition goes on, this one does not"
        assert log.end(TopicPartition(DEAD_LETTERS, 0)) == 0
        # The message is taken away by hand, as if the right version had come: what waits behind it is counted.
        await asyncio.to_thread(started.kill_all)
        log.trim(TopicPartition(EVENTS, 0), 1)
        log.close()
        await asyncio.to_thread(started.start)
        async with clients.reader(started) as reader:
            await reader.caught_up(40)


def test_an_older_directory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    format3.make(tmp_path / "data")
    with apsw.Connection(str(tmp_path / "data" / "log.db")) as db:
        db.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    db.close()
    with server(tmp_path / "data", start=False) as started:
        started.launch()
        assert started.process.wait(PROCESS_PATIENCE) == 2
        assert "has format 2, this program opens formats from 3 on" in started.log()
