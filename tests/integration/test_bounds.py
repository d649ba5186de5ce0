"""What a project may have, in real processes: nobody makes it cost more than that, by whatever timestamps."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.clients import Answer, Reader, reader
from tests.support.events import make_event
from tests.support.server import Server, server

DAYS: Final = 40
FIRST: Final = datetime(26, 1, 1, 12, tzinfo=UTC)


async def post(tables: Reader, days: range, user: str = "u") -> Answer:
    times = [(FIRST + timedelta(days=day)).isoformat() for day in days]
    events = [make_event(timestamp=time, user_id=user) for time in times]
    return await tables.ingest(events)


def refused(answer: Answer) -> set[tuple[str, str]]:
    return {(each["field"], each["code"]) for each in answer.json.get("rejected", ())}


async def shown(started: Server, after: str) -> Any:
    async with reader(started) as tables:
        return await tables.get(f"/v1/users/u?after={after}")


@pytest.mark.parametrize("processes", [1, 2])
async def test_timestamps_over_two_thousand_years_cost_no_more_than_the_bound(tmp_path: Path, processes: int) -> None:
    with server(tmp_path / "data", max_days=DAYS, api_processes=processes) as started:
        async with reader(started) as tables:
            answer = await post(tables, range(0, 7 * DAYS, 7))
            assert (answer.status, answer.json) == (202, {"accepted": DAYS})
            after = answer.headers["x-ingest-position"]
            for _ in range(20 if processes > 1 else 1):  # each on a new connection: every process has seen it
                assert len((await shown(started, after))["byDay"]) == DAYS
            for start in range(1000, 730_000, 30_000):
                answer = await post(tables, range(start, start + 90 * 300, 300))
                assert (answer.status, refused(answer)) == (400, {("timestamp", "out_of_range")})
            mixed = await post(tables, range(100), user="v")
            assert mixed.json["accepted"] == len(range(0, 100, 7))
            assert refused(mixed) == {("timestamp", "out_of_range")}
        assert len((await shown(started, mixed.headers["x-ingest-position"]))["byDay"]) == DAYS
        started.kill_all()
        started.start()
        async with reader(started) as tables:  # what is known goes on after a restart, and no more
            answer = await post(tables, range(100_000, 100_010))
            assert (answer.status, refused(answer)) == (400, {("timestamp", "out_of_range")})
            assert (await post(tables, range(0, 7 * DAYS, 7))).json == {"accepted": DAYS}


async def test_a_project_of_too_many_rows_goes_on_with_those_it_has(tmp_path: Path) -> None:
    with server(tmp_path / "data", max_rows=30) as started:
        async with reader(started) as tables:
            answer = await post(tables, range(10))  # each is a row of a user, of an hour, and of its latencies
            assert answer.json == {"accepted": 10}
            await shown(started, answer.headers["x-ingest-position"])
            for more in (await post(tables, range(10, 20)), await post(tables, range(5), user="v")):
                assert (more.status, refused(more)) == (400, {("user_id", "out_of_range")})
            assert (await post(tables, range(10))).json == {"accepted": 10}
