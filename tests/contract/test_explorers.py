"""What every `Explorer` promises: the fake behind the APIs' tests, and the client of the query process."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from server.errors import Refused
from server.explore.explorer import Explorer, OffExplorer
from server.explore.questions import (
    EventQuestion,
    EventsQuestion,
    ExportQuestion,
    Filters,
    NewEvents,
    NewEventsQuestion,
    Times,
)
from tests.support.event_store import NOON, StoreDirectory, make_row
from tests.support.explorer import FakeExplorer
from tests.support.query_server import query_server

ALL = Filters(kinds="all")
LIST = EventsQuestion(project="default", filters=ALL, times=Times(), order="asc")
STAMP = {"asOf", "lagSeconds"}


class Stage(NamedTuple):
    """An explorer, and a way to store events: model and project of each, a second apart."""

    explorer: Explorer
    put: Callable[..., list[str]]


@pytest.fixture(params=["fake", "query"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    if request.param == "fake":
        fake = FakeExplorer()

        def put(*models: str, project: str = "default") -> list[str]:
            ids = [f"{len(fake.events) + number}" for number in range(len(models))]
            fake.add(
                *({"event_id": each, "model": model} for each, model in zip(ids, models, strict=True)), project=project
            )
            return ids

        yield Stage(fake, put)
        return
    store = StoreDirectory(tmp_path / "events")
    stored = 0

    def append(*models: str, project: str = "default") -> list[str]:
        nonlocal stored
        rows = []
        for model in models:
            stored += 1
            rows.append(make_row(model=model, project=project, timestamp=NOON + stored * 1_000_000))
        store.append(rows, messages=len(rows))
        return [row["event_id"] for row in rows]

    append("before")  # the store of a server that has never had an event has no partition yet
    store.expire(0)
    async with query_server(store, tmp_path) as asked:
        yield Stage(asked.client, append)


async def ask(stage: Stage, question: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await stage.explorer.ask(question))
    assert found.keys() >= STAMP
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [event["event_id"] for event in found["events"]]


async def test_a_page_of_events(stage: Stage) -> None:
    stage.explorer.check()
    empty = await ask(stage, LIST)
    assert {name: empty[name] for name in empty if name not in STAMP} == {"events": [], "nextCursor": None, "total": 0}
    stored = stage.put("a", "b", "a")
    stage.put("a", project="other")
    assert ids(await ask(stage, LIST)) == stored
    filtered = msgspec.structs.replace(LIST, filters=Filters(equal={"model": ("a",)}), order="desc", limit=1)
    page = await ask(stage, filtered)
    assert (ids(page), page["total"]) == ([stored[2]], 2)


async def test_one_event(stage: Stage) -> None:
    [stored], [theirs] = stage.put("a"), stage.put("b", project="other")
    found = await ask(stage, EventQuestion(project="default", event_id=stored))
    assert (found["event_id"], found["model"]) == (stored, "a")
    for missing in (theirs, "nothing", ""):
        with pytest.raises(Refused) as refused:
            await stage.explorer.ask(EventQuestion(project="default", event_id=missing))
        assert (refused.value.reason, refused.value.retryable) == ("not_found", False)


async def test_what_has_become_visible(stage: Stage) -> None:
    stage.put("a")
    question = NewEventsQuestion(project="default", filters=ALL, limit=2)
    first = await new_events(stage, question)
    assert (json.loads(bytes(first.events)), first.skipped) == ([], 0)
    stored = stage.put("b", "c", "d")
    stage.put("e", project="other")
    second = await new_events(stage, msgspec.structs.replace(question, position=first.position))
    assert [event["event_id"] for event in json.loads(bytes(second.events))] == stored[1:]
    assert second.skipped == 1
    third = await new_events(stage, msgspec.structs.replace(question, position=second.position))
    assert (bytes(third.events), third.skipped, third.position) == (b"[]", 0, second.position)


async def new_events(stage: Stage, question: NewEventsQuestion) -> NewEvents:
    return msgspec.json.decode(await stage.explorer.ask(question), type=NewEvents)


async def test_a_position_that_is_not_there_yet(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.explore.process.PATIENCE", 0.1)
    stage.put("a")
    with pytest.raises(Refused) as refused:
        await stage.explorer.ask(msgspec.structs.replace(LIST, after={0: 99}))
    assert (refused.value.reason, refused.value.retry_after) == ("not_yet_visible", 1)


async def test_any_answer_can_be_streamed(stage: Stage) -> None:
    stored = stage.put(*"abc")
    download = await stage.explorer.stream(LIST)
    async with aclosing(download.chunks) as chunks:
        assert ids(json.loads(b"".join([chunk async for chunk in chunks]))) == stored
    with pytest.raises(Refused) as refused:
        await stage.explorer.stream(EventQuestion(project="default", event_id="nothing"))
    assert refused.value.reason == "not_found"


async def test_an_export(stage: Stage) -> None:
    stored = stage.put(*"abc")
    stage.put("a", project="other")
    download = await stage.explorer.stream(ExportQuestion(project="default", filters=ALL, times=Times()))
    assert download.rows == len(stored)
    async with aclosing(download.chunks) as chunks:
        text = b"".join([chunk async for chunk in chunks])
    assert sorted(json.loads(line)["event_id"] for line in text.splitlines()) == sorted(stored)


async def test_an_export_that_is_left(stage: Stage) -> None:
    stage.put(*"abc")
    question = ExportQuestion(project="default", filters=ALL, times=Times())
    for _ in range(3):
        download = await stage.explorer.stream(question)
        async with aclosing(download.chunks) as chunks:
            assert await anext(chunks)
        await asyncio.sleep(0.2)
    assert (await stage.explorer.stream(question)).rows == 3


async def test_several_at_once(stage: Stage) -> None:
    stored = stage.put(*"abcdefgh")
    questions = [EventQuestion(project="default", event_id=each) for each in stored]
    found = await asyncio.gather(*(ask(stage, question) for question in questions))
    assert [event["event_id"] for event in found] == stored


async def test_a_store_that_is_off() -> None:
    off = OffExplorer()
    for call in (off.ask(LIST), off.stream(ExportQuestion(project="default", filters=ALL, times=Times()))):
        with pytest.raises(Refused) as refused:
            await call
        assert (refused.value.reason, refused.value.retryable) == ("event_store_off", False)
