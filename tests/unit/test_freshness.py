import asyncio
import time

import pytest

from server.errors import Refused
from server.tenancy.directory_follower import DirectoryFreshness, always
from tests.support.patience import PATIENCE


class Moment:
    def __init__(self) -> None:
        self.now = 100.0
        self.known = 100.0

    def trust(self) -> DirectoryFreshness:
        return DirectoryFreshness(lambda: self.known, lambda: self.now)


def test_a_directory_is_trusted_for_a_second_and_not_longer() -> None:
    moment = Moment()
    trust = moment.trust()
    for age in (0.0, 0.5, 1.0):
        moment.now = 100.0 + age
        trust.check()
    moment.now = 101.001
    with pytest.raises(Refused) as caught:
        trust.check()
    assert (caught.value.reason, caught.value.retry_after) == ("unavailable", 1)
    moment.known = 101.0
    trust.check()


def test_a_directory_that_was_never_read_is_not_trusted() -> None:
    moment = Moment()
    moment.known = float("-inf")
    with pytest.raises(Refused):
        moment.trust().check()


async def test_a_request_waits_for_a_directory_that_is_just_being_read() -> None:
    began = time.monotonic()
    trust = DirectoryFreshness(
        lambda: time.monotonic() if time.monotonic() > began + 0.05 else began - 9, time.monotonic
    )
    assert not trust.is_fresh
    async with asyncio.timeout(PATIENCE):  # it is woken, and does not wait to the end
        await trust.settle(10 * PATIENCE)
    assert trust.is_fresh


async def test_it_does_not_wait_for_ever() -> None:
    trust = DirectoryFreshness(lambda: float("-inf"), time.monotonic)
    await trust.settle(0.02)
    assert not trust.is_fresh


def test_a_directory_that_nobody_else_changes() -> None:
    always().check()
