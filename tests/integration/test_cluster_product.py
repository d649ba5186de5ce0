"""`make cluster` with the product itself: events through both APIs, the same tables from both."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import clients, users_topic
from tests.support.clients import Tally, grpc_batches, http_batches, reader, send_http, send_streams
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import run_cli, wait_until
from tests.support.traffic import make_traffic
from tools.kafka import Broker
from tools.kafka_jars import ROOT

OwnBroker = Callable[..., Broker]


def _start(directory: Path) -> tuple["subprocess.Popen[bytes]", list[str], list[str]]:
    """The program, what it prints and what it logs."""
    options = ["--dir", str(directory), "--broker-port", "0", "--http-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cluster", *options],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("SPENDSTREAM_D")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    heard: tuple[list[str], list[str]] = ([], [])

    def hear(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(line.decode().rstrip("\n") for line in stream)

    for stream, lines in zip((process.stdout, process.stderr), heard, strict=True):
        threading.Thread(target=hear, args=(stream, lines), daemon=True).start()
    return process, *heard


@pytest.mark.kafka
async def test_both_apis_take_events_and_give_the_same_tables(own_broker: OwnBroker, tmp_path: Path) -> None:
    process, out, log = _start(tmp_path / "cluster")
    try:
        wait_until(lambda: process.poll() is not None or any(line.startswith("{") for line in out))
        assert process.poll() is None, "\n".join(log[-40:])
        said = json.loads(next(line for line in out if line.startswith("{")))
        (tmp_path / "cli").mkdir()

        def cli(*arguments: str, timeout: float = 60.0) -> Any:
            return run_cli(tmp_path / "cli", *arguments, timeout=timeout, broker=said["broker"])

        one, other = (
            SimpleNamespace(http=doors["http"], grpc=doors["grpc"], key=said["key"], cli=cli)
            for doors in said["apis"].values()
        )
        traffic = make_traffic(31, 2_000, conflicts=10)
        tally = Tally()
        await send_http(one, http_batches(traffic.http), tally)
        await send_streams(other, grpc_batches(traffic.grpc), tally)
        await send_http(other, http_batches(traffic.late), Tally())
        assert tally.acknowledged == traffic.events
        lists = []
        for api in (one, other):
            async with reader(api) as tables:
                assert await tables.differences(traffic.truth, exact_duplicates=True, details=10) == []
                lists.append(await tables.users())
                assert await users_topic.differences(said["broker"].removeprefix("kafka://"), tables) == []
        assert lists[0] == lists[1]
        assert clients.verify(one) == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(PROCESS_PATIENCE) == 0
    finally:
        process.kill()
        process.wait(PROCESS_PATIENCE)
