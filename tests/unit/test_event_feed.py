"""The feed of events: what one project asks does not keep the streams of another one waiting."""

import asyncio

import msgspec

from server.errors import Refused
from server.explore.explorer import Download
from server.explore.questions import Filters, NewEvents, NewEventsQuestion, Question
from server.live.event_feed import EventFeed
from server.tenancy.keys import make_key, new_secret
from tests.support.patience import PATIENCE

KEY = make_key(new_secret(), at=0)


class Explorer:
    """Answers the questions of the project `slow` only when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[str] = []

    def check(self) -> None:
        """Any question may be asked."""

    async def ask(self, question: Question) -> bytes:
        """Return that there is nothing new."""
        assert isinstance(question, NewEventsQuestion)
        self.asked.append(question.project)
        if question.project == "slow":
            await self.go.wait()
        return msgspec.json.encode(NewEvents(msgspec.Raw(b"[]"), 0, {0: 1}))

    async def stream(self, question: Question) -> Download:
        """Nobody asks."""
        raise Refused("internal", "not asked")


def question(project: str, model: str = "", after: int | None = None) -> NewEventsQuestion:
    waits = {} if after is None else {0: after}
    return NewEventsQuestion(project=project, filters=Filters(equal={"model": (model,)}), after=waits)


async def test_a_project_with_many_slow_questions_does_not_hold_up_another_one() -> None:
    explorer = Explorer()
    feed = EventFeed(explorer, "id")
    slow = [
        asyncio.create_task(feed.open("s", lambda: KEY, question("slow", f"m{number}"), None)) for number in range(20)
    ]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE):
        subscription = await feed.open("s", lambda: KEY, question("quick"), None)
    assert subscription.first is not None and subscription.first.is_empty  # noqa: PT018
    explorer.go.set()
    await asyncio.gather(*slow)
    assert explorer.asked.count("slow") == 20


async def test_questions_that_wait_for_a_position_hold_up_nobody() -> None:
    explorer = Explorer()
    feed = EventFeed(explorer, "id")
    slow = [asyncio.create_task(feed.open("s", lambda: KEY, question("slow", after=9), None)) for _ in range(20)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE):
        await feed.open("s", lambda: KEY, question("quick"), None)
    explorer.go.set()
    await asyncio.gather(*slow)
