"""Who may be answered: projects take turns."""

import asyncio
import re

import pytest

from server.errors import Refused
from server.explore.lanes import Lane, Places
from tests.support.patience import PATIENCE


async def ask(lane: Lane, project: str, name: str, done: list[str], gate: asyncio.Event) -> None:
    async with lane.turn(project):
        done.append(name)
        await gate.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_projects_take_turns_and_have_one_running_each() -> None:
    lane, done, gate = Lane(2, 1, 8), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(ask(lane, "many", f"m{number}", done, gate)) for number in range(5)]
    await settle()
    assert done == ["m0"]
    tasks += [asyncio.create_task(ask(lane, project, project, done, gate)) for project in ("a", "b")]
    await settle()
    assert done == ["m0", "a"]
    gate.set()
    await asyncio.gather(*tasks)
    assert done.index("b") < done.index("m2")
    assert done[-3:] == ["m2", "m3", "m4"]
    assert lane.running == 0


async def test_nine_waiting_are_one_too_many() -> None:
    lane, done, gate = Lane(3, 1, 8), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(ask(lane, "p", str(number), done, gate)) for number in range(9)]
    await settle()
    with pytest.raises(Refused, match="8 questions") as refused:
        async with lane.turn("p"):
            raise AssertionError
    assert (refused.value.reason, refused.value.retry_after) == ("queries_busy", 2)
    gate.set()
    await asyncio.gather(*tasks)
    async with lane.turn("p"):
        pass


# --- places of downloads --------------------------------------------------------------------------------------------


async def download(places: Places, project: str, ended: list[str]) -> None:
    """Read for ever."""
    try:
        async with places.turn(project):
            await asyncio.Event().wait()
    except Refused as refused:
        ended.append(f"{project}: {refused}")


async def test_a_project_has_one_place() -> None:
    places = Places(2, 60, PATIENCE)
    async with places.turn("p"):
        with pytest.raises(Refused, match="runs or waits already") as refused:
            async with places.turn("p"):
                raise AssertionError
        assert refused.value.reason == "queries_busy"
    async with places.turn("p"):
        pass


async def test_a_project_waits_for_one_place() -> None:
    places, ended = Places(1, 60, PATIENCE), list[str]()
    tasks = [asyncio.create_task(download(places, project, ended)) for project in ("a", "b")]
    await settle()
    with pytest.raises(Refused, match="runs or waits already"):
        async with places.turn("b"):
            raise AssertionError
    await cancelled(tasks)


async def test_a_download_keeps_its_place_while_no_other_project_waits() -> None:
    places, ended = Places(2, 0.05, PATIENCE), list[str]()
    began = asyncio.get_running_loop().time()
    tasks = [asyncio.create_task(download(places, project, ended)) for project in ("a", "b")]
    await asyncio.sleep(0.3)
    assert places.running == 2
    async with places.turn("c"):  # the one that has had its place for longest ends, and no other
        assert [each.partition(":")[0] for each in ended] == ["a"]
        (seconds,) = re.findall(r"had its place for (\d+) s", ended[0])
        assert int(seconds) <= round(asyncio.get_running_loop().time() - began)
        await asyncio.sleep(0.1)
        assert len(ended) == 1
    await cancelled(tasks)
    assert places.running == 0


async def test_who_waits_has_a_place_once_one_is_due() -> None:
    places, ended = Places(1, 0.2, PATIENCE), list[str]()
    task = asyncio.create_task(download(places, "a", ended))
    await settle()
    began = asyncio.get_running_loop().time()
    async with places.turn("b"):
        assert asyncio.get_running_loop().time() - began > 0.15
    assert len(ended) == 1
    await cancelled([task])


async def test_who_waits_in_vain_is_told_when_a_place_is_due() -> None:
    places, ended = Places(1, 30, 0.05), list[str]()
    task = asyncio.create_task(download(places, "a", ended))
    await settle()
    with pytest.raises(Refused, match=r"one of them ends in (29|30) s at the latest") as refused:
        async with places.turn("b"):
            raise AssertionError
    assert refused.value.reason == "queries_busy"
    assert refused.value.retry_after in (29, 30)
    await cancelled([task])
    async with places.turn("b"):
        pass
    assert ended == []


async def test_who_has_left_ends_no_download() -> None:
    places, ended = Places(1, 0.1, PATIENCE), list[str]()
    tasks = [asyncio.create_task(download(places, project, ended)) for project in ("a", "b")]
    await settle()
    tasks[1].cancel()
    await asyncio.sleep(0.3)
    assert (places.running, ended) == (1, [])
    await cancelled(tasks)


async def test_a_timeout_of_the_download_itself_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with Places(1, 60, PATIENCE).turn("a"):
            raise TimeoutError


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- who leaves -----------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_gives_up_its_place() -> None:
    lane, done, gate = Lane(1, 1, 8), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(ask(lane, "p", str(number), done, gate)) for number in range(3)]
    await settle()
    tasks[1].cancel()
    tasks[0].cancel()
    await settle()
    assert done == ["0", "2"]
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with lane.turn("q"):
        assert lane.running == 1


async def test_a_turn_that_comes_as_its_client_leaves_goes_to_the_next() -> None:
    lane, done, gate = Lane(1, 1, 8), list[str](), asyncio.Event()
    first = asyncio.create_task(ask(lane, "p", "0", done, gate))
    second = asyncio.create_task(ask(lane, "p", "1", done, gate))
    third = asyncio.create_task(ask(lane, "p", "2", done, gate))
    await settle()
    gate.set()
    while not first.done():  # noqa: ASYNC110 - exactly as far as this
        await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert done[-1] == "2"
    assert lane.running == 0


async def test_a_question_that_is_given_up_when_its_turn_comes_does_not_keep_the_others_waiting() -> None:
    lane, done, gate, rest = Lane(1, 1, 8), list[str](), asyncio.Event(), asyncio.Event()
    rest.set()
    running = asyncio.create_task(ask(lane, "p", "running", done, gate))
    await settle()
    given_up, *others = [asyncio.create_task(ask(lane, "p", name, done, rest)) for name in ("gone", "next", "last")]
    await settle()
    gate.set()  # both in one turn of the loop: the place becomes free, and the client that is next has left
    given_up.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(running, *others)
    assert done == ["running", "next", "last"]
    assert lane.running == 0
