"""Export and import as commands, beside a running server and without one."""

import asyncio
import gzip
import json
import random
import shutil
from decimal import Decimal
from pathlib import Path

from tests.support import clients
from tests.support.clients import Pace, Reader, Tally, reader
from tests.support.events import make_event, to_ndjson
from tests.support.server import run_cli, server
from tests.support.traffic import make_traffic


async def test_a_backup_restores_every_table_twice(tmp_path: Path) -> None:
    traffic = make_traffic(77, 6_000, conflicts=20)
    file = tmp_path / "backup.ndjson.gz"
    with server(tmp_path / "data", partitions=2) as started:
        await clients.send(started, traffic, Tally())
        async with reader(started) as tables:
            assert await tables.differences(traffic.truth, exact_duplicates=False) == []
            unpriced = make_event(event_id="550e8400-e29b-41d4-a716-446655440001", cost_usd=None)
            answer = await tables.ingest([unpriced], Prefer="handling=lenient")
            assert answer.status == 202
            position = answer.headers["x-ingest-position"]
            expected = await tables.get(f"/v1/users?limit=1000&after={position}")
            quota = await tables.get("/v1/quota")
        done = started.cli("export", "--output", str(file), "--json")
        assert done.returncode == 0, done.stderr
        sent = traffic.events + traffic.truth.conflicts + 1
        assert json.loads(done.stdout)["events"] >= sent
        piped = started.cli("export", "--project", "nobody")
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", "0 events\n")

    # Without a server, into a directory that is not there yet; the server that comes later knows nothing else.
    for _ in range(2):
        done = run_cli(tmp_path / "copy", "import", str(file), "--json", partitions=3)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["accepted"] >= sent
    with server(tmp_path / "copy") as restored:
        async with reader(restored) as opened:
            again = await opened.caught_up(quota["used"], 2 * quota["duplicates"] + quota["used"])
            assert again["windows"]["month"] == quota["windows"]["month"]
            assert again["duplicates"] == 2 * quota["duplicates"] + quota["used"]
            shown = await opened.get("/v1/users?limit=1000")
            assert {**shown, "asOf": None} == {**expected, "asOf": None}
            # Beside the running server, too.
            done = restored.cli("import", str(file))
            assert done.returncode == 0, done.stderr
            copies = again["duplicates"] + quota["used"] + quota["duplicates"]
            quota = await opened.caught_up(quota["used"], copies)
            assert (quota["used"], quota["duplicates"]) == (again["used"], copies)
            shown = await opened.get("/v1/users?limit=1000")
            assert {**shown, "asOf": None} == {**expected, "asOf": None}
        assert clients.verify(restored) == []


def test_bad_lines_and_files_are_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    event = make_event(
        _spendstream={
            "project": "p",
            "organization": "o",
            "key_id": "k",
            "arrival": "2026-04-20T10:00:00Z",
            "handling": "partial",
        }
    )
    file = tmp_path / "some.ndjson"
    file.write_bytes(to_ndjson([event, {**event, "stream": "no"}, make_event()]))
    assert run_cli(data, "import", str(file), "--dry-run").returncode == 1
    assert not data.exists()
    done = run_cli(data, "import", str(file))
    assert done.returncode == 1
    assert "some.ndjson:2, stream: stream must be true or false" in done.stderr
    assert "some.ndjson:3, _spendstream: _spendstream is required" in done.stderr
    assert done.stdout == "1 events imported, 2 lines refused\n"
    assert "no such file" in run_cli(data, "import", "nowhere.ndjson").stderr

    cut = tmp_path / "cut.ndjson.gz"
    cut.write_bytes(gzip.compress(to_ndjson([event] * 2000))[:-50])
    done = run_cli(data, "import", str(cut), "--json")
    assert done.returncode == 1
    assert "cut.ndjson.gz" in next(iter(json.loads(done.stdout)["damaged"]))
    for arguments in (["--start", "yesterday"], ["--output", "/nowhere/at/all.gz"]):
        done = run_cli(data, "export", *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert run_cli(tmp_path / "nothing", "export").returncode == 2


async def test_a_copy_made_under_load_is_of_one_instant_and_can_be_served(tmp_path: Path) -> None:
    traffic = make_traffic(random.SystemRandom().randrange(10**6), 4_000)
    with server(tmp_path / "data", partitions=2) as started:
        tally = Tally()
        sending = asyncio.create_task(clients.send(started, traffic, tally, Pace(traffic.events, 800)))
        while tally.acknowledged < traffic.events // 8:  # noqa: ASYNC110 - the tally has no event
            await asyncio.sleep(0.05)
        before = tally.acknowledged
        done = await asyncio.to_thread(started.cli, "backup", str(tmp_path / "copy"), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["file"] == str(tmp_path / "copy" / "log.db")
        await sending
        again = await asyncio.to_thread(started.cli, "backup", str(tmp_path / "copy"))
        assert (again.returncode, "exists" in again.stderr) == (2, True)
        key = started.key
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["log.db"]
    assert (tmp_path / "copy" / "log.db").stat().st_mode & 0o077 == 0
    with server(tmp_path / "copy", key=None) as copy:
        copy.key = key
        async with clients.reader(copy) as reader:
            quota = await reader.get("/v1/quota")
            counted = quota["used"] + quota["duplicates"]
            assert before <= counted <= traffic.events, "what was acknowledged before is in it"
            assert await asyncio.to_thread(clients.verify, copy) == []
            await clients.send(copy, traffic, Tally())
            await reader.caught_up(traffic.truth.unique)
            assert await reader.differences(traffic.truth, exact_duplicates=False) == []


async def test_an_older_copy_that_is_restored_is_served_without_what_came_after(tmp_path: Path) -> None:
    """Nowhere: not in the tables, not in the store, not in the quota; and what is sent again counts, once."""
    data = tmp_path / "data"
    earlier = [make_event(user_id=f"u{number % 7}", cost_usd=Decimal("0.25")) for number in range(60)]
    later = [make_event(user_id=f"u{number % 9}", cost_usd=Decimal("0.5")) for number in range(50)]
    ids = [each["event_id"] for each in [*earlier, *later]]

    async def check(tables: Reader, events: int, cost: Decimal, users: int) -> None:
        tables.number = Decimal
        position = (await tables.ingest(earlier)).headers[
            "x-ingest-position"
        ]  # copies, in all partitions: count nothing
        quota, total = (await tables.caught_up(events)), (await tables.get(f"/v1/users?after={position}"))["total"]
        assert (quota["used"], quota["remaining"], quota["windows"]["month"]["used"]) == (events, 200 - events, events)
        assert (total["requests"], total["cost_usd"], total["users"]) == (events, cost, users)
        since = f"start=2026-04-01&end=2026-05-01&after={position}"
        listed = await tables.get(f"/v1/events?{since}&limit=200")
        assert sorted(each["event_id"] for each in listed["events"]) == sorted(ids[:events])
        assert listed["total"] == events
        figures = await tables.get(f"/v1/metrics?{since}&group_by=user_id")
        assert figures["total"] == {"requests": events, "cost_usd": cost}
        costs = await tables.get(f"/v1/costs?{since}")
        assert sum(each["cost_usd"] for each in costs["byModel"]) == cost

    with server(data, event_store=True, partitions=2) as started:
        assert started.cli("orgs", "set", "default", "--monthly-quota", "200").returncode == 0
        async with reader(started) as tables:
            assert (await tables.ingest(earlier)).status == 202
            await check(tables, 60, Decimal(15), 7)
            done = await asyncio.to_thread(started.cli, "backup", str(tmp_path / "copy"))
            assert done.returncode == 0, done.stderr
            assert (await tables.ingest(later)).status == 202
            await check(tables, 110, Decimal(40), 9)
        await asyncio.to_thread(started.kill_all)  # and the newer index and store stay where they are
        shutil.copy(tmp_path / "copy" / "log.db", data / "log.db")
        for name in ("log.db-wal", "log.db-shm"):
            (data / name).unlink(missing_ok=True)
        await asyncio.to_thread(started.start)
        async with reader(started) as tables:
            await check(tables, 60, Decimal(15), 7)
            missing = await tables.request("GET", f"/v1/events/{later[0]['event_id']}")
            assert missing.status == 404
            assert await asyncio.to_thread(clients.verify, started) == []
            assert (await tables.ingest([*later, *later])).status == 202
            await check(tables, 110, Decimal(40), 9)
        assert await asyncio.to_thread(clients.verify, started) == []


def test_a_copy_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with server(tmp_path / "data") as started:
        (tmp_path / "file").write_text("")
        done = started.cli("backup", str(tmp_path / "file" / "copy"))
        assert done.returncode == 2
        assert "cannot write" in done.stderr
