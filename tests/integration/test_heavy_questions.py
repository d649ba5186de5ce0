"""A tenant asks the heaviest questions, 64 at a time and without a pause: nobody else is refused, and nothing ends."""

import asyncio
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

from tests.support import clients
from tests.support.events import make_event, to_ndjson
from tests.support.heavy_questions import RANGE, HeavyReaders, ask
from tests.support.server import KEY, Part, Server, server, wait_until

EVENTS = 6000
BATCH = 100
SECONDS = float(os.environ.get("HEAVY_SECONDS", "6"))
MEMORY = 512 << 20


def some(count: int, chance: random.Random) -> list[dict[str, Any]]:
    return [
        make_event(
            user_id=f"user {chance.randrange(900)}",
            session_id=f"session {chance.randrange(300)}",
            trace_id=f"trace {chance.randrange(2000)}",
            model=chance.choice(["gpt-4o", "claude", "gemini"]),
            latency_ms=chance.randrange(1, 9000),
            tags={"team": chance.choice("abcdef")},
            tools_used=chance.sample(["search", "python", "browser"], 2),
            timestamp=f"2026-{chance.randint(1, 10):02d}-{chance.randint(1, 28):02d}T12:00:00Z",
        )
        for _ in range(count)
    ]


async def fill(started: Server, key: str, count: int) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    async with clients.reader(started) as reader:
        for number in range(count // BATCH):
            body = to_ndjson(some(BATCH, random.Random(number)))
            answer = await reader.request("POST", "/v1/ingest", key, data=body, headers=headers)
            assert answer.status == 202, answer.json
    port = int(started.http.rpartition(":")[2])

    def has_all() -> bool:
        status, body = ask(port, key, f"/v1/metrics?{RANGE}&measures=requests")
        return status == 200 and json.loads(body)["total"]["requests"] == count

    await asyncio.to_thread(wait_until, has_all)


def anonymous(pid: int) -> int:
    """Bytes of memory that a process takes, without mapped files."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


async def test_64_heavy_questions_at_a_time_end_nothing_and_refuse_nobody_else(tmp_path: Path) -> None:
    with server(tmp_path / "data", event_store="on", query_memory=MEMORY) as started:
        await asyncio.to_thread(wait_until, lambda: started.pid("query") is not None)
        hostile = (await asyncio.to_thread(started.create_key, "--org", "o", "--project", "hostile"))["key"]
        await fill(started, hostile, EVENTS)
        await fill(started, KEY, 5 * BATCH)
        roles: tuple[Part, ...] = ("api", "worker", "store", "query")
        pids = {role: started.pid(role) for role in roles}
        port, most, ended = int(started.http.rpartition(":")[2]), [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                most[0] = max(most[0], anonymous(pids["query"] or 0))

        watching = threading.Thread(target=watch)
        watching.start()
        answers: list[int] = []
        try:
            with HeavyReaders(port, hostile) as readers:
                async with clients.reader(started) as reader:
                    end = time.monotonic() + SECONDS
                    while time.monotonic() < end or len(answers) < 3:
                        answers.append((await reader.ingest(some(20, random.Random(1)))).status)
                        status, body = await asyncio.to_thread(
                            ask, port, KEY, f"/v1/metrics?{RANGE}&group_by=model&measures=latency_ms:p95"
                        )
                        assert status == 200, body
        finally:
            ended.set()
            watching.join()
        assert set(answers) == {202}
        assert {role: started.pid(role) for role in pids} == pids
        assert set(readers.statuses) <= {200, 422, 503}
        assert readers.statuses[200] > 0
        assert readers.statuses[503] > 0, "they asked for more than may wait"
        assert most[0] < 1.25 * MEMORY
        assert not started.entries("http_request_failed")
        assert not started.entries("query.failed")
