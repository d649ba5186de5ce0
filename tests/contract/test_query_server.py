"""The query server and its client, over a real socket and real files."""

import asyncio
import json
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec import structs

from processor.event_store.first_build import BuildReport
from server.errors import Refused
from server.explore import dispatch, wire
from server.explore.client import QueryClient
from server.explore.engine import Engine
from server.explore.process import HEAVY_SLOTS
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    ExportFormat,
    ExportQuestion,
    Filters,
    NewEventsQuestion,
    Question,
    SessionQuestion,
    SessionsQuestion,
    Times,
    TraceQuestion,
    TracesQuestion,
)
from server.explore.segment_files import OpenFile
from server.explore.snapshot import Snapshot
from server.telemetry.store_metrics import Building, StoreStatus
from tests.support.event_store import NOON, StoreDirectory, make_row, random_row
from tests.support.patience import PATIENCE, until
from tests.support.query_server import query_server

ALL = Filters(kinds="all")
LIST = EventsQuestion(project="default", filters=ALL, times=Times())


@pytest.fixture
def store(tmp_path: Path) -> StoreDirectory:
    rng = random.Random(1)
    made = StoreDirectory(tmp_path / "events")
    for partition in (0, 1):
        made.append([random_row(rng) for _ in range(40)], partition=partition)
    return made


def own(store: StoreDirectory) -> list[dict[str, Any]]:
    return [row for row in store.rows if row["project"] == "default"]


async def test_list_and_event(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        page = json.loads(await asked.client.ask(LIST), parse_float=str)
        assert page["total"] == len(own(store))
        whole = NOON // 10**6  # without `.0`, as all numbers
        assert (page["asOf"], page["lagSeconds"]) == ("1970-01-01T00:00:00.000Z", whole)
        asked.store.completeness.note(NOON - 2_500_000, {0: 3, 1: 3})
        event_id = page["events"][0]["event_id"]
        event = json.loads(await asked.client.ask(EventQuestion(project="default", event_id=event_id)))
        assert event["event_id"] == event_id
        assert (event["asOf"], event["lagSeconds"]) == ("2026-04-20T15:59:57.500Z", 2.5)
        with pytest.raises(Refused) as refused:
            await asked.client.ask(EventQuestion(project="default", event_id="x"))
        assert refused.value.reason == "not_found"


async def test_progress_of_a_first_build(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        asked.store.completeness.note(NOON - 2_500_000, {0: 3, 1: 3})
        asked.store.behind = {0: 5, 1: 0}
        assert await asked.client.status() == StoreStatus(2.5, {0: 5, 1: 0})
        assert "building" not in json.loads(await asked.client.ask(LIST))
        asked.store.building = BuildReport(400, 1000, 6, is_last=False)
        assert await asked.client.status() == StoreStatus(2.5, {0: 5, 1: 0}, Building(400, 1000, 6))
        assert json.loads(await asked.client.ask(LIST))["building"] == {"done": 400, "of": 1000, "secondsLeft": 6}
        asked.store.read_all.clear()
        assert await asked.client.status() is None
    assert await asked.client.status() is None


async def test_after_is_waited_for(store: StoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with query_server(store, tmp_path) as asked:
        question = EventsQuestion(project="default", filters=ALL, times=Times(), after={0: 3, 1: 2})
        asking = asyncio.create_task(asked.client.ask(question))
        await asyncio.sleep(0.05)
        assert not asking.done()
        row = make_row()
        store.append([row])
        asked.server.notify()
        assert row["event_id"] in (await asking).decode()
        monkeypatch.setattr("server.explore.process.PATIENCE", 0.1)
        later = EventsQuestion(project="default", filters=ALL, times=Times(), after={0: 99})
        with pytest.raises(Refused) as refused:
            await asked.client.ask(later)
        assert (refused.value.reason, refused.value.retry_after) == ("not_yet_visible", 1)


async def test_a_missing_directory_is_said(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        store.directory.rename(tmp_path / "elsewhere")
        with pytest.raises(Refused) as refused:
            await asked.client.ask(LIST)
        assert refused.value.reason == "event_store_missing"


async def test_a_directory_that_the_store_has_not_made_yet_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = StoreDirectory(tmp_path / "events")
    async with query_server(empty, tmp_path) as asked:
        empty.directory.rmdir()
        asked.store.read_all.clear()
        monkeypatch.setattr("server.explore.process.START_PATIENCE", 0.1)
        for reads_all in (False, True):  # the manifests are not known; they are, and there are none
            with pytest.raises(Refused) as refused:
                await asked.client.ask(LIST)
            assert refused.value.reason == "unavailable"
            assert refused.value.retry_after
            if not reads_all:
                asked.store.read_all.set()
        monkeypatch.setattr("server.explore.process.START_OF_STORE", 0.0)
        with pytest.raises(Refused) as refused:
            await asked.client.ask(LIST)
        assert refused.value.reason == "event_store_missing"


async def test_missing_and_damaged_files_are_the_servers_fault(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        for each in store.directory.glob("0000-*.parquet"):
            each.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
        with pytest.raises(Refused, match="damaged") as refused:
            await asked.client.ask(LIST)
        assert refused.value.reason == "unavailable"
        for each in store.directory.glob("0000-*.parquet"):
            each.unlink()
        with pytest.raises(Refused, match="reorganized") as refused:
            await asked.client.ask(LIST)
        assert refused.value.reason == "unavailable"


@pytest.mark.parametrize("column", ["trace_id", "session_id", "user_id", "name"])
@pytest.mark.parametrize(
    "question",
    [
        LIST,
        TracesQuestion(project="default", filters=ALL, times=Times()),
        TracesQuestion(project="default", filters=ALL, times=Times(), sort="cost_usd"),
        TraceQuestion(project="default", trace_id="t"),
        SessionsQuestion(project="default", filters=ALL, times=Times()),
        SessionsQuestion(project="default", filters=ALL, times=Times(), sort="cost_usd"),
        SessionQuestion(project="default", session_id="s"),
    ],
    ids=lambda each: "by ".join([type(each).__name__, getattr(each, "sort", "")]),
)
async def test_a_text_that_is_none_is_the_servers_fault(question: Question, column: str, tmp_path: Path) -> None:
    """One bit of a page that is not packed makes it so."""
    store = StoreDirectory(tmp_path / "events")
    ids: dict[str, Any] = {"trace_id": "t", "session_id": "s"}
    store.append([make_row(**ids, timestamp=NOON), make_row(**{**ids, column: "odd one"}, timestamp=NOON + 1)])
    for each in store.directory.glob("*.parquet"):
        assert b"odd one" in each.read_bytes()
        each.write_bytes(each.read_bytes().replace(b"odd one", b"odd\xa0one"))
    async with query_server(store, tmp_path) as asked:
        try:
            assert b"odd" not in await asked.client.ask(question)
        except Refused as error:
            refused = error
        else:
            return  # it need not read that text
    assert (refused.reason, "damaged" in str(refused)) == ("unavailable", True)


async def test_new_events_since_a_position(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        question = NewEventsQuestion(project="default", filters=ALL)
        first = json.loads(await asked.client.ask(question))
        assert (first["events"], first["skipped"], first["position"]) == ([], 0, {"0": 3, "1": 3})
        rows = [make_row(timestamp=NOON + number) for number in range(30)]
        store.append(rows, partition=0)
        store.append([make_row(project="other")], partition=2)
        store.merge(0)
        position = {int(each): offset for each, offset in first["position"].items()}
        question = NewEventsQuestion(project="default", filters=ALL, position=position, limit=20)
        second = json.loads(await asked.client.ask(question))
        assert [event["event_id"] for event in second["events"]] == [row["event_id"] for row in rows[10:]]
        assert (second["skipped"], second["position"]) == (10, {"0": 6, "1": 3, "2": 3})
        ahead = NewEventsQuestion(project="default", filters=ALL, position={0: 50, 1: 3, 2: 3})
        third = json.loads(await asked.client.ask(ahead))
        assert (third["events"], third["position"]) == ([], {"0": 50, "1": 3, "2": 3})


async def download(client: QueryClient, form: ExportFormat, filters: Filters = ALL) -> tuple[int | None, bytes]:
    found = await client.stream(ExportQuestion(project="default", filters=filters, times=Times(), format=form))
    return found.rows, b"".join([chunk async for chunk in found.chunks])


async def test_exports_are_whole(store: StoreDirectory, tmp_path: Path) -> None:
    wanted = sorted(row["event_id"] for row in own(store))
    async with query_server(store, tmp_path) as asked:
        rows, lines = await download(asked.client, "ndjson")
        events = [json.loads(line) for line in lines.splitlines()]
        assert rows == len(wanted)
        assert sorted(event["event_id"] for event in events) == wanted
        rows, parquet = await download(asked.client, "parquet")
        (tmp_path / "export.parquet").write_bytes(parquet)
        table = pq.read_table(tmp_path / "export.parquet")
        assert sorted(table["event_id"].to_pylist()) == wanted
        assert sum(filter(None, table["cost_usd"].to_pylist())) * 10**12 == sum(
            row["cost_usd"] or 0 for row in own(store)
        )
        rows, text = await download(asked.client, "csv")
        assert len(text.decode().split("\r\n")) == len(wanted) + 2
        rows, lines = await download(asked.client, "ndjson", Filters(equal={"model": ("claude",)}))
        assert rows == len(lines.splitlines())
        rows, nothing = await download(asked.client, "ndjson", Filters(equal={"model": ("no such",)}))
        assert (rows, nothing) == (0, b"")


async def test_export_goes_on_when_its_files_are_deleted(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        found = await asked.client.stream(
            ExportQuestion(project="default", filters=ALL, times=Times(), format="ndjson")
        )
        for each in store.directory.iterdir():
            each.unlink()
        text = b"".join([chunk async for chunk in found.chunks])
        assert len(text.splitlines()) == len(own(store)) == found.rows


async def test_a_broken_export_does_not_end_as_a_whole_one(
    store: StoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    real = OpenFile.read

    def read(file: OpenFile, group: int, columns: Any = None) -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise OSError("input/output error")
        return real(file, group, columns)

    monkeypatch.setattr(OpenFile, "read", read)
    async with query_server(store, tmp_path) as asked:
        found = await asked.client.stream(
            ExportQuestion(project="default", filters=ALL, times=Times(), format="ndjson")
        )
        assert await anext(found.chunks)
        with pytest.raises(Refused):
            assert [chunk async for chunk in found.chunks]


@pytest.mark.slow
async def test_one_export_a_project_and_none_after_it_was_left(store: StoreDirectory, tmp_path: Path) -> None:
    for _ in range(200):  # more than the socket's buffers hold
        store.append([make_row(extra='{"x":"' + "y" * 20_000 + '"}') for _ in range(2)])
    async with query_server(store, tmp_path) as asked:
        question = ExportQuestion(project="default", filters=ALL, times=Times())
        first = await asked.client.stream(question)
        await anext(first.chunks)
        with pytest.raises(Refused) as refused:
            await asked.client.stream(question)
        assert refused.value.reason == "queries_busy"
        await first.chunks.aclose()
        async with asyncio.timeout(PATIENCE):  # until the server has heard that it was left
            while True:
                try:
                    again = await asked.client.stream(question)
                except Refused:
                    await asyncio.sleep(0.05)
                else:
                    await again.chunks.aclose()
                    return


@pytest.mark.slow
async def test_slow_downloads_of_two_projects_leave_room_for_a_third(
    store: StoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.explore.process.EXPORT_SHARE", 0.2)
    for project in ("a", "b"):
        for _ in range(200):  # more than the socket's buffers hold
            store.append([make_row(project=project, extra='{"x":"' + "y" * 20_000 + '"}') for _ in range(2)])
    async with query_server(store, tmp_path) as asked:
        question = ExportQuestion(project="a", filters=ALL, times=Times())
        slow = [await asked.client.stream(structs.replace(question, project=project)) for project in ("a", "b")]
        for each in slow:
            await anext(each.chunks)
        third = await asked.client.stream(structs.replace(question, project="default"))
        assert third.rows == len(own(store))
        assert [chunk async for chunk in third.chunks]
        with pytest.raises(Refused, match="one of another project waits"):
            assert [chunk async for chunk in slow[0].chunks]
        assert [chunk async for chunk in slow[1].chunks]  # it goes on to its end: nobody else waits


class Blocking:
    """Stands for answers that take as long as the test wants."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.count = 0

    def __call__(self, engine: Engine, snapshot: Snapshot, question: Question) -> bytes:
        self.count += 1
        while not self.go.wait(0.01):
            engine.check()
        return b"{}"


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> Blocking:
    made = Blocking()
    monkeypatch.setattr(dispatch, "answer", made)
    return made


async def test_ids_do_not_wait_for_heavy_questions(
    store: StoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking, real = Blocking(), dispatch.answer

    def answer(engine: Engine, snapshot: Snapshot, question: Question) -> bytes:
        return (real if isinstance(question, EventQuestion) else blocking)(engine, snapshot, question)

    monkeypatch.setattr(dispatch, "answer", answer)
    async with query_server(store, tmp_path) as asked:
        heavy = [asyncio.create_task(asked.client.ask(LIST)) for _ in range(9)]
        await until(lambda: blocking.count == 1)
        with pytest.raises(Refused) as refused:
            await asked.client.ask(LIST)
        assert refused.value.reason == "queries_busy"
        event = EventQuestion(project="default", event_id=own(store)[0]["event_id"])
        await asked.client.ask(event)
        blocking.go.set()
        await asyncio.gather(*heavy)


@pytest.fixture
def answers_are_large(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Those of projects called `slow...`: far more than sockets and their buffers hold. What all of them have."""
    found, large = dispatch.answer, random.Random(2).randbytes(12 << 20)

    def answer(engine: Engine, snapshot: Snapshot, question: Question) -> bytes:
        return large if question.project.startswith("slow") else found(engine, snapshot, question)

    monkeypatch.setattr(dispatch, "answer", answer)
    monkeypatch.setattr("server.explore.process.PROMPT", 0.1)
    return large


async def test_clients_that_read_slowly_do_not_hold_up_others(
    store: StoreDirectory, tmp_path: Path, answers_are_large: bytes
) -> None:
    async with query_server(store, tmp_path) as asked:
        questions = [structs.replace(LIST, project=f"slow {number}") for number in range(HEAVY_SLOTS + 1)]
        slow = [await asked.client.stream(each) for each in questions]
        async with asyncio.timeout(PATIENCE):
            assert json.loads(await asked.client.ask(LIST))["total"] == len(own(store))
        for each in slow[1:]:
            assert b"".join([chunk async for chunk in each.chunks]) == answers_are_large
        await slow[0].chunks.aclose()
        async with asyncio.timeout(PATIENCE):
            while asked.server.set_aside:  # noqa: ASYNC110 - a connection ends without an event
                await asyncio.sleep(0.01)
        assert not any((tmp_path / "spill").iterdir())


async def test_of_answers_that_are_read_slowly_so_much_is_set_aside(
    store: StoreDirectory, tmp_path: Path, answers_are_large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a project no more than is left for others."""
    monkeypatch.setattr("server.explore.process.MOST_SET_ASIDE", 2 * len(answers_are_large))
    async with query_server(store, tmp_path) as asked:
        slow = [await asked.client.stream(structs.replace(LIST, project=f"slow {number}")) for number in (0, 0, 1)]
        await until(lambda: len(asked.server.set_aside) == 2)
        slow += [await asked.client.stream(structs.replace(LIST, project=f"slow {number}")) for number in (2, 3)]
        asking = asyncio.create_task(asked.client.ask(LIST))
        assert not (await asyncio.wait({asking}, timeout=1))[0], "three keep their places"
        assert {*asked.server.set_aside} == {"slow 0", "slow 1"}
        assert all(held < len(answers_are_large) for held in asked.server.set_aside.values())
        for each in slow:
            assert b"".join([chunk async for chunk in each.chunks]) == answers_are_large
        assert json.loads(await asking)["total"] == len(own(store))


async def test_answers_that_are_not_read_take_no_memory(
    store: StoreDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them a project has: 300 of 4 MB are more than the process may take."""
    large = random.Random(3).randbytes(3 << 20)
    monkeypatch.setattr(dispatch, "answer", lambda *_: large)
    monkeypatch.setattr("server.explore.process.PROMPT", 0.02)
    async with query_server(store, tmp_path) as asked:
        slow = [await asked.client.stream(LIST) for _ in range(20)]
        await until(lambda: asked.server.set_aside["default"] > 20 * (len(large) - (1 << 20)))
        for each in slow:
            assert b"".join([chunk async for chunk in each.chunks]) == large
        await until(lambda: not asked.server.set_aside)


async def test_too_long_is_too_heavy_and_says_what_to_do(
    store: StoreDirectory, tmp_path: Path, blocking: Blocking
) -> None:
    async with query_server(store, tmp_path, timeout=0.2) as asked:
        with pytest.raises(Refused, match="shorter time") as refused:
            await asked.client.ask(LIST)
        assert (refused.value.reason, refused.value.retry_after) == ("query_too_heavy", None)


async def test_a_client_that_leaves_ends_its_question(
    store: StoreDirectory, tmp_path: Path, blocking: Blocking
) -> None:
    async with query_server(store, tmp_path) as asked:
        asking = asyncio.create_task(asked.client.ask(LIST))
        await until(lambda: asked.server.running)
        asking.cancel()
        await until(lambda: not asked.server.running)


async def test_a_process_that_is_away_or_hangs_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.explore.client.CONNECT_PATIENCE", 0.1)
    monkeypatch.setattr("server.explore.client.SILENCE", 0.2)
    with pytest.raises(Refused) as refused:
        await QueryClient(tmp_path).ask(LIST)
    assert (refused.value.reason, refused.value.retry_after) == ("unavailable", 1)
    listening = wire.listen(tmp_path)  # nobody accepts
    with pytest.raises(Refused) as refused:
        async with asyncio.timeout(PATIENCE):
            await QueryClient(tmp_path).ask(LIST)
    assert refused.value.reason == "unavailable"
    listening.close()


async def test_a_process_that_dies_amid_an_answer_is_unavailable(tmp_path: Path) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await wire.read_question(reader)
        writer.write(wire.pack(wire.AnswerHead()) + wire.pack(wire.Chunk(b"{")) + b"\0\0")
        writer.close()

    server = await asyncio.start_unix_server(die, sock=wire.listen(tmp_path))
    with pytest.raises(Refused) as refused:
        await QueryClient(tmp_path).ask(LIST)
    assert refused.value.reason == "unavailable"
    found = await QueryClient(tmp_path).stream(ExportQuestion(project="default", filters=ALL, times=Times()))
    with pytest.raises(Refused):
        assert [chunk async for chunk in found.chunks]
    server.close()


async def test_what_is_no_question_ends_its_connection_only(store: StoreDirectory, tmp_path: Path) -> None:
    async with query_server(store, tmp_path) as asked:
        for raw in (b"\xff" * 8, b"\0\0\0\2{}", b"\0\0\0\5abcde", b""):
            with wire.SocketAddress(tmp_path) as path:
                reader, writer = await asyncio.open_unix_connection(path)
            writer.write(raw)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        await asked.client.ask(LIST)


def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    wire.listen(folder).close()
    wire.listen(folder).close()  # in place of the one that was left
